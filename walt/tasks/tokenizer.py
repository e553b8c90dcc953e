"""The task of a tokenizer: its step with the discriminator beside it; `encode`, `decode`, `discriminate`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from walt import build
from walt.batches import clip_shape
from walt.parallel.rules import batch_sharding, replicated
from walt.tasks.outline import Phase, Task, abstract_state
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step


def tokenizer_task(config: Mapping[str, Any], mesh: AbstractMesh | Mesh, rows: int, clips: int) -> Task:
    build.check_keys(config, build.TOKENIZER_KEYS)
    objective, notes = build.tokenizer_objective(config), []
    try:
        perceptual = build.perceptual(config['perceptual'], config['dtype'])
    except (FileNotFoundError, ModuleNotFoundError) as error:
        perceptual = None
        weights = {name: weight for name, weight in objective.weights.items() if name != 'perceptual'}
        objective = dataclasses.replace(objective, perceptual=False, weights=weights)
        notes.append(f'the perceptual network {config["perceptual"]["name"]} is not counted: {error}')
    tokenizer, clip = objective.tokenizer, clip_shape(config['data'])
    latents = tokenizer.latent_shape(*clip[:3])
    optimizer = build.optimizer(config['optimizer'], config['steps'])

    def new(key):
        return create_tokenizer_state(objective, optimizer, mesh, key, clip, config['ema_decay'])

    state, layout = abstract_state(new)

    def encode(params, video_BTHWC):
        return tokenizer.apply({'params': params}, video_BTHWC, method='encode')

    def decode(params, z_BTHWC):
        return tokenizer.apply({'params': params}, z_BTHWC, method='decode')

    def discriminate(params, video_BTHWC):
        return objective.discriminator.apply({'params': params}, video_BTHWC)

    video_BTHWC, z_BTHWC = (jax.ShapeDtypeStruct((clips, *shape), jnp.float32) for shape in (clip, latents))
    by_rows = batch_sharding(mesh)
    phases = {
        'encode': Phase(encode, (state.params, video_BTHWC), (layout.params, by_rows)),
        'decode': Phase(decode, (state.params, z_BTHWC), (layout.params, by_rows)),
    }
    if objective.discriminator:
        args, layouts = (state.adversary.params, video_BTHWC), (layout.adversary.params, by_rows)
        phases['discriminate'] = Phase(discriminate, args, layouts)
    return Task(
        kind='tokenizer',
        sizes={'clip': list(clip), 'latents': list(latents), 'tokens': math.prod(latents[:3])},
        new=new,
        state=state,
        layout=layout,
        step=make_tokenizer_step(objective, optimizer, config['ema_decay'], config['accumulation']),
        frozen=perceptual,
        frozen_layout=jax.tree.map(lambda _: replicated(mesh), perceptual),
        batch={'video': jax.ShapeDtypeStruct((rows, *clip), jnp.uint8)},
        phases=phases,
        notes=notes,
    )
