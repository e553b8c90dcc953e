"""Projections and multi-head attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.nn.attention import Attention
from walt.nn.einsum import Einsum

HEADS = 2


@pytest.fixture
def x_BLD(rng):
    return jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)


@pytest.fixture
def bias_NLL(rng):
    return jnp.asarray(rng.normal(size=(HEADS, 5, 5)), jnp.float32)


@pytest.mark.parametrize('qk_norm', [True, False])
def test_attention_is_its_definition(qk_norm, x_BLD, bias_NLL, random_parameters):
    """softmax(LN(q) LN(k)^T / sqrt(K) + bias) v, head by head."""
    layer = Attention(HEADS, qk_norm)
    params = random_parameters(layer, x_BLD, bias_NLL)
    q, k, v = np.moveaxis(jnp.einsum('bld,dsnk->blsnk', x_BLD, params['qkv']['kernel']) + params['qkv']['bias'], 2, 0)
    if qk_norm:
        q, k = (
            (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * p['norm']['scale']
            + p['norm']['bias']
            for y, p in ((q, params['q_norm']), (k, params['k_norm']))
        )
    logits = np.einsum('blnk,bmnk->bnlm', q, k) / np.sqrt(4) + bias_NLL
    y = np.einsum('bnlm,bmnk->blnk', nn.softmax(logits), v)
    expected = np.einsum('blnk,nkd->bld', y, params['out']['kernel']) + params['out']['bias']
    np.testing.assert_allclose(layer.apply({'params': params}, x_BLD, bias_NLL), expected, atol=1e-5)


def test_without_a_bias_attention_knows_no_order(x_BLD, random_parameters):
    layer = Attention(HEADS)
    params = random_parameters(layer, x_BLD)
    order = np.array([3, 0, 4, 1, 2])
    y, permuted = (layer.apply({'params': params}, x) for x in (x_BLD, x_BLD[:, order]))
    np.testing.assert_allclose(permuted, y[:, order], atol=1e-5)


def test_a_projection_is_its_equation_with_a_bias_over_the_new_axes(x_BLD, random_parameters):
    layer = Einsum('...D,DNK->...NK', (8, 2, 3), ('embed', 'heads', 'head'))
    params = random_parameters(layer, x_BLD)
    assert params['bias'].shape == (2, 3)
    expected = jnp.einsum('bld,dnk->blnk', x_BLD, params['kernel']) + params['bias']
    np.testing.assert_allclose(layer.apply({'params': params}, x_BLD), expected, atol=1e-5)


def test_a_projection_names_the_axes_of_kernel_and_bias(x_BLD):
    layer = Einsum('BLD,DSNK->BLSNK', (8, 3, 2, 4), ('embed', None, 'heads', 'head'))
    _, variables = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), x_BLD))
    boxed = variables['params']
    assert boxed['kernel'].names == ('embed', None, 'heads', 'head')
    assert boxed['bias'].names == (None, 'heads', 'head')


def test_a_projection_keeps_the_variance_of_its_input_to_a_factor(rng):
    """Xavier: fan in and fan out are the contracted and the new axes, however many they are."""
    x = jnp.asarray(rng.normal(size=(200, 32)), jnp.float32)
    for equation, shape in [('BD,DE->BE', (32, 32)), ('BD,DNK->BNK', (32, 4, 8))]:
        layer = Einsum(equation, shape, (None,) * len(shape))
        y, _ = layer.init_with_output(jax.random.key(0), x)
        np.testing.assert_allclose(y.std(), 1, atol=0.1)
    back = Einsum('BNK,NKD->BD', (4, 8, 32), (None, None, None))
    y, _ = back.init_with_output(jax.random.key(0), x.reshape(200, 4, 8))
    np.testing.assert_allclose(y.std(), 1, atol=0.1)
