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
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from walt import build
from walt.denoiser.conditions import NullText
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate, batch_sharding, replicated
from walt.parallel.shard import put_batch
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer
from walt.training.checkpoints import claim_workdir, latest_step, save_ema
from walt.training.denoiser_step import make_denoiser_step, make_validation_loss
from walt.training.feed import Texts, process_batches
from walt.training.latents import encoded
from walt.training.loop import fit
from walt.training.state import State, create

CONFIG = build.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, configuration.', required=True)


def train(config: Mapping[str, Any], workdir: str) -> State:
    """Trains to `config['steps']` and returns the last state. Errors of the configuration come before training."""
    build.check_keys(config, build.DENOISER_KEYS)
    mesh = make_mesh(**config['mesh'])
    check_batch(mesh, config['batch_size'])
    schedule = build.schedule(config['schedule'])
    loss, conditioning = build.loss(config['loss'], schedule), build.conditioning(config['conditioning'], schedule)
    build.sampler(config['sampler'])
    denoiser = build.denoiser(config['denoiser'], config['dtype'])
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    step = make_denoiser_step(denoiser, loss, optimizer, config['ema_decay'], conditioning)
    text_encoder = build.text_encoder(config['text'])
    source, held_out = (build.source(config['data'], split) for split in ('train', 'validation'))
    frozen, copy = find_tokenizer(config['tokenizer_dir'], workdir, mesh)
    check_shapes(denoiser, frozen, source, text_encoder)
    check_given(denoiser, conditioning)
    if config['cache_latents']:
        check_cached(denoiser)
    key = jax.random.key(config['seed'])
    state, layout = create(
        build.init_denoiser(denoiser),
        optimizer,
        mesh,
        stream(key, 'init'),
        null_text_of(text_encoder),
        ema_decay=config['ema_decay'],
    )
    if latest_step(workdir) is None:
        state = state.starting_from(build.starting_denoiser(config['start'], denoiser, state.params, mesh))
    claim_workdir(workdir, config)
    copy()

    if config['cache_latents']:
        source = encoded(frozen, source, config['batch_size'], f'{workdir}/latents/train')
        needed = config['batch_size'] * config['validation_batches']
        held_out = encoded(frozen, held_out, config['batch_size'], f'{workdir}/latents/validation', needed)
    rows = functools.partial(
        process_batches, batch_size=config['batch_size'], keys=batch_keys(denoiser, source), seed=config['seed']
    )
    with_texts = Texts(text_encoder.encode) if text_encoder else dict

    def put(batch):
        return put_batch(mesh, with_texts(batch))

    whole, by_rows = replicated(mesh), batch_sharding(mesh)
    step = jax.jit(
        step,
        in_shardings=(layout, None, by_rows, whole),
        out_shardings=(layout, whole),
        donate_argnums=0,
    )
    held_out_loss = jax.jit(make_validation_loss(denoiser, loss, conditioning))

    def validate(state: State):
        """The same clips, times and noise at every call."""
        some = itertools.islice(rows(held_out), config['validation_batches'])
        losses = [
            held_out_loss(state.ema, frozen, put(batch), stream(key, 'validation', number))
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
            put_batch=put,
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


def null_text_of(text_encoder) -> NullText | None:
    """The embedding of the empty string, or None without texts."""
    if text_encoder is None:
        return None
    text_1SE, mask_1S = text_encoder.encode([''])
    return NullText(jnp.asarray(text_1SE[0], jnp.float32), jnp.asarray(mask_1S[0]))


def batch_keys(denoiser, source) -> list[str]:
    """What of the source's elements a batch has: all that the denoiser has a use for."""
    useful = {'z', 'low'} if 'z' in source[0] else {'video'}
    useful |= {'label'} if denoiser.classes else set()
    useful |= {'caption', 'text', 'text_mask'} if denoiser.text_shape else set()
    useful |= {f'images_{name}' for name in useful} | {'images'} if denoiser.images else set()
    return [name for name in source[0] if name in useful]


def check_shapes(denoiser, frozen: FrozenTokenizer, source, text_encoder) -> None:
    """Raises `ValueError` if data, tokenizer, text encoder and denoiser do not fit each other."""
    element = source[0]
    video_shape = element['video'].shape
    latent_shape = frozen.module.latent_shape(*video_shape[:3])
    if latent_shape != tuple(denoiser.latent_shape):
        raise ValueError(
            f'clips of {video_shape} have latents of {latent_shape}, denoiser.latent_shape is {denoiser.latent_shape}'
        )
    if denoiser.classes and denoiser.classes != source.num_classes:
        raise ValueError(f'the data has {source.num_classes} classes, but denoiser.classes is {denoiser.classes}')
    text_shape = (text_encoder.length, text_encoder.width) if text_encoder else ()
    if text_shape != tuple(denoiser.text_shape):
        raise ValueError(f'texts are embedded as {text_shape}, denoiser.text_shape is {tuple(denoiser.text_shape)}')
    uses = {'label': denoiser.classes, 'caption': denoiser.text_shape}
    needed = [name for name, used in uses.items() if used]
    needed += ['images', *(f'images_{name}' for name in needed)] if denoiser.images else []
    missing = [name for name in needed if name not in element]
    if missing:
        raise ValueError(f'the denoiser needs {missing} of the data, whose elements have {sorted(element)}')
    if denoiser.images and element['images'].shape[1] != latent_shape[0]:
        raise ValueError(
            f'stacks of {element["images"].shape[1]} pictures beside clips of {latent_shape[0]} latent frames'
        )


def check_given(denoiser, conditioning) -> None:
    """Raises `ValueError` if all frames of a clip may be given, which leaves nothing to predict."""
    most, frames = max(conditioning.given_frames), denoiser.latent_shape[0]
    if denoiser.frame_prediction and most >= frames:
        raise ValueError(f'conditioning.given_frames go up to {most}, and a clip has {frames} latent frames')


def check_cached(denoiser) -> None:
    """Raises `ValueError` if the denoiser needs more of the data than `cache_latents` keeps."""
    uses = {'texts': denoiser.text_shape, 'pictures': denoiser.images, 'low-resolution clips': denoiser.upsample > 1}
    needed = [name for name, used in uses.items() if used]
    if needed:
        raise ValueError(f'cache_latents keeps latents and labels, but the denoiser needs {needed} as well')


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save.
    train(CONFIG.value.to_dict(), WORKDIR.value)


if __name__ == '__main__':
    app.run(main)
