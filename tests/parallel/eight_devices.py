"""Two training steps of tokenizer and denoiser on one and on eight virtual devices; `test_many_devices.py` runs it.

The denoiser is told everything: label, text, given frames, low resolution; half of its rows are stacks of pictures.

Prints, as JSON, {'TASK on DEVICES': [loss of step 1, loss of step 2, how many parameters are split]}.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from walt.denoiser.conditions import NullText
from walt.denoiser.walt import Walt
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.parallel.mesh import AXES, make_mesh
from walt.parallel.rules import activate, batch_sharding, replicated
from walt.parallel.shard import put_batch
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.bottleneck import Vq
from walt.tokenizer.discriminator import Discriminator
from walt.tokenizer.objective import Objective
from walt.training.conditions import Conditioning
from walt.training.denoiser_step import make_denoiser_step
from walt.training.state import create
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step

jax.config.update('jax_num_cpu_devices', 8)
ONE = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
EIGHT = make_mesh(data=2, fsdp=2, tensor=2)
OPTIMIZER = optax.sgd(0.5)


def tasks():
    """{task: (create, step)}."""
    key = jax.random.key(0)
    tokenizer = Tokenizer(
        channels=8,
        multipliers=(1, 2),
        blocks=(0, 1),
        middle_blocks=0,
        spatial_strides=(2,),
        temporal_strides=(2,),
        latent_channels=2,
        bottleneck=Vq(codes=8),
        groups=4,
    )
    weights = dict(reconstruction=1.0, codebook=1.0, commitment=0.25, coverage=0.1, adversarial=0.1, r1=1.0, lecam=0.1)
    objective = Objective(tokenizer, weights, discriminator=Discriminator(channels=8, multipliers=(1, 2)))
    tokenizer_step = make_tokenizer_step(objective, OPTIMIZER, 0.9)
    denoiser = Walt(
        latent_shape=(2, 4, 4, 2),
        classes=4,
        text_shape=(4, 6),
        pooled_text=True,
        frame_prediction=True,
        upsample=2,
        images=True,
        width=16,
        depth=2,
        heads=2,
        spatiotemporal_window=(2, 2),
    )
    schedule = DiscreteLinear()
    conditioning = Conditioning(schedule, dropout=0.5, given_frames=(1,), given_noise=0.2)
    denoiser_step = make_denoiser_step(denoiser, DenoisingLoss(schedule), OPTIMIZER, 0.9, conditioning)
    null_text = NullText(jnp.ones((4, 6)), jnp.arange(4) < 1)
    return {
        'tokenizer': (
            lambda mesh: create_tokenizer_state(objective, OPTIMIZER, mesh, key, (3, 8, 8, 3)),
            lambda state, batch, key: tokenizer_step(state, None, batch, key),
        ),
        'denoiser': (
            lambda mesh: create(init(denoiser), OPTIMIZER, mesh, key, measured=null_text),
            lambda state, batch, key: denoiser_step(state, None, batch, key),
        ),
    }


def init(denoiser):
    """key -> variables."""
    dtypes = {'label': jnp.int32, 'text_mask': bool, 'image': bool}
    cond = {name: jnp.zeros((1, *shape), dtypes.get(name)) for name, shape in denoiser.conditions.items()}
    return lambda key: denoiser.init(key, cond['estimate'], jnp.zeros(1), cond)


def two_losses(step, new, mesh, layout, batch):
    """The losses of two steps on `mesh`, and how many parameters it splits."""
    with activate(mesh):
        state, whole = jax.device_put(new, layout), replicated(mesh)
        split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        step = jax.jit(step, in_shardings=(layout, batch_sharding(mesh), whole), out_shardings=(layout, whole))
        batch = put_batch(mesh, batch)
        state, first = step(state, batch, jax.random.key(1))
        _, second = step(state, batch, jax.random.key(2))
    return [float(first['loss']), float(second['loss']), split]


def main():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    batch = {
        'video': rng.integers(256, size=(4, 3, 8, 8, 3), dtype=np.uint8),
        'z': normal(4, 2, 4, 4, 2),
        'low': normal(4, 2, 2, 2, 2),
        'label': np.arange(4, dtype=np.int32),
        'text': normal(4, 4, 6),
        'text_mask': rng.random((4, 4)) < 0.7,
        'images_z': normal(4, 1, 2, 4, 4, 2),
        'images_low': normal(4, 1, 2, 2, 2, 2),
        'images_label': rng.integers(4, size=(4, 1, 2), dtype=np.int32),
        'images_text': normal(4, 1, 2, 4, 6),
        'images_text_mask': rng.random((4, 1, 2, 4)) < 0.7,
    }
    result = {}
    for task, (create_on, step) in tasks().items():
        new, layout = create_on(EIGHT)
        on_one = jax.tree.map(lambda _: replicated(ONE), layout)
        result[f'{task} on one'] = two_losses(step, new, ONE, on_one, batch)
        result[f'{task} on eight'] = two_losses(step, new, EIGHT, layout, batch)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
