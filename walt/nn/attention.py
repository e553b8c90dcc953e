"""Multi-head attention with QK-norm: of a window to itself, and of a window to itself and a text.

    self      softmax(LN(q) LN(k)^T / sqrt(K) + bias) v         q, k, v of the window
    cross     softmax(LN(q) LN(k)^T / sqrt(K) + mask) v         q of the window; k, v of [window, text]

Each row of the batch has G windows of P tokens. Devices may share the windows or the queries of a window, as `Split`
says; of a window whose queries they share, each holds all keys and values.

LayerNorm on queries and keys, head by head, keeps the logits bounded as models grow (ViT-22B; W.A.L.T, section 5.2).
That the window's own tokens are among the keys of the text's layer is section 4.3; its logits have no bias, neither for
the text's keys nor for the window's, which the paper leaves open.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from walt.nn.einsum import Einsum, zeros
from walt.nn.embeddings import rotate
from walt.nn.norm import LayerNorm
from walt.nn.remat import of_attention

Split = tuple[str | None, str | None]
"""Logical names of the windows G and of the queries P in them, None where no devices share them."""

WHOLE: Split = (None, None)


class Attention(nn.Module):
    """x_BGPD -> (B, G, P, D): every token attends to all P tokens of its window.

    Attributes:
        heads: N; the width of x must be a multiple.
        qk_norm: normalise queries and keys by head.
        split: of the windows over devices.
    """

    heads: int
    qk_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x_BGPD, bias_NPP=None, angles_PA=None, alone_B=None):
        """
        Args:
            bias_NPP: added to the logits.
            angles_PA: of rotary positions, by which queries and keys are turned.
            alone_B: rows whose tokens attend to themselves and to nothing else, bool. A softmax over one logit is 1, so
                what comes out of the attention is the token's value.
        """
        width = x_BGPD.shape[-1]
        shape, axes = (width, 3, self.heads, width // self.heads), ('embed', None, 'heads', 'head')
        qkv = Einsum('BGPD,DSNK->BGPSNK', shape, axes, dtype=self.dtype, name='qkv')(x_BGPD)
        q_BGPNK, k_BGPNK, v_BGPNK = (qkv[..., i, :, :] for i in range(3))
        if self.qk_norm:
            q_BGPNK, k_BGPNK = _norm('q_norm', q_BGPNK, self.dtype), _norm('k_norm', k_BGPNK, self.dtype)
        if angles_PA is not None:
            q_BGPNK, k_BGPNK = rotate(q_BGPNK, angles_PA), rotate(k_BGPNK, angles_PA)
        bias = None if bias_NPP is None else bias_NPP[None].astype(self.dtype)
        y_BGPNK = of_attention(_attend(q_BGPNK, k_BGPNK, v_BGPNK, self.split, bias=bias))
        if alone_B is not None:
            y_BGPNK = jnp.where(alone_B[:, None, None, None, None], v_BGPNK, y_BGPNK)
        return _out(width, self.dtype)(y_BGPNK)


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
        shape = (width, self.heads, width // self.heads)
        q_BGPNK = Einsum('BGPD,DNK->BGPNK', shape, ('embed', 'heads', 'head'), dtype=self.dtype, name='q')(x_BGPD)
        shape, axes = (width, 2, *shape[1:]), ('embed', None, 'heads', 'head')
        to_kv = Einsum('BGPD,DSNK->BGPSNK', shape, axes, dtype=self.dtype, name='kv')
        of_text = jnp.tile(to_kv(text_BTSD), (1, times, 1, 1, 1, 1))
        kv = jnp.concatenate([to_kv(x_BGPD), of_text], axis=2)
        k_BGMNK, v_BGMNK = kv[..., 0, :, :], kv[..., 1, :, :]
        if self.qk_norm:
            q_BGPNK, k_BGMNK = _norm('q_norm', q_BGPNK, self.dtype), _norm('k_norm', k_BGMNK, self.dtype)
        own_BGP = jnp.ones((batch, windows, length), bool)
        mask_BGM = jnp.concatenate([own_BGP, jnp.tile(mask_BTS, (1, times, 1))], axis=2)
        y_BGPNK = of_attention(_attend(q_BGPNK, k_BGMNK, v_BGMNK, self.split, mask=mask_BGM[:, :, None, None]))
        return _out(width, self.dtype, zeros)(y_BGPNK)


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


def _norm(name: str, x, dtype):
    return LayerNorm('head', name=name)(x).astype(dtype)


def _out(width: int, dtype, init=None):
    """Heads -> width; the name of the caller's parameter is `out`."""

    def project(y_BGPNK):
        shape, axes = (*y_BGPNK.shape[3:], width), ('heads', 'head', 'embed')
        return Einsum('BGPNK,NKD->BGPD', shape, axes, init=init, dtype=dtype, name='out')(y_BGPNK)

    return project
