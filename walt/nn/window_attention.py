"""Attention of many small windows in one kernel for TPUs, forward and backward.

    y = softmax(LN(q) LN(k)^T / sqrt(K) + bias + mask) v        window by window, head by head

Compiled from einsums, the logits of a window go to HBM and come back several times, in float32, which takes longer than
the products. Here a window with all that is computed from it stays in the core's own memory (VMEM): a step of the grid
takes the tokens of one window, goes over its heads, and puts out their values. The backward pass does the same from the
same inputs, so nothing is kept for it: `_head` is the one description of what a head does, and its gradient is taken by
JAX inside the kernel.

    grid: blocks of heads x halves of the windows x windows         halves: a v5p has two cores behind one device

Tokens are (window, token, heads x K) as projections leave and take them, so nothing is transposed, and heads of a width
that is no multiple of the 128 lanes are padded in VMEM only. The gradient of the bias, a sum over windows, stays in
VMEM until the last of them.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_ABSENT = -1e30
EPSILON = 1e-6
# Bytes of VMEM that a kernel may take: a window's logits, and twice the bias and its gradient.
_VMEM = 60 * 2**20


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(equation, a, b):
    """einsum with float32 sums; its gradients take products of the operands' dtype, as the matrix units do."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _product_backward(equation, operands, g):
    a, b = operands
    (of_a, of_b), out = equation.split('->')[0].split(','), equation.split('->')[1]
    da = jnp.einsum(f'{out},{of_b}->{of_a}', g.astype(b.dtype), b, preferred_element_type=jnp.float32)
    db = jnp.einsum(f'{out},{of_a}->{of_b}', g.astype(a.dtype), a, preferred_element_type=jnp.float32)
    return da.astype(a.dtype), db.astype(b.dtype)


_product.defvjp(lambda equation, a, b: (_product(equation, a, b), (a, b)), _product_backward)


def normalised(x, scale, bias):
    """Layer norm over the last axis, float32 inside."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPSILON)
    return (y * scale + bias).astype(x.dtype)


def _head(q_PK, k_MK, v_MK, norms_4K, bias_PM, mask_1M):
    """What one head does in one window; the last three may be None."""
    if norms_4K is not None:
        q_PK, k_MK = normalised(q_PK, norms_4K[0:1], norms_4K[1:2]), normalised(k_MK, norms_4K[2:3], norms_4K[3:4])
    logits_PM = _product('pk,mk->pm', q_PK, k_MK) * q_PK.shape[-1] ** -0.5
    for addend in (bias_PM, mask_1M):
        logits_PM = logits_PM if addend is None else logits_PM + addend.astype(jnp.float32)
    weights_PM = jnp.exp(logits_PM - jax.lax.stop_gradient(logits_PM.max(-1, keepdims=True)))
    total_P1 = weights_PM.sum(-1, keepdims=True)
    return _product('pm,mk->pk', weights_PM.astype(v_MK.dtype), v_MK) / total_P1


@dataclasses.dataclass(frozen=True)
class _Grid:
    """How the kernels go over W windows of (tokens, heads x K), and what they are given there."""

    windows: int
    queries: int
    keys: int
    heads: int
    width: int
    normalises: bool
    has_bias: bool
    has_mask: bool

    @property
    def block(self) -> int:
        """Heads in a block: the fewest whose width is a multiple of the lanes, else all."""
        counts = [n for n in range(1, self.heads) if self.heads % n == 0 and n * self.width % _LANES == 0]
        return min(counts, default=self.heads)

    @property
    def halves(self) -> int:
        return 2 if self.windows % 2 == 0 else 1

    @property
    def steps(self) -> tuple[int, int, int]:
        return self.heads // self.block, self.halves, self.windows // self.halves

    def lanes(self, n: int) -> slice:
        """Of head `n` of a block."""
        return slice(n * self.width, (n + 1) * self.width)

    def tokens(self, length: int) -> pl.BlockSpec:
        each = self.windows // self.halves
        return pl.BlockSpec((None, length, self.block * self.width), lambda b, h, i: (h * each + i, 0, b))

    def inputs(self) -> list[pl.BlockSpec]:
        """Of q, k, v and, where they are given, norms, bias and mask."""
        each, keys = self.windows // self.halves, self.tokens(self.keys)
        norms = pl.BlockSpec((4, self.width), lambda b, h, i: (0, 0))
        bias = pl.BlockSpec((self.block, self.queries, self.keys), lambda b, h, i: (b, 0, 0))
        mask = pl.BlockSpec((None, 1, self.keys), lambda b, h, i: (h * each + i, 0, 0))
        optional = zip((norms, bias, mask), (self.normalises, self.has_bias, self.has_mask))
        return [self.tokens(self.queries), keys, keys, *(spec for spec, given in optional if given)]

    def read(self, refs) -> list:
        """[q, k, v, norms, bias, mask] from the references that there are."""
        refs = iter(refs)
        return [next(refs) if given else None for given in (True,) * 3 + (self.normalises, self.has_bias, self.has_mask)]

    def head(self, refs, n: int) -> tuple:
        """The arguments of `_head` for head `n` of the block."""
        *tokens, norms, bias, mask = refs
        return (
            *(ref[:, self.lanes(n)] for ref in tokens),
            None if norms is None else norms[...],
            None if bias is None else bias[n],
            None if mask is None else mask[...],
        )

    def cost(self, products: int, moved: int) -> pl.CostEstimate:
        """Of a pass with so many products of a head's queries and keys, without padding."""
        logits = self.windows * self.heads * self.queries * self.keys
        return pl.CostEstimate(flops=2 * products * logits * self.width, transcendentals=logits, bytes_accessed=moved)


def _forward_kernel(grid: _Grid, *refs):
    *inputs, y = refs
    inputs = grid.read(inputs)
    for n in range(grid.block):
        y[:, grid.lanes(n)] = _head(*grid.head(inputs, n)).astype(y.dtype)


def _backward_kernel(grid: _Grid, count: int, *refs):
    inputs, dy, (dq, dk, dv, *sums) = grid.read(refs[:count]), refs[count], refs[count + 1 :]
    sums = iter(sums)
    dnorms, dbias = (next(sums) if given else None for given in (grid.normalises, grid.has_bias))

    @pl.when(pl.program_id(2) == 0)
    def _():
        for total in (dnorms, dbias):
            if total is not None:
                total[...] = jnp.zeros(total.shape, total.dtype)

    for n in range(grid.block):
        lanes = grid.lanes(n)
        *given, mask = grid.head(inputs, n)
        _, pull_back = jax.vjp(lambda *given: _head(*given, mask), *given)
        *of_tokens, of_norms, of_bias = pull_back(dy[:, lanes].astype(jnp.float32))
        for ref, value in zip((dq, dk, dv), of_tokens):
            ref[:, lanes] = value
        if dnorms is not None:
            dnorms[...] += of_norms
        if dbias is not None:
            dbias[n] += of_bias


def _grid(heads, q, k, norms, bias, mask) -> _Grid:
    return _Grid(
        windows=q.shape[0],
        queries=q.shape[1],
        keys=k.shape[1],
        heads=heads,
        width=q.shape[2] // heads,
        normalises=norms is not None,
        has_bias=bias is not None,
        has_mask=mask is not None,
    )


def _call(kernel, grid: _Grid, arrays, out_shape, out_specs, products: int, interpret: bool, name: str):
    moved = sum(math.prod(array.shape) * array.dtype.itemsize for array in (*arrays, *jax.tree.leaves(out_shape)))
    return pl.pallas_call(
        kernel,
        grid=grid.steps,
        in_specs=grid.inputs() + [grid.tokens(grid.queries)] * (len(arrays) - len(grid.inputs())),
        out_specs=out_specs,
        out_shape=out_shape,
        cost_estimate=grid.cost(products, moved),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=_VMEM
        ),
        interpret=interpret,
        name=name,
    )(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(heads: int, interpret: bool, q, k, v, norms, bias, mask):
    grid = _grid(heads, q, k, norms, bias, mask)
    arrays = [x for x in (q, k, v, norms, bias, mask) if x is not None]
    kernel = functools.partial(_forward_kernel, grid)
    shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
    return _call(kernel, grid, arrays, shape, grid.tokens(grid.queries), 2, interpret, 'window_attention')


def _attention_backward(heads: int, interpret: bool, inputs, dy):
    q, k, v, norms, bias, mask = inputs
    grid = _grid(heads, q, k, norms, bias, mask)
    arrays = [x for x in inputs if x is not None]
    blocks, halves, _ = grid.steps
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    specs = [grid.tokens(x.shape[1]) for x in (q, k, v)]
    if norms is not None:
        shapes.append(jax.ShapeDtypeStruct((halves, blocks, *norms.shape), jnp.float32))
        specs.append(pl.BlockSpec((None, None, *norms.shape), lambda b, h, i: (h, b, 0, 0)))
    if bias is not None:
        shapes.append(jax.ShapeDtypeStruct((halves, *bias.shape), bias.dtype))
        specs.append(pl.BlockSpec((None, grid.block, *bias.shape[1:]), lambda b, h, i: (h, b, 0, 0)))
    kernel = functools.partial(_backward_kernel, grid, len(arrays))
    grads = _call(kernel, grid, [*arrays, dy], shapes, specs, 5, interpret, 'window_attention_gradient')
    dq, dk, dv, *sums = grads
    dbias = sums.pop().sum(0) if bias is not None else None
    dnorms = sums.pop().sum((0, 1)) if norms is not None else None
    return dq, dk, dv, dnorms, dbias, None if mask is None else jnp.zeros_like(mask)


_attention.defvjp(lambda heads, interpret, *inputs: (_attention(heads, interpret, *inputs), inputs), _attention_backward)


def window_attention(q_WPD, k_WMD, v_WMD, heads: int, norms_4K=None, bias_NPM=None, mask_WM=None, interpret=False):
    """(W, P, N K), (W, M, N K), (W, M, N K) -> (W, P, N K).

    Args:
        norms_4K: scale and bias of the norm of queries, then of keys, float32; None: no norm.
        bias_NPM: added to the logits, float32.
        mask_WM: False where there is no key; each window has at least one.
        interpret: runs anywhere, slowly.
    """
    mask = None if mask_WM is None else jnp.where(mask_WM, 0.0, _ABSENT)[:, None].astype(jnp.float32)
    return _attention(heads, interpret, q_WPD, k_WMD, v_WMD, norms_4K, bias_NPM, mask)
