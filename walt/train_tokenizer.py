"""Trains a tokenizer.

python -m walt.train_tokenizer --config=configs/quickstart_tokenizer.py --workdir=runs/tokenizer [--config.batch_size=8]

Started again on the same workdir, it goes on from the newest checkpoint. As one program of several processes it takes
the flags of `walt/processes.py`.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
from absl import app, flags, logging

from walt import build, restore
from walt.parallel.distributed import first_process
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate, replicated
from walt.parallel.shard import put_batch
from walt.processes import processes_flags
from walt.randomness import stream
from walt.tokenizer.frozen import LatentNorm
from walt.tokenizer.objective import Objective
from walt.tokenizer.pixels import check_brightness, from_uint8
from walt.training.checkpoints import claim_workdir, latest_step
from walt.training.feed import process_batches
from walt.training.loop import fit
from walt.training.profile import parse_steps
from walt.training.state import State, step_jit
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step
from walt.training.tokenizer_validation import make_tokenizer_validation

CONFIG = build.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, configuration.', required=True)
PROFILE = flags.DEFINE_string('profile', '', 'START:STOP traces these steps, counted from 1, into WORKDIR/profile.')
join_processes = processes_flags()


def train(config: Mapping[str, Any], workdir: str, profile: range = range(0)) -> State:
    """Trains to `config['steps']` and returns the last state; traces the steps of `profile`.

    Errors of the configuration come before training.
    """
    build.check_keys(config, build.TOKENIZER_KEYS)
    mesh = make_mesh(**config['mesh'])
    check_batch(mesh, config['batch_size'], config['accumulation'])
    objective = build.tokenizer_objective(config)
    tokenizer = objective.tokenizer
    perceptual = build.perceptual(config['perceptual'], config['dtype'])
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    source, held_out = (build.source(config['data'], split) for split in ('train', 'validation'))
    video_shape = source[0]['video'].shape
    tokenizer.latent_shape(*video_shape[:3])
    rows = functools.partial(
        process_batches, mesh=mesh, batch_size=config['batch_size'], keys=('video',), seed=config['seed']
    )
    check_brightness(next(iter(rows(source)))['video'])
    key = stream(jax.random.key(config['seed']), 'init')
    state, layout = create_tokenizer_state(objective, optimizer, mesh, key, video_shape, config['ema_decay'])
    norm, begins = None, latest_step(workdir) is None
    if config['start']['tokenizer_dir'] and begins:
        params, norm = restore.starting_tokenizer(config['start']['tokenizer_dir'], tokenizer, state.params, mesh)
        state = state.starting_from(params)
    claim_workdir(workdir, config)
    if first_process():
        print(describe(objective, config))

    step = make_tokenizer_step(objective, optimizer, config['ema_decay'], config['accumulation'])
    step = jax.jit(step, **step_jit(layout))
    examine = make_tokenizer_validation(tokenizer)

    @jax.jit
    def encode(params, video_BTHWC):
        return tokenizer.apply({'params': params}, from_uint8(video_BTHWC), method='encode')

    def some(source, count: int):
        for batch in itertools.islice(rows(source), count):
            yield put_batch(mesh, batch)['video']

    def validate(state: State):
        return examine(state.ema, perceptual, some(held_out, config['validation_batches']))

    def measure_latents(state: State) -> State:
        latents = (encode(state.ema, video) for video in some(source, config['latent_norm_batches']))
        return state.replace(measured=jax.device_put(LatentNorm.measure(latents), replicated(mesh)))

    with activate(mesh):
        # A frozen encoder's latents stay what they are, normalised as well: for denoisers that were trained on them.
        if objective.freeze_encoder and begins:
            state = measure_latents(state) if norm is None else state.replace(measured=norm)
        return fit(
            lambda state, batch, key: step(state, perceptual, batch, key),
            state,
            lambda start: iter(rows(source, start=start)),
            workdir=workdir,
            config=config,
            put_batch=functools.partial(put_batch, mesh),
            validate=validate,
            before_save=(lambda state: state) if objective.freeze_encoder else measure_latents,
            profile=profile,
        )


def describe(objective: Objective, config: Mapping[str, Any]) -> str:
    """What this run minimises, also what is off."""
    start = config['start']['tokenizer_dir'] or 'new parameters'
    lines = {
        'bottleneck': type(objective.tokenizer.bottleneck).__name__.lower(),
        'perceptual loss': config['perceptual']['name'] if objective.perceptual else 'off',
        'adversarial loss': config['discriminator']['name'] if objective.discriminator else 'off',
        'weights': ', '.join(f'{name} {weight:g}' for name, weight in objective.weights.items()),
        'starts from': start + (', encoder frozen' if objective.freeze_encoder else ''),
    }
    return '\n'.join(f'{name:>18}: {value}' for name, value in lines.items())


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save.
    profile = parse_steps(PROFILE.value)
    join_processes()
    train(CONFIG.value.to_dict(), WORKDIR.value, profile)


if __name__ == '__main__':
    app.run(main)
