"""One projection layer for everything: the equation stands at the call site.

Einsum('...D,DNK->...NK', (width, heads, head), ('embed', 'heads', 'head'))(x_BLD)
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from walt.nn.shards import whole
from walt.precision import PARAM_DTYPE

zeros = initializers.zeros


class Einsum(nn.Module):
    """y = einsum(equation, x, kernel) + bias.

    Attributes:
        equation: `'...D,DF->...F'`; letters of the kernel that are missing from the output are contracted.
        shape: sizes of the kernel's axes.
        axes: logical names of the kernel's axes.
        use_bias: adds a bias over the output's axes that come from the kernel.
        init: the kernel's initialiser; Xavier-uniform over the contracted and the new axes by default.
        dtype: what the product is computed in.
    """

    equation: str
    shape: Sequence[int]
    axes: Sequence[str]
    use_bias: bool = True
    init: initializers.Initializer | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        (_, letters), output = (part.split(',') for part in self.equation.split('->'))
        contracted = [i for i, letter in enumerate(letters) if letter not in output[0]]
        kept = [i for i, letter in enumerate(letters) if letter in output[0]]
        init = self.init or initializers.variance_scaling(1.0, 'fan_avg', 'uniform', contracted, kept)
        kernel = self.param('kernel', nn.with_logical_partitioning(init, tuple(self.axes)), self.shape, PARAM_DTYPE)
        y = jnp.einsum(self.equation, x.astype(self.dtype), whole(kernel.astype(self.dtype), self.axes))
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(zeros, tuple(self.axes[i] for i in kept))
            bias = self.param('bias', bias_init, tuple(self.shape[i] for i in kept), PARAM_DTYPE)
            y = y + whole(bias.astype(self.dtype), [self.axes[i] for i in kept])
        return y
