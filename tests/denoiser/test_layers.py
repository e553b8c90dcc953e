"""A layer of the transformer: its equations, the window it stays in, and what it does with pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.denoiser.adaln import LowRankModulation, Modulation, modulate
from walt.denoiser.blocks import Context, LayerSpec, Text, WindowLayer
from walt.denoiser.windows import merge, partition
from walt.nn.attention import Attention, CrossAttention
from walt.nn.embeddings import RelativePositionBias, rotary_angles

GRID = (3, 4, 4)
SPATIAL, SPATIOTEMPORAL = (1, 4, 4), (3, 2, 2)


@pytest.fixture
def x_BTHWD(rng):
    return jnp.asarray(rng.normal(size=(2, *GRID, 8)), jnp.float32)


def context_of(rng, frames=1, text=False, shared=True):
    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    mask_BTS = jnp.asarray([[[True, False, True, True]] * frames, [[False, True, True, False]] * frames])
    return Context(
        c_BTD=normal(2, frames, 8),
        shared_BTSD=normal(2, frames, 6, 8) if shared else None,
        text=Text(normal(2, frames, 4, 8), mask_BTS) if text else None,
    )


def apply(layer, params, *args):
    return jax.jit(layer.apply)({'params': params}, *args)


def run(part, params, name, *args):
    return part.apply({'params': params[name]}, *args)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_modulations_are_their_equations(rng, random_parameters):
    """A = W silu(c) + b;  W_b W_a c;  x (1 + scale) + shift; frame by frame."""
    c_BTD = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    full, pair = Modulation(vectors=3), LowRankModulation(rank=2)
    p, q = random_parameters(full, c_BTD), random_parameters(pair, c_BTD)
    expected = jnp.einsum('btd,dse->btse', nn.silu(c_BTD), p['linear']['kernel']) + p['linear']['bias']
    np.testing.assert_allclose(full.apply({'params': p}, c_BTD), expected, atol=1e-6)
    expected = jnp.einsum('btd,dr,rse->btse', c_BTD, q['down']['kernel'], q['up']['kernel'])
    np.testing.assert_allclose(pair.apply({'params': q}, c_BTD), expected, atol=1e-6)
    assert set(q['down']) == set(q['up']) == {'kernel'}

    x = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 4)), jnp.float32)
    y = modulate(x, c_BTD, 2 * c_BTD)
    np.testing.assert_allclose(y[1, 2, 1, 0], x[1, 2, 1, 0] * (1 + c_BTD[1, 2]) + 2 * c_BTD[1, 2], atol=1e-6)


LAYERS = {
    'pairs': (LayerSpec(2, 16, rank=2), SPATIOTEMPORAL, dict(frames=1)),
    'shared alone': (LayerSpec(2, 16, rank=0), SPATIAL, dict(frames=3)),
    'separate': (LayerSpec(2, 16, rank=0), SPATIOTEMPORAL, dict(shared=False)),
    'one text for a row': (LayerSpec(2, 16), SPATIOTEMPORAL, dict(text=True)),
    'a text for each frame': (LayerSpec(2, 16), SPATIAL, dict(text=True, frames=3)),
    'rotary': (LayerSpec(1, 16, relative_bias=False, rope=True), SPATIOTEMPORAL, dict(frames=3)),
}


@pytest.mark.parametrize(('spec', 'text_window', 'given'), LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_is_its_equations(spec, text_window, given, x_BTHWD, rng, random_parameters):
    """x + alpha_1 Attention(gamma_1, beta_1 * LN(x)), x + CrossAttention(LN(x)), then the first with the MLP."""
    window, context = SPATIOTEMPORAL, context_of(rng, **given)
    layer = WindowLayer(window, text_window, spec)
    params = random_parameters(layer, x_BTHWD, context)

    vectors = 0 if context.shared_BTSD is None else context.shared_BTSD
    if context.shared_BTSD is None:
        vectors += run(Modulation(), params, 'modulation', context.c_BTD)
    elif spec.rank:
        vectors += run(LowRankModulation(spec.rank), params, 'lora', context.c_BTD)
    gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2 = (vectors[:, :, None, None, i] for i in range(6))

    y = partition(norm(x_BTHWD) * (1 + gamma_1) + beta_1, window)
    if spec.rope:
        y = run(Attention(spec.heads), params, 'attention', y, None, rotary_angles(window, 8 // spec.heads))
    else:
        bias_NPP = run(RelativePositionBias(window, spec.heads), params, 'relative_position')
        y = run(Attention(spec.heads), params, 'attention', y, bias_NPP)
    y = x_BTHWD + alpha_1 * merge(y, window, GRID)
    if context.text is not None:
        affine = params['text_norm']['norm']
        told = partition(norm(y) * affine['scale'] + affine['bias'], text_window)
        text = context.text.tokens_BTSD, context.text.mask_BTS
        told = run(CrossAttention(spec.heads), params, 'text', told, *text)
        y = y + merge(told, text_window, GRID)
    mlp = params['mlp']
    z = nn.gelu((norm(y) * (1 + gamma_2) + beta_2) @ mlp['up']['kernel'] + mlp['up']['bias'])
    expected = y + alpha_2 * (z @ mlp['down']['kernel'] + mlp['down']['bias'])
    np.testing.assert_allclose(apply(layer, params, x_BTHWD, context), expected, atol=1e-4)


@pytest.mark.parametrize(
    ('window', 'same_window'),
    [(SPATIAL, lambda t, h, w: t == 1), (SPATIOTEMPORAL, lambda t, h, w: (h < 2) & (w >= 2))],
    ids=['spatial', 'spatiotemporal'],
)
@pytest.mark.parametrize('text', [False, True], ids=['', 'text'])
def test_a_token_depends_on_its_own_window_and_on_nothing_else(
    window, same_window, text, x_BTHWD, rng, random_parameters
):
    """The token at frame 1, row 0, column 3; and neither c nor the text has a way around the windows."""
    layer, context = WindowLayer(window, window, LayerSpec(2, 16, rank=1)), context_of(rng, text=text)
    params = random_parameters(layer, x_BTHWD, context)

    @jax.jit
    def token(x):
        return layer.apply({'params': params}, x, context)[0, 1, 0, 3] @ jnp.cos(jnp.arange(8.0))

    gradient_THW = np.abs(jax.grad(token)(x_BTHWD)[0]).max(-1)
    np.testing.assert_array_equal(gradient_THW > 0, same_window(*np.indices(GRID)))


def test_a_frame_is_told_its_own_vector_and_its_own_text(x_BTHWD, rng, random_parameters):
    """Within spatial windows, a clip with a context for each frame is its frames, each with its part of the context."""
    layer, context = WindowLayer(SPATIAL, SPATIAL, LayerSpec(2, 16)), context_of(rng, frames=3, text=True)
    params = random_parameters(layer, x_BTHWD, context)
    together = apply(layer, params, x_BTHWD, context)
    for t in range(3):
        own = jax.tree.map(lambda part, t=t: part[:, t : t + 1], context)
        alone = apply(layer, params, x_BTHWD[:, t : t + 1], own)
        np.testing.assert_allclose(together[:, t : t + 1], alone, atol=1e-5)


@pytest.mark.parametrize('window', [SPATIAL, SPATIOTEMPORAL], ids=['spatial', 'spatiotemporal'])
def test_attention_mixes_pictures_in_spatial_layers_and_none_of_their_tokens_in_spatiotemporal_ones(
    window, x_BTHWD, rng, random_parameters
):
    layer, context = WindowLayer(window, SPATIAL, LayerSpec(2, 16)), context_of(rng, frames=3)
    context = context.replace(image_B=jnp.array([False, True]))
    params = random_parameters(layer, x_BTHWD, context)

    @jax.jit
    def token(x, row):
        return layer.apply({'params': params}, x, context)[row, 1, 0, 3] @ jnp.cos(jnp.arange(8.0))

    of_clip, of_stack = (np.abs(jax.grad(token)(x_BTHWD, row)[row]).max(-1) > 0 for row in (0, 1))
    assert of_clip.sum() == np.prod(window)
    if window == SPATIAL:
        np.testing.assert_array_equal(of_stack, of_clip)
    else:
        assert of_stack.sum() == 1 and of_stack[1, 0, 3]


def test_pictures_pass_spatiotemporal_layers_where_they_are_skipped_and_clips_do_not_notice(
    x_BTHWD, rng, random_parameters
):
    context = context_of(rng, frames=3, text=True).replace(image_B=jnp.array([False, True]))
    layers = {
        (window, skip): WindowLayer(window, SPATIAL, LayerSpec(2, 16, skip_images=skip))
        for window in (SPATIAL, SPATIOTEMPORAL)
        for skip in (False, True)
    }
    for window in (SPATIAL, SPATIOTEMPORAL):
        params = random_parameters(layers[window, False], x_BTHWD, context)
        plain, skipping = (apply(layers[window, skip], params, x_BTHWD, context) for skip in (False, True))
        np.testing.assert_array_equal(skipping[0], plain[0])
        assert np.abs(plain[1] - x_BTHWD[1]).max() > 0.1
        np.testing.assert_array_equal(skipping[1], plain[1] if window == SPATIAL else x_BTHWD[1])
