"""Trains a NaViT classifier on packed rows of pictures and clips of any size.

python -m walt.train_classifier --config=configs/navit_classifier.py --workdir=runs/classifier

Started again on the same workdir, it goes on from the newest checkpoint. As one program of several processes it takes
the flags of `walt/processes.py`.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from walt import build
from walt.data.packing import Packed
from walt.navit.navit import Navit
from walt.parallel.distributed import fetch
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate
from walt.parallel.shard import put_batch
from walt.processes import processes_flags
from walt.randomness import stream
from walt.training.checkpoints import claim_workdir
from walt.training.classifier_step import make_classifier_step, make_classifier_validation
from walt.training.feed import process_batches
from walt.training.loop import fit
from walt.training.profile import parse_steps
from walt.training.state import State, create, step_jit

CONFIG = build.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, configuration.', required=True)
PROFILE = flags.DEFINE_string('profile', '', 'START:STOP traces these steps, counted from 1, into WORKDIR/profile.')
join_processes = processes_flags()

# What a batch has.
KEYS = ('tokens', 'segment', 'place', 'size', 'label')


def train(config: Mapping[str, Any], workdir: str, profile: range = range(0)) -> State:
    """Trains to `config['steps']` and returns the last state; traces the steps of `profile`.

    Errors of the configuration come before training.
    """
    build.check_keys(config, build.CLASSIFIER_KEYS)
    mesh = make_mesh(**config['mesh'])
    check_batch(mesh, config['batch_size'], config['accumulation'])
    classifier, noising = build.classifier(config), build.noising(config['noising'])
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    rows, held_out_rows = (build.source(config['data'], split) for split in ('train', 'validation'))
    for packed in (rows, held_out_rows):
        check_fits(classifier, packed)
    key = jax.random.key(config['seed'])
    state, layout = create(
        build.init_classifier(classifier), optimizer, mesh, stream(key, 'init'), ema_decay=config['ema_decay']
    )
    claim_workdir(workdir, config)

    read = functools.partial(
        process_batches, mesh=mesh, batch_size=config['batch_size'], keys=KEYS, shuffle=False, repeat=False
    )
    step = make_classifier_step(classifier, noising, optimizer, config['ema_decay'], config['accumulation'])
    step = jax.jit(step, **step_jit(layout))
    examine = jax.jit(make_classifier_validation(classifier, noising))

    def validate(state: State):
        """The same rows and noise at every call."""
        some = itertools.islice(read(held_out_rows), config['validation_batches'])
        batches = [
            examine(state.ema, put_batch(mesh, batch), stream(key, 'validation', number))
            for number, batch in enumerate(some)
        ]
        sums = jax.tree.map(lambda *values: sum(values), *fetch(batches))
        names = {'loss': 'loss', 'accuracy': 'right', 'accuracy_clean': 'right_clean'}
        return {name: sums[of] / sums['clips'] for name, of in names.items() if of in sums}

    with activate(mesh):
        return fit(
            lambda state, batch, key: step(state, None, batch, key),
            state,
            lambda start: iter(read(rows, start=start)),
            workdir=workdir,
            config=config,
            put_batch=functools.partial(put_batch, mesh),
            validate=validate,
            profile=profile,
        )


def check_fits(classifier: Navit, rows) -> None:
    """Raises `ValueError` if the data are not what the classifier is built for, naming both values."""
    if not isinstance(rows, Packed):
        raise ValueError(f"a classifier takes data named 'packed', not {type(rows).__name__}")
    pairs = {
        'patch': (tuple(rows.patch), tuple(classifier.patch)),
        'numbers in a token': (rows[0]['tokens'].shape[-1], classifier.token_width),
        'classes': (rows.source.num_classes, classifier.classes),
    }
    changed = [
        f'{name}: {there} of the data, {own} of the classifier' for name, (there, own) in pairs.items() if there != own
    ]
    if changed:
        raise ValueError('data and classifier do not fit each other: ' + '; '.join(changed))
    if (
        classifier.positions == 'learned'
        and not classifier.fractional
        and np.any(rows.largest > np.array(classifier.extent))
    ):
        raise ValueError(
            f'clips may have {rows.largest} tokens, but positions are learned for {tuple(classifier.extent)}'
        )


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save.
    profile = parse_steps(PROFILE.value)
    join_processes()
    train(CONFIG.value.to_dict(), WORKDIR.value, profile)


if __name__ == '__main__':
    app.run(main)
