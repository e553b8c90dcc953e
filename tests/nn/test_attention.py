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
def x_BGPD(rng):
    """Two rows of three windows."""
    return jnp.asarray(rng.normal(size=(2, 3, 5, 8)), jnp.float32)


@pytest.fixture
def bias_NPP(rng):
    return jnp.asarray(rng.normal(size=(HEADS, 5, 5)), jnp.float32)


def norm(y, p):
    """Layer norm over the last axis with learned scale and bias."""
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    return y * p['norm']['scale'] + p['norm']['bias']


@pytest.mark.parametrize('qk_norm', [True, False])
def test_attention_is_its_definition(qk_norm, x_BGPD, bias_NPP, random_parameters):
    """softmax(LN(q) LN(k)^T / sqrt(K) + bias) v, head by head."""
    layer = Attention(HEADS, qk_norm)
    params = random_parameters(layer, x_BGPD, bias_NPP)
    q, k, v = np.moveaxis(
        jnp.einsum('bgpd,dsnk->bgpsnk', x_BGPD, params['qkv']['kernel']) + params['qkv']['bias'], 3, 0
    )
    if qk_norm:
        q, k = norm(q, params['q_norm']), norm(k, params['k_norm'])
    logits = np.einsum('bgpnk,bgmnk->bgnpm', q, k) / np.sqrt(4) + bias_NPP
    y = np.einsum('bgnpm,bgmnk->bgpnk', nn.softmax(logits), v)
    expected = np.einsum('bgpnk,nkd->bgpd', y, params['out']['kernel']) + params['out']['bias']
    np.testing.assert_allclose(layer.apply({'params': params}, x_BGPD, bias_NPP), expected, atol=1e-5)


def test_a_row_alone_is_attention_under_the_identity_mask(x_BGPD, bias_NPP, random_parameters):
    """Softmax over a matrix that is -inf off its diagonal; the other row attends as ever."""
    layer = Attention(HEADS)
    params = random_parameters(layer, x_BGPD, bias_NPP)
    eye_NPP = jnp.broadcast_to(jnp.where(jnp.eye(5, dtype=bool), 0, -jnp.inf), (HEADS, 5, 5))
    masked, plain = (layer.apply({'params': params}, x_BGPD, bias) for bias in (bias_NPP + eye_NPP, bias_NPP))
    mixed = layer.apply({'params': params}, x_BGPD, bias_NPP, alone_B=jnp.array([True, False]))
    np.testing.assert_allclose(mixed[0], masked[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], plain[1], atol=1e-5)
    assert np.abs(masked - plain).max((1, 2, 3)).min() > 0.1


def test_turned_by_angles_attention_sees_their_differences_only(x_BGPD, rng, random_parameters):
    layer = Attention(HEADS)
    params = random_parameters(layer, x_BGPD)
    angles_PA = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    plain, turned, shifted, other = (
        layer.apply({'params': params}, x_BGPD, angles_PA=angles)
        for angles in (None, angles_PA, angles_PA + jnp.array([0.7, -2.0]), 2 * angles_PA)
    )
    np.testing.assert_allclose(shifted, turned, atol=1e-5)
    assert np.abs(turned - plain).max() > 1e-2 < np.abs(turned - other).max()


@pytest.fixture
def text(rng):
    """A text of four tokens for each of two frames of two rows; of each some tokens are there."""
    tokens_BTSD = jnp.asarray(rng.normal(size=(2, 2, 4, 8)), jnp.float32)
    there = [[True, True, False, True], [False, True, True, False]]
    return tokens_BTSD, jnp.array([there, there[::-1]])


@pytest.fixture
def x_of_frames(rng):
    """Two rows of six windows: those of frames 0 and 1 at one place, at the next, and the last."""
    return jnp.asarray(rng.normal(size=(2, 6, 5, 8)), jnp.float32)


@pytest.mark.parametrize('qk_norm', [True, False])
def test_cross_attention_is_its_definition(qk_norm, x_of_frames, text, random_parameters):
    """Window g of a row asks; keys and values are of [window, the tokens of the row's text g % 2 that are there]."""
    layer, (tokens_BTSD, mask_BTS) = CrossAttention(HEADS, qk_norm), text
    params = random_parameters(layer, x_of_frames, *text)
    got = jax.jit(layer.apply)({'params': params}, x_of_frames, *text)
    params, x_of_frames, tokens_BTSD = jax.tree.map(np.asarray, (params, x_of_frames, tokens_BTSD))
    for b, g in np.ndindex(2, 6):
        x_PD, tokens_SD = x_of_frames[b, g], tokens_BTSD[b, g % 2][np.asarray(mask_BTS[b, g % 2])]
        known_MD = np.concatenate([x_PD, tokens_SD])
        q = np.einsum('pd,dnk->pnk', x_PD, params['q']['kernel']) + params['q']['bias']
        k, v = np.moveaxis(np.einsum('md,dsnk->msnk', known_MD, params['kv']['kernel']) + params['kv']['bias'], 1, 0)
        if qk_norm:
            q, k = norm(q, params['q_norm']), norm(k, params['k_norm'])
        y = np.einsum('npm,mnk->pnk', nn.softmax(np.einsum('pnk,mnk->npm', q, k) / np.sqrt(4)), v)
        expected = np.einsum('pnk,nkd->pd', y, params['out']['kernel']) + params['out']['bias']
        np.testing.assert_allclose(got[b, g], expected, atol=1e-5)


def test_no_gradient_reaches_masked_tokens_or_the_text_of_another_frame(x_of_frames, text, random_parameters):
    layer, (tokens_BTSD, mask_BTS) = CrossAttention(HEADS), text
    params = random_parameters(layer, x_of_frames, *text)

    def first_frame(tokens_BTSD):
        return jnp.square(layer.apply({'params': params}, x_of_frames, tokens_BTSD, mask_BTS)[0, ::2]).sum()

    reached_BTS = np.abs(jax.jit(jax.grad(first_frame))(tokens_BTSD)).max(-1) > 0
    first = np.zeros((2, 2, 1), bool)
    first[0, 0] = True
    np.testing.assert_array_equal(reached_BTS, mask_BTS & first)


def test_where_no_token_of_a_text_is_there_a_window_attends_to_itself(x_of_frames, text, random_parameters):
    layer, (tokens_BTSD, mask_BTS) = CrossAttention(HEADS), text
    params = random_parameters(layer, x_of_frames, *text)
    nothing = layer.apply({'params': params}, x_of_frames, tokens_BTSD, jnp.zeros_like(mask_BTS))
    no_text = layer.apply({'params': params}, x_of_frames, tokens_BTSD[:, :, :0], mask_BTS[..., :0])
    np.testing.assert_allclose(nothing, no_text, atol=1e-5)


def test_new_cross_attention_is_zero(x_of_frames, text):
    y, _ = CrossAttention(HEADS).init_with_output(jax.random.key(0), x_of_frames, *text)
    np.testing.assert_array_equal(y, np.zeros(x_of_frames.shape))


def test_without_a_bias_attention_knows_no_order(x_BGPD, random_parameters):
    layer = Attention(HEADS)
    params = random_parameters(layer, x_BGPD)
    order = np.array([3, 0, 4, 1, 2])
    y, permuted = (layer.apply({'params': params}, x) for x in (x_BGPD, x_BGPD[:, :, order]))
    np.testing.assert_allclose(permuted, y[:, :, order], atol=1e-5)


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
