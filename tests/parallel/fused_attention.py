"""The fused kernel, interpreted, on one virtual device and on eight; `test_fused_attention.py` runs it.

Prints, as JSON, {SPLIT: {'error': the largest of outputs and gradients against one device, 'scale': the largest of
those, 'forward': {'KIND AXES': bytes of the forward pass's collectives}}}.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from walt.nn import attention, window_attention
from walt.nn.attention import Attention, CrossAttention
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import activate, batch_sharding, shardings
from walt.planning.collectives import collectives, summed

jax.config.update('jax_num_cpu_devices', 8)
MESH = {'data': 2, 'fsdp': 1, 'context': 2, 'tensor': 2}


def call(*args):
    return window_attention.window_attention(*args, interpret=True)


attention.window_attention = call
attention.pays = lambda *sizes: True


def layers():
    """{name: (layer by split, arguments)}."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x_BGPD, bias_NPP, text = normal(2, 2, 4, 8), normal(2, 4, 4), (normal(2, 1, 2, 8), jnp.ones((2, 1, 2), bool))
    return {
        'windows': (Attention(2, split=('windows', None)), (x_BGPD, bias_NPP)),
        'queries': (Attention(2, split=(None, 'queries')), (x_BGPD, bias_NPP)),
        'text': (CrossAttention(2, split=('windows', None)), (x_BGPD, *text)),
    }


def on(mesh, layer, args):
    """(output and gradients, collectives of the forward pass)."""
    with activate(mesh):
        boxed = jax.eval_shape(layer.init, jax.random.key(0), *args)
        rng = np.random.default_rng(1)
        values = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), boxed)
        layout = shardings(mesh, boxed)
        params = jax.device_put(values, layout)
        placed = (jax.device_put(args[0], batch_sharding(mesh)), *args[1:])

        def forward(params, *args):
            return layer.apply(params, *args)

        def loss(params, *args):
            y = forward(params, *args)
            return jnp.square(y).sum(), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, *placed)
        text = jax.jit(forward).lower(params, *placed).compile().as_text()
        sent = summed(collectives(text, mesh.shape))
        return jax.tree.leaves((y, gradients)), {
            f'{kind} {",".join(axes)}': size for (kind, axes), (_, size) in sent.items()
        }


figures = {}
for name, (layer, args) in layers().items():
    expected, _ = on(make_mesh(devices=jax.devices()[:1]), layer, args)
    got, forward = on(make_mesh(**MESH), layer, args)
    error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(got, expected))
    figures[name] = {'error': error, 'scale': max(float(np.abs(a).max()) for a in expected), 'forward': forward}
print(json.dumps(figures))
