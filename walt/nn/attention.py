"""Multi-head attention with QK-norm: of a window to itself, and of a window to itself and a text.

    self      softmax(LN(q) LN(k)^T / sqrt(K) + bias) v         q, k, v of the window
    cross     softmax(LN(q) LN(k)^T / sqrt(K) + mask) v         q of the window; k, v of [window, text]

Each row of the batch has G windows of P tokens. Devices may share the windows or the queries of a window, as `Split`
says; of a window whose queries they share, each holds all keys and values.

LayerNorm on queries and keys, head by head, keeps the logits bounded as models grow (ViT-22B; W.A.L.T, section 5.2).
That the window's own tokens are among the keys of the text's layer is section 4.3; its logits have no bias, neither for
the text's keys nor for the window's, which the paper leaves open.

In programs for TPUs one kernel does it all, norms included, where that pays (`walt.nn.window_attention`); not with
rotary positions. Its arrays have the tokens last, BGEP for heads and their width E = N K in one.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from walt.nn.einsum import zeros
from walt.nn.embeddings import rotate
from walt.nn.norm import LayerNorm, NormParameters
from walt.nn.remat import of_attention
from walt.nn.segment_attention import segment_attention
from walt.nn.shards import shards, whole
from walt.nn.window_attention import pays, window_attention
from walt.precision import PARAM_DTYPE

Split = tuple[str | None, str | None]
"""Logical names of the windows G and of the queries P in them, None where no devices share them."""

WHOLE: Split = (None, None)


class Attention(nn.Module):
    """x_BGPD -> (B, G, P, D): every token attends to all P tokens of its window.

    Attributes:
        heads: N; the width of x must be a multiple.
        qk_norm: normalise queries and keys by head.
        split: of the windows over devices.
        use_bias: projections have a bias.
    """

    heads: int
    qk_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    split: Split = WHOLE
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_BGPD, bias_NPP=None, angles_PA=None, alone_B=None, ids_BL=None):
        """
        Args:
            bias_NPP: added to the logits.
            angles_PA: of rotary positions, by which queries and keys are turned; (B, 1, L, A) where rows differ.
            ids_BL: of packed rows, given as one window of L tokens: attention within equal ids, without a bias; 0 is
                padding (`walt.nn.segment_attention`).
            alone_B: rows whose tokens attend to themselves and to nothing else, bool. A softmax over one logit is 1, so
                what comes out of the attention is the token's value.
        """
        length, width = x_BGPD.shape[2:]
        if ids_BL is not None and (bias_NPP is not None or x_BGPD.shape[1] > 1):
            raise ValueError(f'ids are of packed rows without a bias, not of {x_BGPD.shape[1]} windows or with one')
        fused = angles_PA is None and ids_BL is None and pays(length, length, self.heads, width // self.heads)
        q, k, v = Heads(3, self.heads, fused, self.dtype, self.use_bias, name='qkv')(x_BGPD)
        if fused:
            norms_K4 = _norms(width // self.heads) if self.qk_norm else None
            bias_NMP = None if bias_NPP is None else bias_NPP.swapaxes(1, 2)
            y = _fused(q, k, v, self.heads, self.split, norms_K4, bias_NMP)
        else:
            q, k = _normed(q, k, self.dtype) if self.qk_norm else (q, k)
            if angles_PA is not None:
                q, k = rotate(q, angles_PA), rotate(k, angles_PA)
            if ids_BL is None:
                bias_1NPP = None if bias_NPP is None else bias_NPP[None].astype(self.dtype)
                y = _attend(q, k, v, self.split, bias=bias_1NPP)
            else:
                y = segment_attention(q[:, 0], k[:, 0], v[:, 0], ids_BL)[:, None]
        y = of_attention(y)
        if alone_B is not None:
            y = jnp.where(alone_B.reshape(-1, *(1,) * (y.ndim - 1)), v, y)
        return Out(width, self.heads, dtype=self.dtype, use_bias=self.use_bias, name='out')(y)


class SegmentPool(nn.Module):
    """x_BLD of packed rows, segment_BL -> (B, E, D): for each of `most` clips what a learned query finds among its
    tokens (attention pooling). A clip that is not there has zeros. Attributes as `Attention`, without biases.
    """

    most: int
    heads: int
    qk_norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD, segment_BL):
        batch, _, width = x_BLD.shape
        init = nn.with_logical_partitioning(initializers.normal(1.0), ('embed',))
        probe_D = whole(self.param('probe', init, (width,), PARAM_DTYPE), ('embed',))
        heads = (self.heads, False, self.dtype, False)
        (q_111NK,) = Heads(1, *heads, name='q')(probe_D[None, None, None])
        k_B1LNK, v_B1LNK = Heads(2, *heads, name='kv')(x_BLD[:, None])
        q_111NK, k_B1LNK = _normed(q_111NK, k_B1LNK, self.dtype) if self.qk_norm else (q_111NK, k_B1LNK)
        q_BENK = jnp.broadcast_to(q_111NK[:, 0], (batch, self.most, *q_111NK.shape[3:]))
        of_clip_BEL = segment_BL[:, None] == jnp.arange(1, self.most + 1)[:, None]
        y_BENK = jax.nn.dot_product_attention(q_BENK, k_B1LNK[:, 0], v_B1LNK[:, 0], mask=of_clip_BEL[:, None])
        y_BENK = jnp.where(of_clip_BEL.any(-1)[..., None, None], y_BENK, 0)
        return Out(width, self.heads, dtype=self.dtype, use_bias=False, name='out')(y_BENK[:, None])[:, 0]


class CrossAttention(nn.Module):
    """x_BGPD, text_BTSD, mask_BTS -> (B, G, P, D), zero at initialisation.

    G is a multiple of T: text 0, ..., T - 1 are those of windows 0, ..., T - 1, and again of the T after them. Masked
    tokens of the text (False) are no keys. Attributes as `Attention`.
    """

    heads: int
    qk_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x_BGPD, text_BTSD, mask_BTS):
        batch, windows, length, width = x_BGPD.shape
        times = windows // text_BTSD.shape[1]
        fused = pays(length, length + text_BTSD.shape[2], self.heads, width // self.heads)
        (q,) = Heads(1, self.heads, fused, self.dtype, name='q')(x_BGPD)
        to_kv = Heads(2, self.heads, fused, self.dtype, name='kv')
        own = to_kv(x_BGPD)
        of_text = [jnp.tile(y, (1, times) + (1,) * (y.ndim - 2)) for y in to_kv(text_BTSD)]
        there_BGS = jnp.tile(mask_BTS, (1, times, 1))
        if fused:
            norms_K4 = _norms(width // self.heads) if self.qk_norm else None
            y = _fused(q, *own, self.heads, self.split, norms_K4, text=(*of_text, there_BGS))
        else:
            k, v = (jnp.concatenate(pair, axis=2) for pair in zip(own, of_text))
            q, k = _normed(q, k, self.dtype) if self.qk_norm else (q, k)
            mask_BGM = jnp.concatenate([jnp.ones((batch, windows, length), bool), there_BGS], axis=2)
            y = _attend(q, k, v, self.split, mask=mask_BGM[:, :, None, None])
        return Out(width, self.heads, zeros, self.dtype, name='out')(of_attention(y))


class Heads(nn.Module):
    """x_BGPD -> `count` arrays: (B, G, P, N, K), or (B, G, N K, P) from a product each, as the fused kernel takes them.

    The parameters are the same: `kernel`, (D, count, N, K) without a count of 1, and `bias`, if it has one.
    """

    count: int
    heads: int
    fused: bool = False
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_BGPD):
        width = x_BGPD.shape[-1]
        S, counted, of_count = ('S', (self.count,), (None,)) if self.count > 1 else ('', (), ())
        shape, axes = (*counted, self.heads, width // self.heads), (*of_count, 'heads', 'head')
        init = initializers.variance_scaling(1.0, 'fan_avg', 'uniform', [0], range(1, len(shape) + 1))
        init = nn.with_logical_partitioning(init, ('embed', *axes))
        kernel = self.param('kernel', init, (width, *shape), PARAM_DTYPE)
        bias = jnp.zeros(shape)
        if self.use_bias:
            bias = self.param('bias', nn.with_logical_partitioning(zeros, axes), shape, PARAM_DTYPE)
        kernel, bias = whole(kernel.astype(self.dtype), ('embed', *axes)), bias.astype(self.dtype)
        x_BGPD = x_BGPD.astype(self.dtype)
        if self.fused:
            kernel, bias = kernel.reshape(width, self.count, -1), bias.reshape(self.count, -1, 1)
            return [jnp.einsum('BGPD,DE->BGEP', x_BGPD, kernel[:, i]) + bias[i] for i in range(self.count)]
        y = jnp.einsum(f'BGPD,D{S}NK->BGP{S}NK', x_BGPD, kernel) + bias
        return [y[..., i, :, :] for i in range(self.count)] if counted else [y]


class Out(nn.Module):
    """(B, G, P, N, K), or (B, G, N K, P) from the fused kernel, -> (B, G, P, D)."""

    width: int
    heads: int
    init: initializers.Initializer = initializers.variance_scaling(1.0, 'fan_avg', 'uniform', [0, 1], [2])
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, y):
        shape, axes = (self.heads, self.width // self.heads, self.width), ('heads', 'head', 'embed')
        kernel = self.param('kernel', nn.with_logical_partitioning(self.init, axes), shape, PARAM_DTYPE)
        bias = jnp.zeros(self.width)
        if self.use_bias:
            bias = self.param('bias', nn.with_logical_partitioning(zeros, ('embed',)), (self.width,), PARAM_DTYPE)
        kernel, bias = whole(kernel.astype(self.dtype), axes), whole(bias.astype(self.dtype), ('embed',))
        if y.ndim == 4:
            return jnp.einsum('BGEP,ED->BGPD', y, kernel.reshape(-1, self.width)) + bias
        return jnp.einsum('BGPNK,NKD->BGPD', y, kernel) + bias


def _norms(width: int):
    """norms_K4 of `window_attention`; the names are those of the caller's parameters."""
    return jnp.concatenate([NormParameters(width, name=name)() for name in ('q_norm', 'k_norm')], axis=1)


def _fused(q_BGEP, k_BGEM, v_BGEM, heads: int, split: Split, norms_K4, bias_NMP=None, text=None):
    """`window_attention`, on each device of its rows, its heads, and its windows or queries; the text by windows."""
    windows, queries = split
    of_q, of_k = ('batch', windows, 'heads', queries), ('batch', windows, 'heads', None)
    axes = (of_q, of_k, of_k, (None, None), ('heads', None, queries), (of_k, of_k, ('batch', windows, None)))
    arrays = (q_BGEP, k_BGEM, v_BGEM, norms_K4, bias_NMP, text)

    def of_device(q, k, v, norms, bias, text):
        (q_WEP, k_WEM, v_WEM), of_text = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ((q, k, v), text))
        return window_attention(q_WEP, k_WEM, v_WEM, heads // shards('heads'), norms, bias, of_text).reshape(q.shape)

    if jax.sharding.get_abstract_mesh().empty:
        return of_device(*arrays)
    specs = tuple(
        None if x is None else jax.tree.map(lambda _, names: nn.logical_to_mesh_axes(names), x, names)
        for x, names in zip(arrays, axes)
    )
    return jax.shard_map(of_device, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def _attend(q_BGPNK, k_BGMNK, v_BGMNK, split: Split, bias=None, mask=None):
    """Attention window by window. `mask` has the axes B, G; the rest of it, and `bias`, as JAX's attention."""
    windows, queries = split
    q_BGPNK = nn.with_logical_constraint(q_BGPNK, ('batch', windows, queries, 'heads', 'head'))
    k_BGMNK, v_BGMNK = (
        nn.with_logical_constraint(x, ('batch', windows, None, 'heads', 'head')) for x in (k_BGMNK, v_BGMNK)
    )

    def of_a_window(q, k, v, mask):
        return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask)

    axes = (1, 1, 1, None if mask is None else 1)
    return jax.vmap(of_a_window, in_axes=axes, out_axes=1)(q_BGPNK, k_BGMNK, v_BGMNK, mask)


def _normed(q_BGPNK, k_BGMNK, dtype):
    return tuple(
        LayerNorm('head', name=name)(x).astype(dtype) for name, x in (('q_norm', q_BGPNK), ('k_norm', k_BGMNK))
    )
