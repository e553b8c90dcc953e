"""Trains a W.A.L.T denoiser on the latents of a trained tokenizer.

python -m walt.train_denoiser --config=configs/quickstart_denoiser.py --workdir=runs/denoiser \
    --config.tokenizer_dir=runs/tokenizer

The tokenizer is copied into the workdir, which is then all that sampling needs. Started again on the same workdir, it
goes on from the newest checkpoint.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from walt import build
from walt.data.encoded import Encoded
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate, batch_sharding, replicated
from walt.parallel.shard import put_batch
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer
from walt.training.checkpoints import claim_workdir, latest_step, save_ema
from walt.training.denoiser_step import make_denoiser_step, make_validation_loss
from walt.training.feed import process_batches
from walt.training.latents import encoded, latent_shape
from walt.training.loop import fit
from walt.training.state import State, create

CONFIG = build.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, configuration.', required=True)


def train(config: Mapping[str, Any], workdir: str) -> State:
    """Trains to `config['steps']` and returns the last state. Errors of the configuration come before training."""
    build.check_keys(config, build.DENOISER_KEYS)
    mesh = make_mesh(**config['mesh'])
    check_batch(mesh, config['batch_size'])
    loss = build.loss(config['loss'], build.schedule(config['schedule']))
    build.sampler(config['sampler'])
    denoiser = build.denoiser(config['denoiser'], config['dtype'])
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    step = make_denoiser_step(denoiser, loss, optimizer, config['ema_decay'], config['label_dropout'])
    source, held_out = (build.source(config['data'], split) for split in ('train', 'validation'))
    frozen, copy = find_tokenizer(config['tokenizer_dir'], workdir, mesh)
    check_shapes(denoiser, frozen, source)
    claim_workdir(workdir, config)
    copy()

    if config['cache_latents'] and not isinstance(source, Encoded):
        origin = {'data': config['data'], 'tokenizer': {'checkpoint': build.own_tokenizer(workdir)}}
        once = functools.partial(
            encoded, f'{workdir}/latents', frozen=frozen, origin=origin, mesh=mesh, batch_size=config['batch_size']
        )
        source = once('train', source=source)
        held_out = once('validation', source=held_out, clips=config['batch_size'] * config['validation_batches'])
    keys = ('z' if isinstance(source, Encoded) else 'video', 'label')
    rows = functools.partial(process_batches, batch_size=config['batch_size'], keys=keys, seed=config['seed'])

    key = jax.random.key(config['seed'])
    state, layout = create(
        build.init_denoiser(denoiser), optimizer, mesh, stream(key, 'init'), ema_decay=config['ema_decay']
    )
    whole, by_rows = replicated(mesh), batch_sharding(mesh)
    step = jax.jit(
        step,
        in_shardings=(layout, None, by_rows, whole),
        out_shardings=(layout, whole),
        donate_argnums=0,
    )
    held_out_loss = jax.jit(make_validation_loss(denoiser, loss))

    def validate(state: State):
        """The same clips, times and noise at every call."""
        some = itertools.islice(rows(held_out), config['validation_batches'])
        losses = [
            held_out_loss(state.ema, frozen, put_batch(mesh, batch), stream(key, 'validation', number))
            for number, batch in enumerate(some)
        ]
        return {'loss': np.mean(losses)}

    with activate(mesh):
        return fit(
            lambda state, batch, key: step(state, frozen, batch, key),
            state,
            iter(rows(source)),
            workdir=workdir,
            config=config,
            put_batch=functools.partial(put_batch, mesh),
            validate=validate,
        )


def find_tokenizer(tokenizer_dir: str, workdir: str, mesh: Mesh) -> tuple[FrozenTokenizer, Callable[[], None]]:
    """The run's own copy of the tokenizer, or else the one in `tokenizer_dir` with what copies it into the workdir."""
    own = build.own_tokenizer(workdir)
    if latest_step(own) is not None:
        return build.restore_tokenizer(own, mesh)[0], lambda: None
    if not tokenizer_dir:
        raise ValueError('config.tokenizer_dir is empty: give the workdir of a trained tokenizer')
    frozen, config, step = build.restore_tokenizer(tokenizer_dir, mesh)
    return frozen, lambda: save_ema(own, {'params': frozen.params, 'measured': frozen.norm}, config, step)


def check_shapes(denoiser, frozen: FrozenTokenizer, source) -> None:
    """Raises `ValueError` if data, tokenizer and denoiser do not fit each other."""
    shape = latent_shape(frozen, source)
    if shape != tuple(denoiser.latent_shape):
        raise ValueError(f'the data have latents of {shape}, denoiser.latent_shape is {denoiser.latent_shape}')
    if source.num_classes != denoiser.classes:
        raise ValueError(f'the data has {source.num_classes} classes, but denoiser.classes is {denoiser.classes}')


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save.
    train(CONFIG.value.to_dict(), WORKDIR.value)


if __name__ == '__main__':
    app.run(main)
