"""Attention of many small windows in one kernel for TPUs, forward and backward.

    y = softmax(LN(q) LN(k)^T / sqrt(K) + bias + mask) v        window by window, head by head

Compiled from einsums, the logits of a window go to HBM and come back several times, in float32, which takes longer than
the products. Here a window with all that is computed from it stays in the core's own memory (VMEM): a step of the grid
takes the tokens of one window, goes over its heads, and puts out their values. The backward pass does the same from the
same inputs, so nothing is kept for it. With E = 2^(logits - their maximum) and its sum s over the keys, M,

    y = v E / s        dv = (dy / s) E^T        dlogits = E (v^T dy / s - sum_M(E v^T dy / s) / s)

so that no array of logits is ever divided, and powers of two, which the hardware has, take the place of e: queries and
bias are scaled by log2 e. A step of the grid has several heads, as many as memory allows: the compiler then does the
products of one while it does the exponentials of another, and waits for less between steps (with eight in place of two,
a quarter less time forward and a fifth backward at 256 x 256 tokens on a v6e, by the simulation of its schedule).

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

from walt.nn.norm import EPSILON

_ROWS = 16
_LANES = 128
_HEADS = 8
# Arrays as large as the logits of a head: for each head of a block twice the bias and its gradient, and what the
# backward pass holds at a time. Arrays as large as the tokens of a block: q, k, v and four gradients, twice.
_LOGITS, _TOKENS = 4, 14
_ABSENT = -1e30
# Bytes of VMEM that a kernel may take.
_VMEM = 60 * 2**20
_LOG2_E = math.log2(math.e)


def _product(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _normalised(x_KP, scale_K1, bias_K1):
    """Layer norm over the first axis, float32 inside."""
    y = x_KP.astype(jnp.float32)
    y = y - y.mean(0, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(0, keepdims=True) + EPSILON)
    return (y * scale_K1 + bias_K1).astype(x_KP.dtype)


def _queries(q_KP, norms_K4):
    """Normalised, if there are norms, and over sqrt(K) ln 2."""
    scale = _LOG2_E * q_KP.shape[0] ** -0.5
    if norms_K4 is None:
        return (q_KP.astype(jnp.float32) * scale).astype(q_KP.dtype)
    return _normalised(q_KP, scale * norms_K4[:, 0:1], scale * norms_K4[:, 1:2])


def _keys(k_KM, norms_K4):
    return k_KM if norms_K4 is None else _normalised(k_KM, norms_K4[:, 2:3], norms_K4[:, 3:4])


def _exponentials(q_KP, k_KM, bias_MP, mask_M1):
    """E and s of the module's docstring."""
    logits_MP = _product('km,kp->mp', k_KM, q_KP)
    for addend in (bias_MP, mask_M1):
        logits_MP = logits_MP if addend is None else logits_MP + addend
    e_MP = jnp.exp2(logits_MP - logits_MP.max(0, keepdims=True))
    return e_MP, e_MP.sum(0, keepdims=True)


def _forward_head(q_KP, k_KM, v_KM, norms_K4, bias_MP, mask_M1):
    """The values that one head puts out in one window, float32; the last three arguments may be None."""
    e_MP, sum_1P = _exponentials(_queries(q_KP, norms_K4), _keys(k_KM, norms_K4), bias_MP, mask_M1)
    return _product('km,mp->kp', v_KM, e_MP.astype(v_KM.dtype)) / sum_1P


def _backward_head(q_KP, k_KM, v_KM, norms_K4, bias_MP, mask_M1, dy_KP):
    """Gradients of q, k, v, of the norms (None without), and of the logits."""
    dtype = v_KM.dtype
    queries_KP, pull_back_queries = jax.vjp(_queries, q_KP, norms_K4)
    keys_KM, pull_back_keys = jax.vjp(_keys, k_KM, norms_K4)
    e_MP, sum_1P = _exponentials(queries_KP, keys_KM, bias_MP, mask_M1)
    share_1P = 1 / sum_1P
    dy_KP = (dy_KP.astype(jnp.float32) * share_1P).astype(dtype)
    dv_KM = _product('kp,mp->km', dy_KP, e_MP.astype(dtype)).astype(dtype)
    de_MP = _product('km,kp->mp', v_KM, dy_KP)
    mean_1P = (e_MP * de_MP).sum(0, keepdims=True) * share_1P
    dlogits_MP = e_MP * (de_MP - mean_1P)
    rounded_MP = dlogits_MP.astype(dtype)
    dqueries_KP = _product('km,mp->kp', keys_KM, rounded_MP) * (1 / _LOG2_E)
    dkeys_KM = _product('kp,mp->km', queries_KP, rounded_MP) * (1 / _LOG2_E)
    dq_KP, dnorms = pull_back_queries(dqueries_KP.astype(dtype))
    dk_KM, of_keys = pull_back_keys(dkeys_KM.astype(dtype))
    return dq_KP, dk_KM, dv_KM, None if norms_K4 is None else dnorms + of_keys, dlogits_MP


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
        """Heads in a block: the most, up to eight, that fit and whose width is a multiple of the rows of a tile.

        Where there is no such number, two of them or all; whether those fit, `fits` says.
        """
        counts = [n for n in range(2, self.heads) if self.heads % n == 0 and n * self.width % _ROWS == 0]
        fitting = [n for n in counts if n <= _HEADS and self.bytes(n) <= _VMEM]
        return max(fitting, default=min(counts, default=self.heads))

    def bytes(self, block: int) -> int:
        """Of VMEM, about, that the backward pass takes."""
        queries, keys = (-(-length // _LANES) * _LANES for length in (self.queries, self.keys))
        logits, tokens = 4 * self.keys * queries, 2 * block * self.width * max(queries, keys)
        return _LOGITS * (1 + block) * logits + _TOKENS * tokens

    @property
    def limit(self) -> int:
        """Bytes of VMEM for the kernels; what is left, the compiler has for its own."""
        return min(_VMEM, self.bytes(self.block) * 5 // 4)

    @property
    def fits(self) -> bool:
        return self.bytes(self.block) <= _VMEM

    @property
    def halves(self) -> int:
        return 2 if self.windows % 2 == 0 else 1

    @property
    def steps(self) -> tuple[int, int, int]:
        return self.heads // self.block, self.halves, self.windows // self.halves

    def rows(self, n: int) -> slice:
        """Of head `n` of a block."""
        return slice(n * self.width, (n + 1) * self.width)

    def tokens(self, length: int) -> pl.BlockSpec:
        each = self.windows // self.halves
        return pl.BlockSpec((None, self.block * self.width, length), lambda b, h, i: (h * each + i, b, 0))

    def inputs(self) -> list[pl.BlockSpec]:
        """Of q, k, v and, where they are given, norms, bias and mask."""
        each, keys = self.windows // self.halves, self.tokens(self.keys)
        norms = pl.BlockSpec((self.width, 4), lambda b, h, i: (0, 0))
        bias = pl.BlockSpec((self.block, self.keys, self.queries), lambda b, h, i: (b, 0, 0))
        mask = pl.BlockSpec((None, self.keys, 1), lambda b, h, i: (h * each + i, 0, 0))
        optional = zip((norms, bias, mask), (self.normalises, self.has_bias, self.has_mask))
        return [self.tokens(self.queries), keys, keys, *(spec for spec, given in optional if given)]

    def read(self, refs) -> list:
        """[q, k, v, norms, bias, mask] from the references that there are."""
        refs, given = iter(refs), (True, True, True, self.normalises, self.has_bias, self.has_mask)
        return [next(refs) if there else None for there in given]

    def head(self, refs, n: int) -> tuple:
        """The arguments of `_forward_head` for head `n` of the block; the bias for powers of two."""
        *tokens, norms, bias, mask = refs
        return (
            *(ref[self.rows(n)] for ref in tokens),
            None if norms is None else norms[...],
            None if bias is None else _LOG2_E * bias[n],
            None if mask is None else mask[...],
        )

    def cost(self, products: int, moved: int) -> pl.CostEstimate:
        """Of a pass with so many products of a head's queries and keys: FLOPs without padding, exponentials with it."""
        of_windows = self.windows * self.heads
        flops = 2 * products * of_windows * self.queries * self.keys * self.width
        logits = of_windows * -(-self.keys // 8) * 8 * -(-self.queries // _LANES) * _LANES
        return pl.CostEstimate(flops=flops, transcendentals=logits, bytes_accessed=moved)


def _forward_kernel(grid: _Grid, *refs):
    *inputs, y = refs
    inputs = grid.read(inputs)
    for n in range(grid.block):
        y[grid.rows(n)] = _forward_head(*grid.head(inputs, n)).astype(y.dtype)


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
        rows = grid.rows(n)
        *of_tokens, of_norms, of_bias = _backward_head(*grid.head(inputs, n), dy[rows])
        for ref, value in zip((dq, dk, dv), of_tokens):
            ref[rows] = value
        if dnorms is not None:
            dnorms[...] += of_norms
        if dbias is not None:
            dbias[n] += of_bias


def _grid(heads, q, k, norms, bias, mask) -> _Grid:
    return _Grid(
        windows=q.shape[0],
        queries=q.shape[2],
        keys=k.shape[2],
        heads=heads,
        width=q.shape[1] // heads,
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
            dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=grid.limit
        ),
        interpret=interpret,
        name=name,
        metadata={'steps': str(math.prod(grid.steps))},  # for those who read the compiled program
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
    specs = [grid.tokens(x.shape[2]) for x in (q, k, v)]
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


def _attention_forward(heads: int, interpret: bool, *inputs):
    return _attention(heads, interpret, *inputs), inputs


_attention.defvjp(_attention_forward, _attention_backward)


def platform() -> str:
    """What the program being traced is for: 'cpu', 'gpu' or 'tpu'."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def pays(queries: int, keys: int, heads: int, width: int) -> bool:
    """Whether the program being traced is for TPUs, and windows are such that a kernel is there faster than einsums.

    They fill the lanes, and what is held of a head in VMEM fits.
    """
    if platform() != 'tpu' or min(queries, keys) < _LANES:
        return False
    return _Grid(1, queries, keys, heads, width, True, True, False).fits


def window_attention(q_WEP, k_WEM, v_WEM, heads: int, norms_K4=None, bias_NMP=None, mask_WM=None, interpret=False):
    """(W, N K, P), (W, N K, M), (W, N K, M) -> (W, N K, P).

    Args:
        norms_K4: scale and bias of the norm of queries, then of keys, float32; None: no norm.
        bias_NMP: added to the logits, keys first, float32.
        mask_WM: False where there is no key; each window has at least one.
        interpret: runs anywhere, slowly.
    """
    mask = None if mask_WM is None else jnp.where(mask_WM, 0.0, _ABSENT)[..., None].astype(jnp.float32)
    return _attention(heads, interpret, q_WEP, k_WEM, v_WEM, norms_K4, bias_NMP, mask)
