"""BERT's encoder (arXiv:1810.04805), for inference: layer norm after each sum, learned absolute positions.

    x   = LN(token + position)
    x  <- LN(x + attention(x))          softmax(q k^T / sqrt(K)) v over the tokens that the mask leaves
    x  <- LN(x + W2 gelu(W1 x))         gelu with the error function                                  (depth times)

Every token is of the first segment, whose vector is added to the positions' when weights are read.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.nn import initializers

from walt.nn.einsum import Einsum
from walt.precision import PARAM_DTYPE
from walt.weights import check_arrays


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-12, dtype=jnp.float32, name=name)


class BertLayer(nn.Module):
    """(x_BSD, mask_BS) -> (B, S, D)."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x_BSD, mask_BS):
        width = x_BSD.shape[-1]
        head = width // self.heads
        qkv = Einsum('BSD,DJNK->BSJNK', (width, 3, self.heads, head), ('embed', None, 'heads', 'head'), name='qkv')
        q_BSNK, k_BSNK, v_BSNK = jnp.moveaxis(qkv(x_BSD), 2, 0)
        y_BSNK = jax.nn.dot_product_attention(q_BSNK, k_BSNK, v_BSNK, mask=mask_BS[:, None, None])
        out = Einsum('BSNK,NKD->BSD', (self.heads, head, width), ('heads', 'head', 'embed'), name='out')
        x_BSD = _norm('attention_norm')(x_BSD + out(y_BSNK))
        up = Einsum('BSD,DF->BSF', (width, self.hidden), ('embed', 'mlp'), name='up')
        down = Einsum('BSF,FD->BSD', (self.hidden, width), ('mlp', 'embed'), name='down')
        return _norm('mlp_norm')(x_BSD + down(nn.gelu(up(x_BSD), approximate=False)))


class Bert(nn.Module):
    """(ids_BS int, mask_BS bool) -> last hidden states, float32 (B, S, D). S is at most `positions`.

    Attributes:
        tokens: size of the vocabulary.
        width: D, a multiple of `heads`.
        hidden: F, width of the MLP.
    """

    tokens: int
    positions: int
    width: int
    depth: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, ids_BS, mask_BS):
        init = initializers.normal(0.02)
        tokens = self.param('tokens', init, (self.tokens, self.width), PARAM_DTYPE)
        positions = self.param('positions', init, (self.positions, self.width), PARAM_DTYPE)
        x_BSD = _norm('norm')(tokens[ids_BS] + positions[: ids_BS.shape[1]])
        for layer in range(self.depth):
            x_BSD = BertLayer(self.heads, self.hidden, name=f'layer_{layer}')(x_BSD, mask_BS)
        return x_BSD


def bert_params(arrays: Mapping[str, np.ndarray], module: Bert, source) -> dict:
    """The parameters of `module` from the state dict of transformers' BertModel, whose matrices are (out, in).

    Raises:
        ValueError: if an array is missing or has another shape; `source` names the file.
    """
    width, hidden = module.width, module.hidden
    square, vector = (width, width), (width,)
    in_layer = {f'attention.self.{part}': (square, vector) for part in ('query', 'key', 'value')}
    in_layer |= {
        'attention.output.dense': (square, vector),
        'attention.output.LayerNorm': (vector, vector),
        'intermediate.dense': ((hidden, width), (hidden,)),
        'output.dense': ((width, hidden), vector),
        'output.LayerNorm': (vector, vector),
    }
    shapes = {
        'embeddings.word_embeddings.weight': (module.tokens, width),
        'embeddings.position_embeddings.weight': (module.positions, width),
        'embeddings.token_type_embeddings.weight': (2, width),
        'embeddings.LayerNorm.weight': vector,
        'embeddings.LayerNorm.bias': vector,
    }
    for layer in range(module.depth):
        for name, (weight, bias) in in_layer.items():
            shapes[f'encoder.layer.{layer}.{name}.weight'] = weight
            shapes[f'encoder.layer.{layer}.{name}.bias'] = bias
    arrays = check_arrays(arrays, shapes, source)

    def norm(name):
        return {'scale': arrays[f'{name}.weight'], 'bias': arrays[f'{name}.bias']}

    def dense(name, pattern='out into -> into out', **extents):
        """`pattern` is of the matrix; the bias has its output axes."""
        kernel = rearrange(arrays[f'{name}.weight'], pattern, **extents)
        return {'kernel': kernel, 'bias': arrays[f'{name}.bias']}

    def layer(prefix):
        heads = [
            dense(f'{prefix}.attention.self.{part}', '(N K) D -> D N K', N=module.heads)
            for part in ('query', 'key', 'value')
        ]
        return {
            'qkv': {
                'kernel': np.stack([part['kernel'] for part in heads], axis=1),
                'bias': np.stack([rearrange(part['bias'], '(N K) -> N K', N=module.heads) for part in heads]),
            },
            'out': dense(f'{prefix}.attention.output.dense', 'D (N K) -> N K D', N=module.heads),
            'attention_norm': norm(f'{prefix}.attention.output.LayerNorm'),
            'up': dense(f'{prefix}.intermediate.dense'),
            'down': dense(f'{prefix}.output.dense'),
            'mlp_norm': norm(f'{prefix}.output.LayerNorm'),
        }

    segment_D = arrays['embeddings.token_type_embeddings.weight'][0]
    return {
        'tokens': arrays['embeddings.word_embeddings.weight'],
        'positions': arrays['embeddings.position_embeddings.weight'] + segment_D,
        'norm': norm('embeddings.LayerNorm'),
        **{f'layer_{number}': layer(f'encoder.layer.{number}') for number in range(module.depth)},
    }
