"""Adafactor: the second moments of a matrix from those of its rows and columns (arXiv:1804.04235).

Where Adam keeps a number for each of n x m weights, Adafactor keeps n + m: r_i and c_j, moving averages of the squared
gradient's means along a row and down a column. With g the gradient of step t = 1, 2, ...

    beta = 1 - t^-decay                              section 7.2: no bias to correct
    r <- beta r + (1 - beta) mean_j(g^2 + eps)
    c <- beta c + (1 - beta) mean_i(g^2 + eps)       v_ij = r_i c_j / mean(r)        section 3
    u = g / sqrt(v)                                  u <- u / max(1, RMS(u) / d)     section 6

Kernels have more axes than two. Those before a cut are the rows, those after it the columns, the cut being where the
two are fewest together; layers that are stacked are matrices of their own, also where an RMS is taken:

    (layers, D | 3, N, K)      (layers, N, K | D)      (kt, kh, kw, I | O)

No axis is moved or merged, so the moments lie on the mesh as the kernel's axes do. `optax.adafactor` factors the two
largest axes, and none where the second one is small, as with heads: 391 MiB for W.A.L.T-L, here 7.5 MiB. On a plain
matrix the two are equal.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from walt.training.parameters import is_kernel, stacked_axes

_EPSILON = 1e-30
_LEAST_SCALE = 1e-3  # RMS of a parameter that is still zero.


class AdafactorState(NamedTuple):
    """`count` of steps; for each parameter, {'rows', 'columns'}, or {'each'} where it is not factored."""

    count: jax.Array
    moments: Any


def scale_by_adafactor(
    *, decay: float, clip_threshold: float, parameter_scale: bool, min_side: int
) -> optax.GradientTransformation:
    """g -> u, see above.

    Args:
        decay: exponent of the moments' decay.
        clip_threshold: d, the greatest RMS of an update.
        parameter_scale: multiplies the update of each matrix by the matrix's RMS (section 8).
        min_side: kernels with fewer rows or columns keep all of their moments.
    """

    def new_moments(path, leaf):
        value = leaf.value if isinstance(leaf, meta.AxisMetadata) else leaf
        layers, cut = stacked_axes(path), _cut(path, value.shape, min_side)
        if cut is None:
            return {'each': jax.tree.map(jnp.zeros_like, leaf)}

        def zeros(kept: list[int]):
            array = jnp.zeros([value.shape[axis] for axis in kept], value.dtype)
            return _boxed_like(leaf, array, kept)

        axes = list(range(value.ndim))
        return {'rows': zeros(axes[:cut]), 'columns': zeros(axes[:layers] + axes[cut:])}

    def init(params):
        boxed = jax.tree_util.tree_map_with_path(
            new_moments, params, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata)
        )
        return AdafactorState(jnp.zeros((), jnp.int32), boxed)

    def update(gradients, state, params):
        beta = 1 - (state.count + 1.0) ** -decay

        def average(old, new):
            return beta * old + (1 - beta) * new

        def next_moments(path, gradient, moments):
            square = jnp.square(gradient) + _EPSILON
            layers, cut = stacked_axes(path), _cut(path, gradient.shape, min_side)
            if cut is None:
                return {'each': average(moments['each'], square)}
            rows, columns = (tuple(range(*ends)) for ends in ((layers, cut), (cut, gradient.ndim)))
            return {
                'rows': average(moments['rows'], square.mean(columns)),
                'columns': average(moments['columns'], square.mean(rows)),
            }

        def direction(path, gradient, moments, param):
            layers, cut = stacked_axes(path), _cut(path, gradient.shape, min_side)
            if cut is None:
                step = gradient * jax.lax.rsqrt(moments['each'])
            else:
                rows = moments['rows'] / moments['rows'].mean(tuple(range(layers, cut)), keepdims=True)
                rows = jnp.expand_dims(rows, tuple(range(cut, gradient.ndim)))
                columns = jnp.expand_dims(moments['columns'], tuple(range(layers, cut)))
                step = gradient * jax.lax.rsqrt(rows) * jax.lax.rsqrt(columns)
            step = step / jnp.maximum(1, _rms(step, layers) / clip_threshold)
            return step * jnp.maximum(_rms(param, layers), _LEAST_SCALE) if parameter_scale else step

        moments = jax.tree_util.tree_map_with_path(next_moments, gradients, state.moments)
        updates = jax.tree_util.tree_map_with_path(direction, gradients, moments, params)
        return updates, AdafactorState(optax.safe_increment(state.count), moments)

    return optax.GradientTransformation(init, update)


def _cut(path, shape: tuple[int, ...], min_side: int) -> int | None:
    """The first axis of a kernel's columns, None where it is not factored."""
    layers = stacked_axes(path)
    if not is_kernel(path):
        return None

    def sides(cut: int) -> tuple[int, int]:
        return math.prod(shape[layers:cut]), math.prod(shape[cut:])

    cut = min(range(layers + 1, len(shape)), key=lambda cut: sum(sides(cut)), default=None)
    return cut if cut is not None and min(sides(cut)) >= min_side else None


def _boxed_like(leaf, array, kept: list[int]):
    """`array`, which has the axes `kept` of `leaf`, in a box with their names if `leaf` is in one."""
    if not isinstance(leaf, meta.AxisMetadata):
        return array
    return leaf.replace(value=array, names=tuple(leaf.names[axis] for axis in kept))


def _rms(x, layers: int):
    """Of each layer, or of the whole array."""
    return jnp.sqrt(jnp.square(x).mean(tuple(range(layers, x.ndim)), keepdims=True))
