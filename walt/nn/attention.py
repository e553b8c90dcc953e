"""Multi-head self-attention with QK-norm and a bias on the logits.

    softmax(LN(q) LN(k)^T / sqrt(K) + bias) v

LayerNorm on queries and keys, head by head, keeps the logits bounded as models grow (ViT-22B; W.A.L.T, section 5.2).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from walt.nn.einsum import Einsum
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
    def __call__(self, x_BLD, bias_NLL=None):
        width = x_BLD.shape[-1]
        head = width // self.heads
        axes = ('embed', None, 'heads', 'head')
        qkv = Einsum('BLD,DSNK->BLSNK', (width, 3, self.heads, head), axes, dtype=self.dtype, name='qkv')(x_BLD)
        q_BLNK, k_BLNK, v_BLNK = (qkv[:, :, i] for i in range(3))
        if self.qk_norm:
            q_BLNK = LayerNorm('head', name='q_norm')(q_BLNK).astype(self.dtype)
            k_BLNK = LayerNorm('head', name='k_norm')(k_BLNK).astype(self.dtype)
        bias = None if bias_NLL is None else bias_NLL[None].astype(self.dtype)
        y_BLNK = jax.nn.dot_product_attention(q_BLNK, k_BLNK, v_BLNK, bias=bias)
        out = Einsum(
            'BLNK,NKD->BLD', (self.heads, head, width), ('heads', 'head', 'embed'), dtype=self.dtype, name='out'
        )
        return out(y_BLNK)
