"""Multi-head attention with QK-norm: of a row to itself, and of a row to itself and a text.

    self      softmax(LN(q) LN(k)^T / sqrt(K) + bias) v         q, k, v of the row
    cross     softmax(LN(q) LN(k)^T / sqrt(K) + mask) v         q of the row; k, v of [row, text]

LayerNorm on queries and keys, head by head, keeps the logits bounded as models grow (ViT-22B; W.A.L.T, section 5.2).
That the row's own tokens are among the keys of the text's layer is section 4.3; its logits have no bias, neither for
the text's keys nor for the row's, which the paper leaves open.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from walt.nn.einsum import Einsum, zeros
from walt.nn.embeddings import rotate
from walt.nn.norm import LayerNorm


class Attention(nn.Module):
    """x_BLD -> (B, L, D): every token attends to all L tokens of its row.

    Attributes:
        heads: N; the width of x must be a multiple.
        qk_norm: normalise queries and keys by head.
    """

    heads: int
    qk_norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD, bias_NLL=None, angles_LA=None, alone_B=None):
        """
        Args:
            bias_NLL: added to the logits.
            angles_LA: of rotary positions, by which queries and keys are turned.
            alone_B: rows whose tokens attend to themselves and to nothing else, bool. A softmax over one logit is 1, so
                what comes out of the attention is the token's value.
        """
        width = x_BLD.shape[-1]
        head = width // self.heads
        axes = ('embed', None, 'heads', 'head')
        qkv = Einsum('BLD,DSNK->BLSNK', (width, 3, self.heads, head), axes, dtype=self.dtype, name='qkv')(x_BLD)
        q_BLNK, k_BLNK, v_BLNK = (qkv[:, :, i] for i in range(3))
        if self.qk_norm:
            q_BLNK, k_BLNK = _norm('q_norm', q_BLNK, self.dtype), _norm('k_norm', k_BLNK, self.dtype)
        if angles_LA is not None:
            q_BLNK, k_BLNK = rotate(q_BLNK, angles_LA), rotate(k_BLNK, angles_LA)
        bias = None if bias_NLL is None else bias_NLL[None].astype(self.dtype)
        y_BLNK = jax.nn.dot_product_attention(q_BLNK, k_BLNK, v_BLNK, bias=bias)
        if alone_B is not None:
            y_BLNK = jnp.where(alone_B[:, None, None, None], v_BLNK, y_BLNK)
        return _out(width, self.dtype)(y_BLNK)


class CrossAttention(nn.Module):
    """x_BLD, text_GSD, mask_GS -> (B, L, D), zero at initialisation.

    B is a multiple of G: the B / G rows that follow each other share a text. Masked tokens of the text (False) are no
    keys. Attributes as `Attention`.
    """

    heads: int
    qk_norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD, text_GSD, mask_GS):
        batch, length, width = x_BLD.shape
        shape = (width, self.heads, width // self.heads)
        q_BLNK = Einsum('BLD,DNK->BLNK', shape, ('embed', 'heads', 'head'), dtype=self.dtype, name='q')(x_BLD)
        shape, axes = (width, 2, *shape[1:]), ('embed', None, 'heads', 'head')
        to_kv = Einsum('BLD,DSNK->BLSNK', shape, axes, dtype=self.dtype, name='kv')
        of_text = jnp.repeat(to_kv(text_GSD), batch // len(text_GSD), axis=0)
        kv = jnp.concatenate([to_kv(x_BLD), of_text], axis=1)
        k_BMNK, v_BMNK = kv[:, :, 0], kv[:, :, 1]
        if self.qk_norm:
            q_BLNK, k_BMNK = _norm('q_norm', q_BLNK, self.dtype), _norm('k_norm', k_BMNK, self.dtype)
        mask_BS = jnp.repeat(mask_GS, batch // len(mask_GS), axis=0)
        mask_BM = jnp.concatenate([jnp.ones((batch, length), bool), mask_BS], axis=1)
        y_BLNK = jax.nn.dot_product_attention(q_BLNK, k_BMNK, v_BMNK, mask=mask_BM[:, None, None])
        return _out(width, self.dtype, zeros)(y_BLNK)


def _norm(name: str, x_BLNK, dtype):
    return LayerNorm('head', name=name)(x_BLNK).astype(dtype)


def _out(width: int, dtype, init=None):
    """Heads -> width; the name of the caller's parameter is `out`."""

    def project(y_BLNK):
        shape, axes = (*y_BLNK.shape[2:], width), ('heads', 'head', 'embed')
        return Einsum('BLNK,NKD->BLD', shape, axes, init=init, dtype=dtype, name='out')(y_BLNK)

    return project
