"""T5's encoder (arXiv:1910.10683; version 1.1: arXiv:2002.05202), for inference, and the names of its weights.

    b    = table[bucket(j - i)]                           a bias for each head and distance, of the first layer for all
    x   <- x + attention(RMS(x))                          softmax(q k^T + b) v, not divided by sqrt(K)
    x   <- x + W_o (gelu(W_0 RMS(x)) * W_1 RMS(x))        W_o relu(W RMS(x)) before version 1.1        (depth times)
    out  = RMS(x)

Nothing has a bias of its own, and RMS(x) = scale x / sqrt(mean(x^2) + epsilon). Of the buckets one half is for tokens
before, the other for those after. In each half, the first half of its buckets are single distances, and the rest grow
by a constant factor up to `farthest`. UMT5 has a table of biases in every layer.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

from walt.interop.table import Arrays, Row, Table
from walt.nn.einsum import Einsum
from walt.precision import PARAM_DTYPE


def buckets(length: int, count: int = 32, farthest: int = 128) -> np.ndarray:
    """(S, S) int: in which of `count` buckets a key at place j lies for a query at place i."""
    one_side = count // 2
    exact = one_side // 2
    distance_SS = np.arange(length) - np.arange(length)[:, None]
    # In float32, as it was trained: the edges at powers of 2 depend on it.
    far_SS = np.maximum(np.abs(distance_SS), exact).astype(np.float32) / np.float32(exact)
    grown_SS = np.log(far_SS) / np.float32(math.log(farthest / exact)) * np.float32(one_side - exact)
    far_SS = np.minimum(exact + grown_SS.astype(int), one_side - 1)
    near_SS = np.abs(distance_SS)
    return np.where(near_SS < exact, near_SS, far_SS) + one_side * (distance_SS > 0)


class T5Layer(nn.Module):
    """(x_BSD, bias_NSS, mask_BS) -> ((B, S, D), None), in the form that `nn.scan` takes; fields as `T5Encoder`."""

    heads: int
    head: int
    hidden: int
    activation: Callable
    gates: int
    epsilon: float

    @nn.compact
    def __call__(self, x_BSD, bias_NSS, mask_BS):
        width, heads = x_BSD.shape[-1], (self.heads, self.head)

        def projection(name, equation, shape, axes):
            return Einsum(equation, shape, axes, use_bias=False, name=name)

        def norm(name):
            return nn.RMSNorm(epsilon=self.epsilon, dtype=jnp.float32, name=name)

        qkv = projection('qkv', 'BSD,DJNK->BSJNK', (width, 3, *heads), ('embed', None, 'heads', 'head'))
        q_BSNK, k_BSNK, v_BSNK = jnp.moveaxis(qkv(norm('attention_norm')(x_BSD)), 2, 0)
        y_BSNK = jax.nn.dot_product_attention(
            q_BSNK, k_BSNK, v_BSNK, bias=bias_NSS[None], mask=mask_BS[:, None, None], scale=1.0
        )
        x_BSD += projection('out', 'BSNK,NKD->BSD', (*heads, width), ('heads', 'head', 'embed'))(y_BSNK)

        up = projection('up', 'BSD,DGF->GBSF', (width, 1 + self.gates, self.hidden), ('embed', None, 'mlp'))
        h_BSF, *gates = up(norm('mlp_norm')(x_BSD))
        h_BSF = math.prod(gates, start=self.activation(h_BSF))
        return x_BSD + projection('down', 'BSF,FD->BSD', (self.hidden, width), ('mlp', 'embed'))(h_BSF), None


class T5Encoder(nn.Module):
    """(ids_BS int, mask_BS bool) -> last hidden states, float32 (B, S, D).

    Attributes:
        tokens: size of the vocabulary.
        width: D; heads of width `head` need not make it up.
        hidden: F, width of the MLP.
        activation: of the MLP's hidden layer, which `gates` linear maps multiply: 1, or 0 before version 1.1.
        tables: of biases: 1, or one a layer.
        distances: (number of buckets, distance from which on all are in the last).
    """

    tokens: int
    width: int
    depth: int
    heads: int
    head: int
    hidden: int
    activation: Callable = nn.gelu  # flax's default is the approximation by tanh, as here
    gates: int = 1
    tables: int = 1
    distances: tuple[int, int] = (32, 128)
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, ids_BS, mask_BS):
        count, init = self.distances[0], initializers.normal(1.0)
        tokens_VD = self.param('tokens', init, (self.tokens, self.width), PARAM_DTYPE)
        distance_RUN = self.param('distance', init, (self.tables, count, self.heads), PARAM_DTYPE)
        bias_RNSS = jnp.moveaxis(distance_RUN[:, buckets(ids_BS.shape[1], *self.distances)], -1, 1)
        one = self.tables == 1
        layers = nn.scan(
            T5Layer,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=(nn.broadcast if one else 0, nn.broadcast),
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(self.heads, self.head, self.hidden, self.activation, self.gates, self.epsilon, name='layers')
        x_BSD, _ = layers(tokens_VD[ids_BS], bias_RNSS[0] if one else bias_RNSS, mask_BS)
        return nn.RMSNorm(epsilon=self.epsilon, dtype=jnp.float32, name='norm')(x_BSD)


def table(module: T5Encoder) -> Table:
    """Between transformers' names of T5, MT5 and UMT5 and ours; matrices are (out, in) there."""
    attention, mlp = 'encoder.block.{L}.layer.0', 'encoder.block.{L}.layer.1'
    layers = tuple(map(str, range(module.depth)))
    rows = [
        Row('shared.weight', 'tokens', 'V D -> V D'),
        Row('encoder.block.{R}.layer.0.SelfAttention.relative_attention_bias.weight', 'distance', 'R U N -> R U N'),
        Row(f'{attention}.layer_norm.weight', 'layers/attention_norm/scale', 'L D -> L D'),
        Row(f'{attention}.SelfAttention.{{J}}.weight', 'layers/qkv/kernel', 'L J (N K) D -> L D J N K'),
        Row(f'{attention}.SelfAttention.o.weight', 'layers/out/kernel', 'L D (N K) -> L N K D'),
        Row(f'{mlp}.layer_norm.weight', 'layers/mlp_norm/scale', 'L D -> L D'),
        Row(f'{mlp}.DenseReluDense.{{G}}.weight', 'layers/up/kernel', 'L G F D -> L D G F'),
        Row(f'{mlp}.DenseReluDense.wo.weight', 'layers/down/kernel', 'L D F -> L F D'),
        Row('encoder.final_layer_norm.weight', 'norm/scale', 'D -> D'),
    ]
    slots = {'L': layers, 'R': layers[: module.tables], 'J': ('q', 'k', 'v')}
    slots['G'] = tuple(f'wi_{part}' for part in range(1 + module.gates)) if module.gates else ('wi',)
    return Table(rows, slots, sizes={'N': module.heads})


def of_encoder(arrays: Mapping[str, np.ndarray], source) -> Arrays:
    """Without a decoder, and without the second name that files of PyTorch have for the table of tokens.

    Raises:
        ValueError: if there are two such tables that differ.
    """
    found = {name: array for name, array in arrays.items() if not name.startswith(('decoder.', 'lm_head.'))}
    second = found.pop('encoder.embed_tokens.weight', None)
    if second is not None and not np.array_equal(found.setdefault('shared.weight', second), second):
        raise ValueError(f'{source}: shared.weight and encoder.embed_tokens.weight differ')
    return found
