"""Two updates of Adafactor and Muon on one and on eight virtual devices; `test_many_devices.py` runs it.

Prints, as JSON by optimizer: the share of its state that is on a device; whether the tree of shardings is that of the
state; how far parameters moved at the most on one device, and how far from there they are on eight.
"""

import json

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from walt.build import init_denoiser
from walt.denoiser.walt import Walt
from walt.parallel.mesh import AXES, make_mesh
from walt.parallel.rules import replicated
from walt.training.optimizer import adafactor, muon
from walt.training.state import create

jax.config.update('jax_num_cpu_devices', 8)
ONE = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
EIGHT = make_mesh(data=2, fsdp=2, tensor=2)
RUN = {'steps': 9, 'learning_rate': 0.1, 'warmup_steps': 0}
OPTIMIZERS = {'adafactor': adafactor(**RUN, min_side=4), 'muon': muon(**RUN)}


def after_two(optimizer, state, layout):
    params, opt_state = jax.device_put((state.params, state.opt_state), (layout.params, layout.opt_state))
    rng = np.random.default_rng(0)

    @jax.jit
    def step(gradients, opt_state, params):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(2):
        gradients = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), state.params)
        params, opt_state = step(jax.device_put(gradients, layout.params), opt_state, params)
    return params


def distance(tree, other):
    return max(
        float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(jax.device_get(tree)), jax.tree.leaves(other))
    )


def main():
    denoiser = Walt(latent_shape=(2, 4, 4, 2), classes=4, width=16, depth=2, heads=2, spatiotemporal_window=(2, 2))

    def init(key):
        """The parameters of one layer, which are of all kinds and compile faster."""
        return {'params': {'blocks': {'spatial': init_denoiser(denoiser)(key)['params']['blocks']['spatial']}}}

    result = {}
    for name, optimizer in OPTIMIZERS.items():
        state, layout = create(init, optimizer, EIGHT, jax.random.key(0))
        leaves = jax.tree.leaves(state.opt_state)
        on_device = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
        one = jax.device_get(after_two(optimizer, state, jax.tree.map(lambda _: replicated(ONE), layout)))
        result[name] = {
            'share': on_device / sum(leaf.size for leaf in leaves),
            'layout fits the state': jax.tree.structure(layout) == jax.tree.structure(state),
            'moved': distance(state.params, one),
            'difference': distance(after_two(optimizer, state, layout), one),
        }
    print(json.dumps(result))


if __name__ == '__main__':
    main()
