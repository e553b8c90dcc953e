"""Says what a configuration costs before any machine is rented: parameters, tokens, FLOPs, memory.

python -m walt.plan --config=configs/quickstart_tokenizer.py [--config.batch_size=8] [--devices=8] [--json]

Everything comes from shapes: nothing is computed, no data is opened, no accelerator is taken. `--json` prints one
object:

    task          'tokenizer' or 'denoiser'
    clip          [frames, height, width, channels] in pixels; of a tokenizer only
    latents       [frames, height, width, channels]
    tokens        of a clip: what the denoiser sees; for a tokenizer, the places of its latents
    windows       tokens in a window, by kind; of a denoiser only
    steps, batch_size, devices, mesh, rows      of the run: `mesh` is devices by axis, `rows` the clips on each device
    parameters    `total`, and every part of the tree by its path; a discriminator's come after it and are not in it
    flops         of a clip: `encode`, `decode`, `discriminate`, or `forward`, one pass of the denoiser, and `sample`,
                  all of the sampler's; `training`, its share of a step, with the pictures beside it; and of the whole
                  run, `run`
    memory        bytes on one device by phase: `total`, and what it is the sum of. `training`: parameters, average,
                  optimizer, adversary, frozen (a feature network), measured, batch, working; and for one clip, with
                  the names of `flops`: parameters, batch, working
    notes         what is not in these figures

FLOPs are those of products and convolutions (`planning/flops.py`), also of what is computed again for the backward
pass. `working` is what activations and gradients take at their greatest; `planning/memory.py` says how near that comes.
On a mesh, state is split as the mesh says, `working` is that of a device's rows with whole parameters.
"""

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.sharding import AbstractMesh

from walt import build
from walt.denoiser.conditions import abstract
from walt.denoiser.walt import Walt
from walt.generation.stage import Stage
from walt.parallel.mesh import BATCH_AXES, abstract_mesh, check_batch
from walt.planning.flops import flops
from walt.planning.memory import peak_bytes, tree_bytes
from walt.planning.program import Program, program
from walt.planning.report import byte_text, flop_text, million_text, parts, table
from walt.training.denoiser_step import make_denoiser_step
from walt.training.state import State, create
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step

CONFIG = build.config_flag()
DEVICES = flags.DEFINE_integer('devices', None, 'Devices of the mesh; the fewest it takes by default.', lower_bound=1)
JSON = flags.DEFINE_bool('json', False, 'Prints one JSON object instead of a table.')

# Sources whose clips are of one frame, which no key says.
_IMAGES = {'image_folder'}


@dataclasses.dataclass(frozen=True)
class Task:
    """What there is to count, all of it abstract.

    Attributes:
        sizes: entries of the plan that come from the configuration alone.
        state, layout: of training, and how it lies on the mesh.
        step: (state, frozen, batch, key) -> (state, metrics).
        frozen: networks that the step reads.
        batch: of one device.
        phases: (function, params, inputs) of what is done to one clip outside training, by name.
        notes: what is left out.
    """

    sizes: dict[str, Any]
    state: State
    layout: State
    step: Callable
    frozen: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    phases: dict[str, tuple[Callable, Any, Any]]
    notes: list[str]


def plan(config: Mapping[str, Any], devices: int | None = None) -> dict[str, Any]:
    """The plan of a configuration, with the keys of the module's docstring.

    Args:
        devices: of the mesh; None takes the fewest, one along an axis of -1.

    Raises:
        ValueError: as training would, on what does not fit together.
    """
    of_tokenizer = 'tokenizer' in config
    build.check_keys(config, build.TOKENIZER_KEYS if of_tokenizer else build.DENOISER_KEYS)
    mesh = abstract_mesh(devices, **config['mesh'])
    check_batch(mesh, config['batch_size'], config['accumulation'])
    rows = config['batch_size'] // math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    task = (tokenizer_task if of_tokenizer else denoiser_task)(config, mesh, rows)
    training = program(task.step, task.state, task.frozen, task.batch, _key())
    phases = {name: program(*called) for name, called in task.phases.items()}
    of_clip = flops(training) / rows
    return {
        **task.sizes,
        'steps': config['steps'],
        'batch_size': config['batch_size'],
        'devices': mesh.size,
        'mesh': dict(mesh.shape),
        'rows': rows,
        'parameters': _parameters(task),
        'flops': {name: flops(phase) for name, phase in phases.items()}
        | {'training': of_clip, 'run': of_clip * config['batch_size'] * config['steps']},
        'memory': _memory(task, training, phases),
        'notes': task.notes,
    }


def tokenizer_task(config: Mapping[str, Any], mesh: AbstractMesh, rows: int) -> Task:
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
    state, layout = _abstract(
        lambda key: create_tokenizer_state(objective, optimizer, mesh, key, clip, config['ema_decay'])
    )

    def encode(params, video_BTHWC):
        return tokenizer.apply({'params': params}, video_BTHWC, method='encode')

    def decode(params, z_BTHWC):
        return tokenizer.apply({'params': params}, z_BTHWC, method='decode')

    def discriminate(params, video_BTHWC):
        return objective.discriminator.apply({'params': params}, video_BTHWC)

    video_BTHWC, z_BTHWC = (jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in (clip, latents))
    phases = {'encode': (encode, state.params, video_BTHWC), 'decode': (decode, state.params, z_BTHWC)}
    if objective.discriminator:
        phases['discriminate'] = (discriminate, state.adversary.params, video_BTHWC)
    return Task(
        sizes={'task': 'tokenizer', 'clip': list(clip), 'latents': list(latents), 'tokens': math.prod(latents[:3])},
        state=state,
        layout=layout,
        step=make_tokenizer_step(objective, optimizer, config['ema_decay'], config['accumulation']),
        frozen=perceptual,
        batch={'video': jax.ShapeDtypeStruct((rows, *clip), jnp.uint8)},
        phases=phases,
        notes=notes,
    )


def denoiser_task(config: Mapping[str, Any], mesh: AbstractMesh, rows: int) -> Task:
    denoiser = build.denoiser(config['denoiser'], config['dtype'])
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
        return denoiser.apply({'params': params}, z, jnp.zeros(len(z)), cond | {'estimate': z})

    def sample_latents(params, inputs):
        null = inputs.pop('null_text', None)
        return stage.sample_latents(params, null, inputs)

    z_1THWC = jax.ShapeDtypeStruct((1, *denoiser.latent_shape), jnp.float32)
    to_sample = stage.abstract_rows(1) | ({'null_text': null_text} if null_text else {})
    where = '' if config['cache_latents'] else ' and encodes every batch'
    return Task(
        sizes={
            'task': 'denoiser',
            'latents': list(denoiser.latent_shape),
            'tokens': math.prod(denoiser.grid),
            'windows': dict(zip(('spatial', 'spatiotemporal'), map(math.prod, denoiser.windows))),
        },
        state=state,
        layout=layout,
        step=make_denoiser_step(denoiser, loss, optimizer, config['ema_decay'], conditioning, config['accumulation']),
        frozen=None,
        batch=latent_batch(denoiser, rows, config['data'].get('stacks', 1)),
        phases={
            'forward': (forward, state.params, abstract(denoiser.conditions, 1) | {'z': z_1THWC}),
            'sample': (sample_latents, state.params, to_sample),
        },
        notes=[f'the tokenizer is not counted: tokenizer_dir names it{where}; `sample` ends at latents'],
    )


def latent_batch(denoiser: Walt, rows: int, stacks: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of latents, in shapes: what `training.conditions.latent_rows` takes, with `stacks` for every clip."""
    shape = tuple(denoiser.latent_shape)
    of_row = {name: denoiser.conditions[name] for name in ('label', 'text', 'text_mask') if name in denoiser.conditions}
    of_clip = {name: shape[1:] if denoiser.images else shape for name, shape in of_row.items()} | {'z': shape}
    if denoiser.upsample > 1:
        of_clip['low'] = denoiser.conditions['low']
    batch = abstract(of_clip, rows)
    if denoiser.images:
        wide = {name: of_clip[name] for name in ('z', 'low') if name in of_clip}
        of_stack = {name: (stacks, *shape) for name, shape in (of_row | wide).items()}
        batch |= {f'images_{name}': leaf for name, leaf in abstract(of_stack, rows).items()}
    return batch


def clip_shape(section: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(frames, height, width, channels) of the clips of a section `data`, which is not opened.

    Raises:
        ValueError: on an unknown source, or if neither the section nor the source's defaults say frames and size.
    """
    section = build.clips_section(section)
    name = section.get('name')
    if name not in build.SOURCES:
        raise ValueError(f'unknown data {name!r}; choices: {sorted(build.SOURCES | build.SOURCES_OF_SOURCES)}')
    fields = inspect.signature(build.SOURCES[name]).parameters.values()
    values = {field.name: field.default for field in fields if field.default is not inspect.Parameter.empty}
    values |= section | ({'frames': 1} if name in _IMAGES else {})
    missing = sorted({'frames', 'size'} - set(values))
    if missing:
        raise ValueError(f'the shape of a clip of data {name!r} needs {missing}, it has {sorted(values)}')
    height, width = (values['size'],) * 2 if isinstance(values['size'], int) else values['size']
    return values['frames'], height, width, 3


def _abstract(new: Callable[[jax.Array], tuple[State, State]]) -> tuple[State, State]:
    """(state, layout) of `new`, the state in shapes only."""
    layouts = []

    def state(key):
        made, layout = new(key)
        layouts.append(layout)
        return made

    return jax.eval_shape(state, _key()), layouts[0]


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _parameters(task: Task) -> dict[str, int]:
    state = task.state
    depth = 2 if task.sizes['task'] == 'tokenizer' else 3  # A level of the network; a part of a layer.
    counts = {'total': sum(leaf.size for leaf in jax.tree.leaves(state.params)), **parts(state.params, depth)}
    return counts | (parts({'discriminator': state.adversary.params}, depth) if state.adversary else {})


def _memory(task: Task, training: Program, phases: Mapping[str, Program]) -> dict[str, dict[str, int]]:
    state, layout = task.state, task.layout
    memory = {
        'training': {
            'parameters': _bytes_on_device(state.params, layout.params),
            'average': _bytes_on_device((state.ema, state.more_ema), (layout.ema, layout.more_ema)),
            'optimizer': _bytes_on_device(state.opt_state, layout.opt_state),
            'adversary': _bytes_on_device(state.adversary, layout.adversary),
            'frozen': tree_bytes(task.frozen),
            'measured': tree_bytes(state.measured),
            'batch': tree_bytes(task.batch),
            'working': peak_bytes(training),
        }
    }
    for name, (_, params, inputs) in task.phases.items():
        working = peak_bytes(phases[name])
        memory[name] = {'parameters': tree_bytes(params), 'batch': tree_bytes(inputs), 'working': working}
    return {name: {'total': sum(uses.values()), **uses} for name, uses in memory.items()}


def _bytes_on_device(tree: Any, layout: Any) -> int:
    def shard(leaf, sharding):
        return jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype)

    return tree_bytes(jax.tree.map(shard, tree, layout))


def as_table(result: Mapping[str, Any]) -> str:
    """The plan for people."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in result['mesh'].items())
    sizes = {name: 'x'.join(map(str, result[name])) for name in ('clip', 'latents') if name in result}
    sizes |= {'tokens': f'{result["tokens"]:,}'}
    if 'windows' in result:
        sizes |= {f'tokens/{kind} window': f'{count:,}' for kind, count in result['windows'].items()}
    sizes |= {'clips a step': f'{result["batch_size"]:,}', 'clips a step/on each device': f'{result["rows"]:,}'}
    sizes |= {'devices': f'{result["devices"]:,} ({mesh})', 'steps': f'{result["steps"]:,}'}
    memory = {}
    for phase, uses in result['memory'].items():
        memory[f'{phase}, clips: {result["rows"] if phase == "training" else 1:,}'] = byte_text(uses['total'])
        shown = {use: count for use, count in uses.items() if use != 'total' and count >= 2**10}
        memory |= {f'{phase}/{use}': byte_text(count) for use, count in shown.items()}
    sections = {
        result['task']: sizes,
        'parameters': {path: million_text(count) for path, count in result['parameters'].items()},
        'FLOPs of a clip': {name: flop_text(count) for name, count in result['flops'].items() if name != 'run'},
        'FLOPs of the run': {'training': flop_text(result['flops']['run'])},
        'memory of one device': memory,
    }
    return table(sections, result['notes'])


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    jax.config.update('jax_platforms', 'cpu')  # A plan leaves accelerators to those who run.
    result = plan(CONFIG.value.to_dict(), DEVICES.value)
    print(json.dumps(result) if JSON.value else as_table(result))


if __name__ == '__main__':
    app.run(main)
