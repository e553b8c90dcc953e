"""Trains a W.A.L.T denoiser on the latents of a trained tokenizer.

python -m walt.train_denoiser --config=configs/quickstart_denoiser.py --workdir=runs/denoiser \
    --config.tokenizer_dir=runs/tokenizer

The tokenizer is copied into the workdir, which is then all that sampling needs. Started again on the same workdir, it
goes on from the newest checkpoint. As one program of several processes it takes the flags of `walt/processes.py`.
"""

import functools
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from walt import build, restore
from walt.data.encoded import Encoded
from walt.denoiser.conditions import NullText
from walt.dense_or_packed import way_of
from walt.parallel.distributed import fetch
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate
from walt.parallel.shard import put_batch
from walt.processes import processes_flags
from walt.randomness import stream
from walt.text.encoder import TextEncoder
from walt.tokenizer.frozen import NO_TOKENIZER, FrozenTokenizer, Pixels
from walt.training.checkpoints import claim_workdir, latest_step, save_ema
from walt.training.compatibility import check_given
from walt.training.conditions import to_latents
from walt.training.feed import Texts, process_batches
from walt.training.latents import encoded
from walt.training.loop import fit
from walt.training.profile import parse_steps
from walt.training.state import State, create, step_jit

CONFIG = build.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, configuration.', required=True)
PROFILE = flags.DEFINE_string('profile', '', 'START:STOP traces these steps, counted from 1, into WORKDIR/profile.')
join_processes = processes_flags()


def train(config: Mapping[str, Any], workdir: str, profile: range = range(0)) -> State:
    """Trains to `config['steps']` and returns the last state; traces the steps of `profile`.

    Errors of the configuration come before training.
    """
    build.check_keys(config, build.DENOISER_KEYS)
    mesh = make_mesh(**config['mesh'])
    check_batch(mesh, config['batch_size'], config['accumulation'])
    schedule = build.schedule(config['schedule'])
    loss, conditioning = build.loss(config['loss'], schedule), build.conditioning(config['conditioning'], schedule)
    denoiser = build.denoiser(config['denoiser'], config['dtype'])
    way = way_of(denoiser)
    way.sampler(config['sampler'])  # A run that could not be sampled is refused now.
    if config['cache_latents'] and not way.keeps_latents:
        raise ValueError('cache_latents is on, but packed rows are made of what `python -m walt.encode` wrote')
    denoiser.check_shards(mesh.shape['context'])
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    step = way.make_step(denoiser, loss, optimizer, config['ema_decay'], conditioning, config['accumulation'])
    source, held_out = (build.source(config['data'], split) for split in ('train', 'validation'))
    text_encoder, null_text = text_of(config['text'], source)
    frozen, copy = find_tokenizer(config['tokenizer_dir'], workdir, mesh)
    way.check(denoiser, frozen, source, null_text)
    check_given(denoiser, conditioning)
    key = jax.random.key(config['seed'])
    state, layout = create(
        build.init_denoiser(denoiser),
        optimizer,
        mesh,
        stream(key, 'init'),
        null_text,
        ema_decay=config['ema_decay'],
    )
    if latest_step(workdir) is None:
        state = state.starting_from(restore.starting_denoiser(config['start'], denoiser, state.params, mesh))
    claim_workdir(workdir, config)
    copy()

    if config['cache_latents'] and not isinstance(source, Encoded):
        once = functools.partial(
            encoded,
            f'{workdir}/latents',
            frozen=frozen,
            encode=functools.partial(to_latents, denoiser=denoiser),
            origin={'data': config['data'], 'tokenizer': {'checkpoint': restore.own_tokenizer(workdir)}},
            mesh=mesh,
            batch_size=config['batch_size'],
        )
        source = once('train', source=source)
        held_out = once('validation', source=held_out, clips=config['batch_size'] * config['validation_batches'])
    rows = functools.partial(
        process_batches,
        mesh=mesh,
        batch_size=config['batch_size'],
        keys=way.keys(denoiser, source),
        seed=config['seed'],
        **way.order,
    )
    with_texts = Texts(text_encoder.encode) if text_encoder else dict

    def put(batch):
        return put_batch(mesh, with_texts(batch))

    step = jax.jit(step, **step_jit(layout))
    held_out_loss = jax.jit(way.make_validation_loss(denoiser, loss, conditioning))

    def validate(state: State):
        """The same clips, times and noise at every call."""
        some = itertools.islice(rows(held_out), config['validation_batches'])
        losses = [
            held_out_loss(state.ema, frozen, put(batch), stream(key, 'validation', number))
            for number, batch in enumerate(some)
        ]
        return {'loss': np.mean(fetch(losses))}

    with activate(mesh):
        return fit(
            lambda state, batch, key: step(state, frozen, batch, key),
            state,
            lambda start: iter(rows(source, start=start)),
            workdir=workdir,
            config=config,
            put_batch=put,
            validate=validate,
            profile=profile,
        )


def find_tokenizer(tokenizer_dir: str, workdir: str, mesh: Mesh) -> tuple[FrozenTokenizer | Pixels, Callable[[], None]]:
    """The run's own copy of the tokenizer, or else the one in `tokenizer_dir` with what copies it into the workdir.

    A `tokenizer_dir` of 'none' is a denoiser of pixels.
    """
    if tokenizer_dir == NO_TOKENIZER:
        return Pixels(), lambda: None
    own = restore.own_tokenizer(workdir)
    if latest_step(own) is not None:
        return restore.tokenizer(own, mesh)[0], lambda: None
    if not tokenizer_dir:
        raise ValueError('config.tokenizer_dir is empty: give the workdir of a trained tokenizer')
    frozen, config, step = restore.tokenizer(tokenizer_dir, mesh)
    return frozen, lambda: save_ema(own, {'params': frozen.params, 'measured': frozen.norm}, config, step)


def text_of(section: Mapping[str, Any], source) -> tuple[TextEncoder | None, NullText | None]:
    """What encodes captions while training, and the null text; each None where there is no need for it.

    Raises:
        ValueError: if the data hold texts of another encoder than the configuration's, naming both.
    """
    if isinstance(source, Encoded) and 'text' in source.manifest:
        there, here = source.manifest['text'], json.loads(json.dumps(section))
        if there != here:
            raise ValueError(f'{source.folder} holds texts that {there} encoded, config.text is {here}')
        null = source.null_text()
        return None, NullText(jnp.asarray(null['text'], jnp.float32), jnp.asarray(null['text_mask']))
    encoder = build.text_encoder(section)
    if encoder is None:
        return None, None
    text_1SE, mask_1S = encoder.encode([''])
    return encoder, NullText(jnp.asarray(text_1SE[0], jnp.float32), jnp.asarray(mask_1S[0]))


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save.
    profile = parse_steps(PROFILE.value)
    join_processes()
    train(CONFIG.value.to_dict(), WORKDIR.value, profile)


if __name__ == '__main__':
    app.run(main)
