"""Attention in packed rows on four virtual devices that share rows and heads; `test_segment_attention_devices.py`.

Prints, as JSON, {WAY: {'error': the largest of outputs and gradients against one device and the mask, 'scale': the
largest of those, 'forward': {'KIND AXES': bytes of the forward pass's collectives}}}.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from walt.nn import segment_attention
from walt.nn.attention import Attention
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import activate, batch_sharding, shardings
from walt.planning.collectives import collectives, summed

jax.config.update('jax_num_cpu_devices', 4)
LAYER = Attention(2)
IDS_BL = jnp.asarray(np.stack([np.repeat([1, 2, 0], [50, 60, 18]), np.arange(128) % 3]), jnp.int32)


def on(mesh):
    """(output and gradients, collectives of the forward pass)."""
    rng = np.random.default_rng(0)
    x_B1LD = jnp.asarray(rng.normal(size=(2, 1, 128, 32)), jnp.float32)
    with activate(mesh):
        boxed = jax.eval_shape(LAYER.init, jax.random.key(0), x_B1LD, ids_BL=IDS_BL)
        values = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), boxed)
        params = jax.device_put(values, shardings(mesh, boxed))
        placed = [jax.device_put(x, batch_sharding(mesh)) for x in (x_B1LD, IDS_BL)]

        def forward(params, x, ids):
            return LAYER.apply(params, x, ids_BL=ids)

        def loss(params, x, ids):
            y = forward(params, x, ids)
            return jnp.square(y).sum(), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, *placed)
        text = jax.jit(forward).lower(params, *placed).compile().as_text()
        sent = summed(collectives(text, mesh.shape))
        return jax.tree.leaves((y, gradients)), {
            f'{kind} {",".join(axes)}': size for (kind, axes), (_, size) in sent.items()
        }


expected, _ = on(make_mesh(devices=jax.devices()[:1]))
figures, ways = {}, {'mask': segment_attention.by_mask, 'splash': segment_attention.by_splash}
for name, way in ways.items():
    segment_attention.WAYS['cpu'] = way if name == 'mask' else functools.partial(way, interpret=True)
    got, forward = on(make_mesh(data=2, tensor=2))
    error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(got, expected))
    figures[name] = {'error': error, 'scale': max(float(np.abs(a).max()) for a in expected), 'forward': forward}
print(json.dumps(figures))
