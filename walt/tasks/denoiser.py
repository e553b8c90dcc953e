"""The task of a denoiser: its step; `forward`, one pass; `sample`, all passes; and `decode`, with a tokenizer.

Of packed rows, batches and phases are counted in rows.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from walt import build
from walt.batches import clip_shape, latent_batch, pixel_batch
from walt.denoiser.conditions import Denoiser, abstract, bound
from walt.denoiser.packed import PackedDenoiser
from walt.dense_or_packed import stage_of, way_of
from walt.generation.packed_stage import PackedStage
from walt.generation.stage import Stage
from walt.parallel.rules import batch_sharding, replicated
from walt.tasks.outline import Phase, Task, abstract_key, abstract_state
from walt.tokenizer.frozen import NO_TOKENIZER, FrozenTokenizer, LatentNorm, Pixels
from walt.training.state import State, abstract_params, create


def denoiser_task(
    config: Mapping[str, Any],
    mesh: AbstractMesh | Mesh,
    rows: int,
    clips: int,
    tokenizer_config: Mapping[str, Any] | None,
) -> Task:
    """Arguments and errors as `walt.tasks.task`."""
    build.check_keys(config, build.DENOISER_KEYS)
    denoiser = build.denoiser(config['denoiser'], config['dtype'])
    denoiser.check_shards(mesh.shape['context'])
    schedule = build.schedule(config['schedule'])
    loss, conditioning = build.loss(config['loss'], schedule), build.conditioning(config['conditioning'], schedule)
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    null_text = build.abstract_null_text(denoiser)

    def new(key):
        null = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), null_text)
        return create(build.init_denoiser(denoiser), optimizer, mesh, key, null, ema_decay=config['ema_decay'])

    state, layout = abstract_state(new)
    make_step = way_of(denoiser).make_step
    step = make_step(denoiser, loss, optimizer, config['ema_decay'], conditioning, config['accumulation'])
    stage = stage_of(denoiser, None, None, schedule, loss, config['sampler'], mesh)
    fields = _packed if isinstance(denoiser, PackedDenoiser) else _dense
    return Task(
        kind='denoiser',
        new=new,
        state=state,
        layout=layout,
        step=step,
        **fields(config, stage, state, layout, rows, clips, tokenizer_config),
    )


def _dense(
    config: Mapping[str, Any],
    stage: Stage,
    state: State,
    layout: State,
    rows: int,
    clips: int,
    tokenizer_config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The other fields of the task."""
    denoiser, mesh, by_rows = stage.denoiser, stage.mesh, batch_sharding(stage.mesh)
    z_BTHWC = jax.ShapeDtypeStruct((clips, *denoiser.latent_shape), jnp.float32)
    inputs, null_text = abstract(denoiser.conditions, clips) | {'z': z_BTHWC}, build.abstract_null_text(denoiser)
    phases = {
        'forward': Phase(_forward(denoiser), (state.params, inputs), (layout.params, by_rows)),
        'sample': Phase(
            stage.sample_latents,
            (state.params, null_text, stage.abstract_rows(clips)),
            (layout.params, replicated(mesh), by_rows),
        ),
    }
    batch = latent_batch(denoiser, rows, config['data'].get('stacks', 1))
    frozen = frozen_layout = None
    if tokenizer_config is None:
        where = '' if config['cache_latents'] else ' and encodes every batch'
        notes = [f'the tokenizer is not counted: tokenizer_dir names it{where}; `sample` ends at latents']
    else:
        tokenizer, tokenizer_layout = _frozen(tokenizer_config, mesh)
        _check_tokenizer(denoiser, tokenizer, config['data'])
        phases['decode'] = Phase(FrozenTokenizer.decode, (tokenizer, z_BTHWC), (tokenizer_layout, by_rows))
        notes = ['latents are kept: no step encodes'] if config['cache_latents'] else []
        if not config['cache_latents']:
            frozen, frozen_layout = tokenizer, tokenizer_layout
            batch = pixel_batch(batch, clip_shape(config['data']))
    if 'text' in denoiser.conditions:
        notes.append('the text encoder is not counted: it runs before the step')
    return {
        'sizes': {
            'latents': list(denoiser.latent_shape),
            'tokens': math.prod(denoiser.grid),
            'windows': {kind: math.prod(window) for kind, window in denoiser.windows.items()},
        },
        'frozen': frozen,
        'frozen_layout': frozen_layout,
        'batch': batch,
        'phases': phases,
        'notes': notes,
    }


def _packed(
    config: Mapping[str, Any],
    stage: PackedStage,
    state: State,
    layout: State,
    rows: int,
    clips: int,
    tokenizer_config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The other fields of the task; rows and clips are packed rows."""
    if tokenizer_config is not None:
        raise ValueError('packed rows are of pixels or of latents on disk: no step encodes, so no tokenizer is counted')
    denoiser, by_rows, whole = stage.denoiser, batch_sharding(stage.mesh), replicated(stage.mesh)
    pixels, told = config['tokenizer_dir'] == NO_TOKENIZER, stage.abstract_rows(clips)
    inputs = told | {'z': jax.ShapeDtypeStruct((clips, *denoiser.latent_shape), jnp.float32)}
    tokens = jax.ShapeDtypeStruct((rows, *denoiser.latent_shape), jnp.uint8 if pixels else jnp.float32)
    return {
        'sizes': {'tokens': denoiser.length, 'clips': denoiser.most},
        'frozen': Pixels() if pixels else None,
        'frozen_layout': Pixels() if pixels else None,
        'batch': stage.abstract_rows(rows) | {'tokens': tokens},
        'phases': {
            'forward': Phase(_forward(denoiser), (state.params, inputs), (layout.params, by_rows)),
            'sample': Phase(
                stage.sample_latents, (state.params, told, abstract_key()), (layout.params, by_rows, whole)
            ),
        },
        'notes': ['clips, batch_size and rows are packed rows; `sample` ends at tokens'],
    }


def _forward(denoiser: Denoiser) -> Callable:
    """(params, conditions and `z`) -> prediction."""

    def forward(params, inputs):
        z, cond = inputs['z'], {name: inputs[name] for name in denoiser.conditions if name != 'estimate'}
        return bound(denoiser, params)(z, jnp.zeros(len(z)), cond | {'estimate': z})

    return forward


def _frozen(config: Mapping[str, Any], mesh: AbstractMesh | Mesh) -> tuple[FrozenTokenizer, FrozenTokenizer]:
    """A trained tokenizer and its layout."""
    build.check_keys(config, build.TOKENIZER_KEYS)
    module = build.tokenizer(config['tokenizer'], config['dtype'])
    placed = abstract_params(build.init_tokenizer(module, clip_shape(config['data'])), mesh)
    norm = jax.eval_shape(lambda: LatentNorm.identity(module.latent_channels))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), placed)
    layout = jax.tree.map(lambda leaf: leaf.sharding, placed)
    whole = jax.tree.map(lambda _: replicated(mesh), norm)
    return FrozenTokenizer(module, shapes, norm), FrozenTokenizer(module, layout, whole)


def _check_tokenizer(denoiser: Denoiser, frozen: FrozenTokenizer, section: Mapping[str, Any]) -> None:
    clip = clip_shape(section)
    latents = tuple(frozen.module.latent_shape(*clip[:3]))
    if latents != tuple(denoiser.latent_shape):
        raise ValueError(
            f'the tokenizer makes latents of {latents} of clips of {clip}, denoiser.latent_shape is '
            f'{tuple(denoiser.latent_shape)}'
        )
