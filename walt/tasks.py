"""What a configuration runs, in shapes: its training step, and what is done with what it trains.

    configuration, mesh, rows  ->  Task: state, layout, step, batch, and phases such as `sample` and `decode`

Nothing is computed and no data is opened, so a task of any size is there in seconds. `costs` counts it, `pods` compiles
it for machines that are not there.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from walt import build
from walt.batches import clip_shape, latent_batch, pixel_batch
from walt.denoiser.conditions import Denoiser, abstract, bound
from walt.generation.stage import Stage
from walt.parallel.rules import batch_sharding, replicated
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.training.denoiser_step import make_denoiser_step
from walt.training.state import State, abstract_params, create, step_jit
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step


@dataclasses.dataclass(frozen=True)
class Phase:
    """Something that is done outside training: `function(*args)`, the first of which are parameters.

    `layouts` are shardings of the arguments, each a tree or one for all of its leaves.
    """

    function: Callable
    args: tuple[Any, ...]
    layouts: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """What there is to count, all of it abstract, and `new`, which makes some of it.

    Attributes:
        kind: 'tokenizer' or 'denoiser'.
        sizes: entries of the plan that come from the configuration alone.
        new: key -> (state, layout), on the devices of the mesh.
        state, layout: of training, and how it lies on the mesh.
        step: (state, frozen, batch, key) -> (state, metrics).
        frozen, frozen_layout: networks that the step reads.
        batch: of the step.
        phases: by name.
        notes: what is left out.
    """

    kind: str
    sizes: dict[str, Any]
    new: Callable[[jax.Array], tuple[State, State]]
    state: State
    layout: State
    step: Callable
    frozen: Any
    frozen_layout: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    phases: dict[str, Phase]
    notes: list[str]

    @property
    def args(self) -> tuple[Any, ...]:
        """Of the step."""
        return self.state, self.frozen, self.batch, abstract_key()

    @property
    def jit(self) -> dict[str, Any]:
        """Keyword arguments of `jax.jit` for the step."""
        return step_jit(self.layout, self.frozen_layout)


def task(
    config: Mapping[str, Any],
    mesh: AbstractMesh | Mesh,
    rows: int,
    clips: int = 1,
    tokenizer_config: Mapping[str, Any] | None = None,
) -> Task:
    """
    Args:
        rows: clips of a training step.
        clips: that a phase works on.
        tokenizer_config: of the tokenizer that a denoiser is trained on: with it the step encodes, unless the latents
            are kept, and there is a phase `decode`.

    Raises:
        ValueError: as training would, on what does not fit together.
    """
    if 'tokenizer' in config:
        build.check_keys(config, build.TOKENIZER_KEYS)
        if tokenizer_config is not None:
            raise ValueError('a tokenizer configuration beside that of a denoiser only: this one is of a tokenizer')
        return _tokenizer_task(config, mesh, rows, clips)
    build.check_keys(config, build.DENOISER_KEYS)
    return _denoiser_task(config, mesh, rows, clips, tokenizer_config)


def _tokenizer_task(config: Mapping[str, Any], mesh: AbstractMesh | Mesh, rows: int, clips: int) -> Task:
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

    state, layout = _abstract(new)

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


def _denoiser_task(
    config: Mapping[str, Any],
    mesh: AbstractMesh | Mesh,
    rows: int,
    clips: int,
    tokenizer_config: Mapping[str, Any] | None,
) -> Task:
    denoiser = build.denoiser(config['denoiser'], config['dtype'])
    denoiser.check_shards(mesh.shape['context'])
    schedule = build.schedule(config['schedule'])
    loss, sampler = build.loss(config['loss'], schedule), build.sampler(config['sampler'])
    conditioning = build.conditioning(config['conditioning'], schedule)
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    null_text = build.abstract_null_text(denoiser)

    def new(key):
        null = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), null_text)
        return create(build.init_denoiser(denoiser), optimizer, mesh, key, null, ema_decay=config['ema_decay'])

    state, layout = _abstract(new)
    stage = Stage(
        denoiser=denoiser,
        params=None,
        frozen=None,
        schedule=schedule,
        parametrisation=loss.parametrisation,
        self_conditioning=loss.self_conditioning > 0,
        mesh=mesh,
        **sampler,
    )

    def forward(params, inputs):
        z, cond = inputs['z'], {name: inputs[name] for name in denoiser.conditions if name != 'estimate'}
        return bound(denoiser, params)(z, jnp.zeros(len(z)), cond | {'estimate': z})

    z_BTHWC = jax.ShapeDtypeStruct((clips, *denoiser.latent_shape), jnp.float32)
    inputs, by_rows = abstract(denoiser.conditions, clips) | {'z': z_BTHWC}, batch_sharding(mesh)
    phases = {
        'forward': Phase(forward, (state.params, inputs), (layout.params, by_rows)),
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
    return Task(
        kind='denoiser',
        sizes={
            'latents': list(denoiser.latent_shape),
            'tokens': math.prod(denoiser.grid),
            'windows': {kind: math.prod(window) for kind, window in denoiser.windows.items()},
        },
        new=new,
        state=state,
        layout=layout,
        step=make_denoiser_step(denoiser, loss, optimizer, config['ema_decay'], conditioning, config['accumulation']),
        frozen=frozen,
        frozen_layout=frozen_layout,
        batch=batch,
        phases=phases,
        notes=notes,
    )


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


def _abstract(new: Callable[[jax.Array], tuple[State, State]]) -> tuple[State, State]:
    """(state, layout) of `new`, the state in shapes only."""
    layouts = []

    def state(key):
        made, layout = new(key)
        layouts.append(layout)
        return made

    return jax.eval_shape(state, abstract_key()), layouts[0]


def abstract_key() -> jax.ShapeDtypeStruct:
    """A key, in shapes."""
    return jax.eval_shape(lambda: jax.random.key(0))
