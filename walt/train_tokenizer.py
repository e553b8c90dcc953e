"""Trains a tokenizer.

python -m walt.train_tokenizer --config=configs/quickstart_tokenizer.py --workdir=runs/tokenizer [--config.batch_size=8]

Started again on the same workdir, it goes on from the newest checkpoint.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from walt import build
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate, batch_sharding, replicated
from walt.parallel.shard import put_batch
from walt.randomness import stream
from walt.tokenizer.frozen import LatentNorm
from walt.tokenizer.losses import check_weights
from walt.tokenizer.pixels import from_uint8
from walt.training.checkpoints import claim_workdir
from walt.training.feed import process_batches
from walt.training.loop import fit
from walt.training.state import State, create
from walt.training.tokenizer_step import make_tokenizer_step

CONFIG = build.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, configuration.', required=True)


def train(config: Mapping[str, Any], workdir: str) -> State:
    """Trains to `config['steps']` and returns the last state. Errors of the configuration come before training."""
    build.check_keys(config, build.TOKENIZER_KEYS)
    check_weights(config['losses'])
    mesh = make_mesh(**config['mesh'])
    check_batch(mesh, config['batch_size'])
    tokenizer = build.tokenizer(config['tokenizer'], config['dtype'])
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    source, held_out = (build.source(config['data'], split) for split in ('train', 'validation'))
    video_shape = source[0]['video'].shape
    tokenizer.latent_shape(*video_shape[:3])
    claim_workdir(workdir, config)

    rows = functools.partial(process_batches, batch_size=config['batch_size'], keys=('video',), seed=config['seed'])
    init = build.init_tokenizer(tokenizer, video_shape)
    measured = LatentNorm.identity(tokenizer.latent_channels)
    state, layout = create(init, optimizer, mesh, stream(jax.random.key(config['seed']), 'init'), measured)
    whole, by_rows = replicated(mesh), batch_sharding(mesh)
    step = jax.jit(
        make_tokenizer_step(tokenizer, config['losses'], optimizer, config['ema_decay']),
        in_shardings=(layout, by_rows, whole),
        out_shardings=(layout, whole),
        donate_argnums=0,
    )

    @jax.jit
    def held_out_psnr(params, video_BTHWC):
        video_BTHWC = from_uint8(video_BTHWC)
        reconstruction_BTHWC, _ = tokenizer.apply({'params': params}, video_BTHWC)
        mse_B = jnp.square(jnp.clip(reconstruction_BTHWC, 0, 1) - video_BTHWC).mean((1, 2, 3, 4))
        return -10 * jnp.log10(mse_B).mean()

    @jax.jit
    def encode(params, video_BTHWC):
        return tokenizer.apply({'params': params}, from_uint8(video_BTHWC), method='encode')

    def some(source, count: int):
        for batch in itertools.islice(rows(source), count):
            yield put_batch(mesh, batch)['video']

    def validate(state: State):
        return {
            'psnr': np.mean([held_out_psnr(state.ema, video) for video in some(held_out, config['validation_batches'])])
        }

    def measure_latents(state: State) -> State:
        latents = (encode(state.ema, video) for video in some(source, config['latent_norm_batches']))
        return state.replace(measured=jax.device_put(LatentNorm.measure(latents), whole))

    with activate(mesh):
        return fit(
            step,
            state,
            iter(rows(source)),
            workdir=workdir,
            config=config,
            put_batch=functools.partial(put_batch, mesh),
            validate=validate,
            before_save=measure_latents,
        )


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save.
    train(CONFIG.value.to_dict(), WORKDIR.value)


if __name__ == '__main__':
    app.run(main)
