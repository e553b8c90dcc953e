"""Projections and multi-head attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.nn.attention import Attention, CrossAttention
from walt.nn.einsum import Einsum

HEADS = 2


@pytest.fixture
def x_BLD(rng):
    return jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)


@pytest.fixture
def bias_NLL(rng):
    return jnp.asarray(rng.normal(size=(HEADS, 5, 5)), jnp.float32)


def norm(y, p):
    """Layer norm over the last axis with learned scale and bias."""
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    return y * p['norm']['scale'] + p['norm']['bias']


@pytest.mark.parametrize('qk_norm', [True, False])
def test_attention_is_its_definition(qk_norm, x_BLD, bias_NLL, random_parameters):
    """softmax(LN(q) LN(k)^T / sqrt(K) + bias) v, head by head."""
    layer = Attention(HEADS, qk_norm)
    params = random_parameters(layer, x_BLD, bias_NLL)
    q, k, v = np.moveaxis(jnp.einsum('bld,dsnk->blsnk', x_BLD, params['qkv']['kernel']) + params['qkv']['bias'], 2, 0)
    if qk_norm:
        q, k = norm(q, params['q_norm']), norm(k, params['k_norm'])
    logits = np.einsum('blnk,bmnk->bnlm', q, k) / np.sqrt(4) + bias_NLL
    y = np.einsum('bnlm,bmnk->blnk', nn.softmax(logits), v)
    expected = np.einsum('blnk,nkd->bld', y, params['out']['kernel']) + params['out']['bias']
    np.testing.assert_allclose(layer.apply({'params': params}, x_BLD, bias_NLL), expected, atol=1e-5)


def test_a_row_alone_is_attention_under_the_identity_mask(x_BLD, bias_NLL, random_parameters):
    """Softmax over a matrix that is -inf off its diagonal; the other row attends as ever."""
    layer = Attention(HEADS)
    params = random_parameters(layer, x_BLD, bias_NLL)
    eye_NLL = jnp.broadcast_to(jnp.where(jnp.eye(5, dtype=bool), 0, -jnp.inf), (HEADS, 5, 5))
    masked, plain = (layer.apply({'params': params}, x_BLD, bias) for bias in (bias_NLL + eye_NLL, bias_NLL))
    mixed = layer.apply({'params': params}, x_BLD, bias_NLL, alone_B=jnp.array([True, False]))
    np.testing.assert_allclose(mixed[0], masked[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], plain[1], atol=1e-5)
    assert np.abs(masked - plain).max((1, 2)).min() > 0.1


def test_turned_by_angles_attention_sees_their_differences_only(x_BLD, rng, random_parameters):
    layer = Attention(HEADS)
    params = random_parameters(layer, x_BLD)
    angles_LA = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    plain, turned, shifted, other = (
        layer.apply({'params': params}, x_BLD, angles_LA=angles)
        for angles in (None, angles_LA, angles_LA + jnp.array([0.7, -2.0]), 2 * angles_LA)
    )
    np.testing.assert_allclose(shifted, turned, atol=1e-5)
    assert np.abs(turned - plain).max() > 1e-2 < np.abs(turned - other).max()


@pytest.fixture
def text(rng):
    """A text of four tokens for each of two groups; three and two of them are there."""
    tokens_GSD = jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32)
    return tokens_GSD, jnp.array([[True, True, False, True], [False, True, True, False]])


@pytest.fixture
def x_of_groups(rng):
    """Six rows, three for each group."""
    return jnp.asarray(rng.normal(size=(6, 5, 8)), jnp.float32)


@pytest.mark.parametrize('qk_norm', [True, False])
def test_cross_attention_is_its_definition(qk_norm, x_of_groups, text, random_parameters):
    """Row b asks; keys and values are those of [row b, the tokens of text b // 3 that are there]."""
    layer, (tokens_GSD, mask_GS) = CrossAttention(HEADS, qk_norm), text
    params = random_parameters(layer, x_of_groups, *text)
    got = layer.apply({'params': params}, x_of_groups, *text)
    for b, x_LD in enumerate(x_of_groups):
        known_MD = np.concatenate([x_LD, tokens_GSD[b // 3][np.asarray(mask_GS[b // 3])]])
        q = jnp.einsum('ld,dnk->lnk', x_LD, params['q']['kernel']) + params['q']['bias']
        k, v = np.moveaxis(jnp.einsum('md,dsnk->msnk', known_MD, params['kv']['kernel']) + params['kv']['bias'], 1, 0)
        if qk_norm:
            q, k = norm(q, params['q_norm']), norm(k, params['k_norm'])
        y = np.einsum('nlm,mnk->lnk', nn.softmax(np.einsum('lnk,mnk->nlm', q, k) / np.sqrt(4)), v)
        expected = np.einsum('lnk,nkd->ld', y, params['out']['kernel']) + params['out']['bias']
        np.testing.assert_allclose(got[b], expected, atol=1e-5)


def test_no_gradient_reaches_masked_tokens_or_the_text_of_another_group(x_of_groups, text, random_parameters):
    layer, (tokens_GSD, mask_GS) = CrossAttention(HEADS), text
    params = random_parameters(layer, x_of_groups, *text)

    def first_group(tokens_GSD):
        return jnp.square(layer.apply({'params': params}, x_of_groups, tokens_GSD, mask_GS)[:3]).sum()

    reached_GS = np.abs(jax.grad(first_group)(tokens_GSD)).max(-1) > 0
    np.testing.assert_array_equal(reached_GS, mask_GS & np.array([[True], [False]]))


def test_where_no_token_of_a_text_is_there_a_row_attends_to_itself(x_of_groups, text, random_parameters):
    layer, (tokens_GSD, mask_GS) = CrossAttention(HEADS), text
    params = random_parameters(layer, x_of_groups, *text)
    nothing = layer.apply({'params': params}, x_of_groups, tokens_GSD, jnp.zeros_like(mask_GS))
    no_text = layer.apply({'params': params}, x_of_groups, tokens_GSD[:, :0], mask_GS[:, :0])
    np.testing.assert_allclose(nothing, no_text, atol=1e-5)


def test_new_cross_attention_is_zero(x_BLD, text):
    y, _ = CrossAttention(HEADS).init_with_output(jax.random.key(0), x_BLD, *text)
    np.testing.assert_array_equal(y, np.zeros(x_BLD.shape))


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
