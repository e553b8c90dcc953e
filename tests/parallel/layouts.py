"""A training step, sampling, encoding and decoding on one virtual device and on eight, laid out in every usual way.

`test_layouts.py` runs it, with names of layouts; with `joint` before them, on a denoiser of clips and pictures alone.
Prints, as JSON, {task: {layout: figures}}: how far the loss and the gradients (or what comes out) are from those of one
device, by the largest of them; and for training {'KIND AXIS,..': bytes} of the collectives, and extents of what is
gathered along fsdp and is no parameter.
"""

import gc
import json
import re
import sys

import jax
import numpy as np
import optax

from walt.build import init_denoiser
from walt.denoiser.walt import Walt
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.diffusion.steppers import Ddim
from walt.generation.stage import Stage
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import activate, batch_sharding, replicated
from walt.parallel.shard import put_batch
from walt.planning.collectives import collectives, summed
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.tokenizer.objective import Objective
from walt.training.conditions import Conditioning
from walt.training.denoiser_step import make_denoiser_step
from walt.training.state import create
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step

LAYOUTS = {
    'ddp': {'data': -1},
    'fsdp': {'data': 1, 'fsdp': -1},
    'fsdp_tp': {'data': 1, 'fsdp': -1, 'tensor': 2},
    'fsdp_context': {'data': 1, 'fsdp': -1, 'context': 2},
    'all': {'data': 1, 'fsdp': 2, 'context': 2, 'tensor': 2},
}
OPTIMIZER = optax.sgd(1.0)  # the parameters after a step tell its gradients
SCHEDULE = DiscreteLinear()
CLIP = (3, 16, 16, 3)


def denoiser(frames: int, **fields) -> Walt:
    """Of as many latent frames as divide two devices or do not, which is how they share spatial windows."""
    return Walt(
        latent_shape=(frames, 4, 4, 2),
        classes=4,
        text_shape=(2, 6),
        width=16,
        depth=2,
        heads=2,
        spatiotemporal_window=(2, 2),
        **fields,
    )


JOINT = 'clips and pictures, 3 frames'
TOKENIZER = Tokenizer(
    channels=8,
    multipliers=(1, 2),
    blocks=(1, 0),
    middle_blocks=0,
    spatial_strides=(2,),
    temporal_strides=(2,),
    latent_channels=2,
    groups=4,
)


def tasks():
    """{task: (mesh -> (state, layout), step)}."""
    key = jax.random.key(0)
    objective = Objective(TOKENIZER, {'reconstruction': 1.0})
    tokenizer_step = make_tokenizer_step(objective, OPTIMIZER, 0.9)

    def of_denoiser(module):
        conditioning = Conditioning(SCHEDULE, dropout=0.0)
        step = make_denoiser_step(module, DenoisingLoss(SCHEDULE), OPTIMIZER, 0.9, conditioning)
        return (
            lambda mesh: create(init_denoiser(module), OPTIMIZER, mesh, key),
            lambda state, batch, key: step(state, None, batch, key),
        )

    return {
        'tokenizer': (
            lambda mesh: create_tokenizer_state(objective, OPTIMIZER, mesh, key, CLIP),
            lambda state, batch, key: tokenizer_step(state, None, batch, key),
        ),
        'denoiser, 2 frames': of_denoiser(denoiser(2)),
        'denoiser, 3 frames': of_denoiser(denoiser(3)),
        JOINT: of_denoiser(denoiser(3, images=True)),
    }


def batch(task: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if task == 'tokenizer':
        return {'video': rng.integers(256, size=(8, *CLIP), dtype=np.uint8)}
    frames = 2 if task == 'denoiser, 2 frames' else 3
    clips = {
        'z': rng.normal(size=(8, frames, 4, 4, 2)).astype(np.float32),
        'label': np.arange(8, dtype=np.int32) % 4,
        'text': rng.normal(size=(8, 2, 6)).astype(np.float32),
        'text_mask': np.arange(16).reshape(8, 2) % 3 > 0,
    }
    if task != JOINT:
        return clips
    # A stack of as many pictures beside every clip.
    return clips | {
        'images_z': rng.normal(size=(8, 1, frames, 4, 4, 2)).astype(np.float32),
        'images_label': np.arange(8 * frames, dtype=np.int32).reshape(8, 1, frames) % 4,
        'images_text': rng.normal(size=(8, 1, frames, 2, 6)).astype(np.float32),
        'images_text_mask': np.arange(16 * frames).reshape(8, 1, frames, 2) % 3 > 0,
    }


def one_step(step, state, layout, mesh, rows):
    """(loss, gradients as one vector, bytes of collectives)."""
    whole, put = replicated(mesh), put_batch(mesh, rows)
    state = jax.device_put(state, layout)
    jitted = jax.jit(step, in_shardings=(layout, batch_sharding(mesh), whole), out_shardings=(layout, whole))
    compiled = jitted.lower(state, put, jax.random.key(1)).compile()
    after, metrics = compiled(state, put, jax.random.key(1))
    gradients = jax.tree.map(lambda a, b: (a - b).ravel(), *jax.device_get((state.params, after.params)))
    found = collectives(compiled.as_text(), dict(mesh.shape))
    size = {f'{kind} {",".join(axes)}': count for (kind, axes), (_, count) in summed(found).items()}
    gathered = {
        extents(shape) for one in found if one.kind == 'all-gather' and 'fsdp' in one.axes for shape in one.shapes
    }
    return float(metrics['loss']), np.concatenate(jax.tree.leaves(gradients)), size, gathered


def extents(shape: str | tuple[int, ...]) -> tuple[int, ...]:
    """Of an array, given as a shape or as HLO writes it: sorted, without those that are 1."""
    sizes = map(int, re.findall(r'\d+', shape[shape.index('[') :])) if isinstance(shape, str) else shape
    return tuple(sorted(size for size in sizes if size > 1))


def of_parameters(params) -> set[tuple[int, ...]]:
    """Extents of parameters, and of those of one layer where layers are stacked."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    return {extents(shape) for shape in shapes} | {extents(shape[1:]) for shape in shapes}


def used(params, mesh, layout):
    """Samples of the denoiser of three frames, or latents and pixels of the tokenizer, as one vector each."""
    frozen = FrozenTokenizer(TOKENIZER, None, LatentNorm.identity(2))
    if 'encoder' in params:
        frozen = frozen.replace(params=jax.device_put(params, layout))

        @jax.jit
        def through(frozen, video_BTHWC):
            latents = frozen.encode(video_BTHWC)
            return latents, TOKENIZER.apply({'params': frozen.params}, latents, method='decode')

        return np.concatenate(
            [np.ravel(part) for part in through(frozen, put_batch(mesh, batch('tokenizer'))['video'])]
        )
    stage = Stage(
        denoiser=denoiser(3),
        params=None,
        frozen=None,
        schedule=SCHEDULE,
        parametrisation='v',
        self_conditioning=True,
        mesh=mesh,
        stepper=Ddim(),
        steps=2,
        guidance=1.0,
    )
    rows = batch('denoiser, 3 frames')
    rows = put_batch(mesh, {name: rows[name] for name in ('label', 'text', 'text_mask')})
    rows['key'] = jax.random.split(jax.random.key(2), 8)
    return np.ravel(jax.jit(stage.sample_latents)(jax.device_put(params, layout), None, rows))


def drawn(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """New gates and heads would be zero, which hides what is behind them."""
    return 0.2 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(leaf.dtype)


def in_shapes(new, mesh):
    """(state, layout), with nothing compiled."""
    layouts = []

    def state():
        made, layout = new(mesh)
        layouts.append(layout)
        return made

    return jax.eval_shape(state), layouts[0]


def distance(a, b) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def main(names: list[str]):
    gc.disable()  # it takes a tenth of the time of tracing
    jax.config.update('jax_num_cpu_devices', 8)
    one = make_mesh(devices=jax.devices()[:1])
    result = {}
    joint = names[0] == 'joint'
    names = names[1:] if joint else names
    for task, (new, step) in tasks().items():
        if (task == JOINT) != joint:
            continue
        state, layout = in_shapes(new, one)
        rows, params = batch(task), jax.tree.map(drawn, state.params)
        state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), state).replace(params=params, ema=params)
        whole_frames, sampled = task == 'denoiser, 2 frames', task in ('tokenizer', 'denoiser, 3 frames')
        with activate(one):
            loss, gradients, *_ = one_step(step, state, layout, one, rows)
            expected = used(params, one, layout.params) if sampled else None
        for name in [name for name in names if name == 'fsdp_context' or not whole_frames]:
            mesh = make_mesh(**LAYOUTS[name])
            _, layout = in_shapes(new, mesh)
            with activate(mesh):
                its_loss, its_gradients, size, gathered = one_step(step, state, layout, mesh, rows)
                figures = {
                    'loss': abs(its_loss - loss) / loss,
                    'gradients': distance(its_gradients, gradients),
                    'collectives': size,
                    'no parameters': sorted(gathered - of_parameters(params)),
                    'parameters': sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
                }
                if sampled:
                    figures['used'] = distance(used(params, mesh, layout.params), expected)
            result.setdefault(task, {})[name] = figures
    print(json.dumps(result))


if __name__ == '__main__':
    main(sys.argv[1:])
