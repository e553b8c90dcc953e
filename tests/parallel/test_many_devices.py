"""Eight devices compute what one does. Virtual ones, in a process of their own: JAX counts its devices once."""

import json
import subprocess
import sys

PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, Mesh

jax.config.update('jax_num_cpu_devices', 8)

from walt.build import init_denoiser, init_tokenizer
from walt.denoiser.walt import Walt
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.parallel.mesh import AXES, make_mesh
from walt.parallel.rules import activate, batch_sharding, replicated
from walt.parallel.shard import put_batch
from walt.tokenizer.autoencoder import Tokenizer
from walt.training.denoiser_step import make_denoiser_step
from walt.training.state import create
from walt.training.tokenizer_step import make_tokenizer_step

one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
eight = make_mesh(data=2, fsdp=2, tensor=2)
rng = np.random.default_rng(0)
batch = {
    'video': rng.integers(256, size=(4, 3, 8, 8, 3), dtype=np.uint8),
    'z': rng.normal(size=(4, 2, 4, 4, 2)).astype(np.float32),
    'label': np.arange(4, dtype=np.int32),
}
tokenizer = Tokenizer(channels=8, multipliers=(1, 2), blocks=(0, 1), middle_blocks=0, spatial_strides=(2,),
                      temporal_strides=(2,), latent_channels=2, groups=4)
denoiser = Walt(latent_shape=(2, 4, 4, 2), classes=4, width=16, depth=2, heads=2, spatiotemporal_window=(2, 2))
optimizer = optax.adam(1e-2)
loss = DenoisingLoss(DiscreteLinear())
tasks = {
    'tokenizer': (init_tokenizer(tokenizer, (3, 8, 8, 3)),
                  make_tokenizer_step(tokenizer, {'reconstruction': 1.0}, optimizer, 0.9)),
    'denoiser': (init_denoiser(denoiser),
                 lambda state, batch, key: make_denoiser_step(denoiser, loss, optimizer, 0.9, 0.1)(
                     state, None, batch, key)),
}
result = {}
for task, (init, step) in tasks.items():
    for devices, mesh in (('one', one), ('eight', eight)):
        with activate(mesh):
            state, layout = create(init, optimizer, mesh, jax.random.key(0))
            split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
            whole = replicated(mesh)
            step_on = jax.jit(step, in_shardings=(layout, batch_sharding(mesh), whole), out_shardings=(layout, whole))
            state, first = step_on(state, put_batch(mesh, batch), jax.random.key(1))
            _, second = step_on(state, put_batch(mesh, batch), jax.random.key(2))
            result[f'{task} on {devices}'] = [float(first['loss']), float(second['loss']), split]
print(json.dumps(result))
"""


def test_a_step_on_eight_devices_has_the_loss_of_one():
    """Parameters and batch split over data 2 x fsdp 2 x tensor 2; the second step sees the first one's update."""
    done = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    for task in ('tokenizer', 'denoiser'):
        *losses, split_on_one = result[f'{task} on one']
        *same, split_on_eight = result[f'{task} on eight']
        assert split_on_one == 0 and split_on_eight > 5
        assert all(abs(a - b) < 1e-5 * max(1, abs(a)) for a, b in zip(losses, same)), result
        assert abs(losses[0] - losses[1]) > 1e-3
