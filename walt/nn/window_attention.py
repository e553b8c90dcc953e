"""Attention of many small windows in one kernel for TPUs, forward and backward.

    y = softmax(LN(q) LN(k)^T / sqrt(K) + bias + mask) v        window by window, head by head

Keys and values are the window's own and, beside them, those of a text, with a mask. They come as two arrays, and only
their logits are put side by side, in the core: to do that with the tokens in HBM is to move all of them once more.

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
import itertools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from walt.nn.norm import EPSILON

_ROWS = 16
_LANES = 128
_HEADS = 8
# Arrays as large as the logits of a head: for each head of a block twice the bias and its gradient, and those that the
# backward pass holds at a time. Arrays as large as the tokens of a block: q, k, v and four gradients, twice.
_LOGITS, _HELD, _TOKENS = 4, 6, 14
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


def _of_each(keys, x_MP):
    """The rows of x that belong to each array of keys."""
    ends = itertools.accumulate(k_KM.shape[1] for k_KM in keys)
    return [x_MP[end - k_KM.shape[1] : end] for k_KM, end in zip(keys, ends)]


def _summed(keys, x_MP):
    """Over all keys, (K, P)."""
    return sum(_product('km,mp->kp', k_KM, x) for k_KM, x in zip(keys, _of_each(keys, x_MP)))


def _exponentials(q_KP, keys, bias_MP, mask_S1):
    """E and s of the module's docstring. The mask is of the last array of keys."""
    logits = [_product('km,kp->mp', k_KM, q_KP) for k_KM in keys]
    if mask_S1 is not None:
        logits[-1] += mask_S1
    logits_MP = jnp.concatenate(logits)
    if bias_MP is not None:
        logits_MP += bias_MP
    e_MP = jnp.exp2(logits_MP - logits_MP.max(0, keepdims=True))
    return e_MP, e_MP.sum(0, keepdims=True)


def _forward_head(q_KP, keys, values, norms_K4, bias_MP, mask_S1):
    """What one head puts out in one window, float32.

    Args:
        keys, values: a list of arrays, KM.
        norms_K4, bias_MP, mask_S1: may be None.
    """
    keys = [_keys(k_KM, norms_K4) for k_KM in keys]
    e_MP, sum_1P = _exponentials(_queries(q_KP, norms_K4), keys, bias_MP, mask_S1)
    return _summed(values, e_MP.astype(q_KP.dtype)) / sum_1P


def _backward_head(q_KP, keys, values, norms_K4, bias_MP, mask_S1, dy_KP):
    """Gradients of q, of all keys, of all values, of the norms (None without), and of the logits."""
    dtype = q_KP.dtype
    queries_KP, pull_back_queries = jax.vjp(_queries, q_KP, norms_K4)
    keys, pull_back_keys = jax.vjp(lambda keys, norms_K4: [_keys(k_KM, norms_K4) for k_KM in keys], keys, norms_K4)
    e_MP, sum_1P = _exponentials(queries_KP, keys, bias_MP, mask_S1)
    share_1P = 1 / sum_1P
    dy_KP = (dy_KP.astype(jnp.float32) * share_1P).astype(dtype)
    dvalues = [_product('kp,mp->km', dy_KP, e).astype(dtype) for e in _of_each(values, e_MP.astype(dtype))]
    de_MP = jnp.concatenate([_product('km,kp->mp', v_KM, dy_KP) for v_KM in values])
    mean_1P = (e_MP * de_MP).sum(0, keepdims=True) * share_1P
    dlogits_MP = e_MP * (de_MP - mean_1P)
    rounded_MP = dlogits_MP.astype(dtype)
    dqueries_KP = _summed(keys, rounded_MP) * (1 / _LOG2_E)
    dkeys = [_product('kp,mp->km', queries_KP, x) * (1 / _LOG2_E) for x in _of_each(keys, rounded_MP)]
    dq_KP, dnorms = pull_back_queries(dqueries_KP.astype(dtype))
    dkeys, of_keys = pull_back_keys([dk_KM.astype(dtype) for dk_KM in dkeys])
    return dq_KP, dkeys, dvalues, None if norms_K4 is None else dnorms + of_keys, dlogits_MP


@dataclasses.dataclass(frozen=True)
class _Grid:
    """How the kernels go over W windows of (tokens, heads x K). There is a length for each array of keys."""

    windows: int
    queries: int
    lengths: tuple[int, ...]
    heads: int
    width: int

    @property
    def keys(self) -> int:
        return sum(self.lengths)

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
        return (_LOGITS * block + _HELD) * logits + _TOKENS * tokens

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

    def inputs(self, norms, bias, mask) -> tuple:
        """What the blocks are of (q, keys, values, norms, bias, mask); the last three may be None."""
        each, keys = self.windows // self.halves, list(map(self.tokens, self.lengths))
        of_norms = pl.BlockSpec((self.width, 4), lambda b, h, i: (0, 0))
        of_bias = pl.BlockSpec((self.block, self.keys, self.queries), lambda b, h, i: (b, 0, 0))
        of_mask = pl.BlockSpec((None, self.lengths[-1], 1), lambda b, h, i: (h * each + i, 0, 0))
        optional = zip((of_norms, of_bias, of_mask), (norms, bias, mask))
        return self.tokens(self.queries), keys, keys, *(None if x is None else spec for spec, x in optional)

    def head(self, n: int, q, keys, values, norms, bias, mask) -> tuple:
        """The arguments of `_forward_head` for head `n` of the block; the bias for powers of two."""
        rows = self.rows(n)
        return (
            q[rows],
            [k[rows] for k in keys],
            [v[rows] for v in values],
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
    for n in range(grid.block):
        y[grid.rows(n)] = _forward_head(*grid.head(n, *inputs)).astype(y.dtype)


def _backward_kernel(grid: _Grid, *refs):
    *inputs, dy, dq, dkeys, dvalues, dnorms, dbias = refs

    @pl.when(pl.program_id(2) == 0)
    def _():
        for total in (dnorms, dbias):
            if total is not None:
                total[...] = jnp.zeros(total.shape, total.dtype)

    for n in range(grid.block):
        rows = grid.rows(n)
        of_q, of_keys, of_values, of_norms, of_bias = _backward_head(*grid.head(n, *inputs), dy[rows])
        for ref, value in zip((dq, *dkeys, *dvalues), (of_q, *of_keys, *of_values)):
            ref[rows] = value
        if dnorms is not None:
            dnorms[...] += of_norms
        if dbias is not None:
            dbias[n] += of_bias


def _grid(heads, q, keys) -> _Grid:
    lengths = tuple(k.shape[2] for k in keys)
    return _Grid(windows=q.shape[0], queries=q.shape[2], lengths=lengths, heads=heads, width=q.shape[1] // heads)


def _call(kernel, grid: _Grid, inputs, in_specs, out_shape, out_specs, products: int, interpret: bool, name: str):
    arrays = jax.tree.leaves((inputs, out_shape))
    return pl.pallas_call(
        functools.partial(kernel, grid),
        grid=grid.steps,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        cost_estimate=grid.cost(products, moved=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=grid.limit
        ),
        interpret=interpret,
        name=name,
        metadata={'steps': str(math.prod(grid.steps))},  # for those who read the compiled program
    )(*inputs)


def _like(tree, *before: int):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*before, *x.shape), x.dtype), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(heads: int, interpret: bool, *inputs):
    """Of q, keys, values, norms, bias and mask."""
    q, keys, _, *optional = inputs
    grid = _grid(heads, q, keys)
    of_inputs, of_y = grid.inputs(*optional), grid.tokens(grid.queries)
    return _call(_forward_kernel, grid, inputs, of_inputs, _like(q), of_y, 2, interpret, 'window_attention')


def _attention_backward(heads: int, interpret: bool, inputs, dy):
    q, keys, values, norms, bias, mask = inputs
    grid = _grid(heads, q, keys)
    of_q, of_keys, of_values, *_ = of_inputs = grid.inputs(norms, bias, mask)
    blocks, halves, _ = grid.steps
    shapes = [*_like((q, keys, values)), _like(norms, halves, blocks), _like(bias, halves)]
    specs = [of_q, of_keys, of_values, None, None]
    if norms is not None:
        specs[3] = pl.BlockSpec((None, None, *norms.shape), lambda b, h, i: (h, b, 0, 0))
    if bias is not None:
        specs[4] = pl.BlockSpec((None, grid.block, *bias.shape[1:]), lambda b, h, i: (h, b, 0, 0))
    name = 'window_attention_gradient'
    *of_tokens, dnorms, dbias = _call(
        _backward_kernel, grid, (*inputs, dy), (*of_inputs, of_q), shapes, specs, 5, interpret, name
    )
    dnorms = None if norms is None else dnorms.sum((0, 1))
    dbias = None if bias is None else dbias.sum(0)
    return *of_tokens, dnorms, dbias, jax.tree.map(jnp.zeros_like, mask)


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
    return _Grid(1, queries, (keys,), heads, width).fits


def window_attention(q_WEP, k_WEM, v_WEM, heads: int, norms_K4=None, bias_NMP=None, text=None, interpret=False):
    """(W, N K, P), (W, N K, M), (W, N K, M) -> (W, N K, P).

    Args:
        norms_K4: scale and bias of the norm of queries, then of keys, float32; None: no norm.
        bias_NMP: added to the logits, keys first and the text's last of them, float32.
        text: more keys and values, and which of them there are: (W, N K, S), (W, N K, S), (W, S) of bool.
        interpret: runs anywhere, slowly.
    """
    keys, values, mask = [k_WEM], [v_WEM], None
    if text is not None:
        k_WES, v_WES, there_WS = text
        keys, values = [*keys, k_WES], [*values, v_WES]
        mask = jnp.where(there_WS, 0.0, _ABSENT)[..., None].astype(jnp.float32)
    return _attention(heads, interpret, q_WEP, keys, values, norms_K4, bias_NMP, mask)
