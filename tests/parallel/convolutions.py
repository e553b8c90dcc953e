"""Networks of convolutions on one virtual device and on eight that split the rows of frames of many sizes.

`test_layouts.py` runs it. Prints, as JSON, {NETWORK, rows and mesh: [error of the values, error of the gradients]}, by
the largest of each array. XLA's partitioner has got some such layouts wrong, of which `walt.nn.conv` keeps clear.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from walt.parallel.mesh import make_mesh
from walt.parallel.rules import activate, batch_sharding, replicated
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.discriminator import Discriminator

NETWORKS = {
    'discriminator': Discriminator(channels=8, multipliers=(1, 2, 2)),
    'tokenizer': Tokenizer(
        channels=4,
        multipliers=(1, 2, 2),
        blocks=(1, 1, 0),
        middle_blocks=0,
        spatial_strides=(2, 2),
        temporal_strides=(2, 2),
        latent_channels=2,
        groups=2,
    ),
}
MESHES = [dict(data=2, fsdp=2, tensor=2), dict(data=2, context=2, tensor=2), dict(data=1, context=8)]


def error(tree, expected) -> float:
    pairs = zip(jax.tree.leaves(jax.device_get(tree)), jax.tree.leaves(jax.device_get(expected)))
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def compare(network, video_BTHWC, mesh) -> list[float]:
    params = nn.unbox(jax.jit(network.init)(jax.random.key(0), video_BTHWC)['params'])
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)

    def square(params, video_BTHWC):
        y = jax.tree.leaves(network.apply({'params': params}, video_BTHWC))[0]
        return jnp.square(y).sum(), y

    (_, expected), gradients = jax.jit(jax.value_and_grad(square, (0, 1), has_aux=True))(params, video_BTHWC)
    with activate(mesh):
        args = jax.device_put(params, replicated(mesh)), jax.device_put(video_BTHWC, batch_sharding(mesh))
        (_, y), its_gradients = jax.jit(jax.value_and_grad(square, (0, 1), has_aux=True))(*args)
    return [error(y, expected), error(its_gradients, gradients)]


def main():
    jax.config.update('jax_num_cpu_devices', 8)
    result = {}
    for rows in (8, 16, 24, 32):
        video_BTHWC = np.random.default_rng(rows).normal(size=(4, 5, rows, rows, 3)).astype(np.float32)
        for name, network in NETWORKS.items():
            for axes in MESHES:
                result[f'{name}, {rows} rows, {axes}'] = compare(network, video_BTHWC, make_mesh(**axes))
    print(json.dumps(result))


if __name__ == '__main__':
    main()
