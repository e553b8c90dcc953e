"""The W.A.L.T transformer: sizes, what it is at initialisation, and where information flows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.denoiser.adaln import LowRankModulation, SharedModulation, modulate
from walt.denoiser.blocks import Block, WindowLayer
from walt.denoiser.walt import Head, Walt
from walt.denoiser.windows import merge, partition
from walt.nn.attention import Attention
from walt.nn.einsum import Einsum
from walt.nn.embeddings import LabelEmbedding, RelativePositionBias, SpaceTimePosition, TimeEmbedding


def arguments(module, batch=1):
    z = jnp.zeros((batch, *module.latent_shape))
    return z, jnp.zeros(batch), {'label': jnp.zeros(batch, jnp.int32), 'estimate': z}


def shapes(module):
    """(prediction, parameters) as shapes."""
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *arguments(module)))


@pytest.fixture(scope='module')
def example():
    """z, t, cond for two rows of `small_denoiser`."""
    rng = np.random.default_rng(3)
    z, estimate = jnp.asarray(rng.normal(size=(2, 2, 2, 4, 4, 3)), jnp.float32)
    return z, jnp.array([0.3, 0.9]), {'label': jnp.array([1, 7]), 'estimate': estimate}


@pytest.fixture(scope='module')
def new_params(small_denoiser, example):
    """Boxed parameters as the initialisers make them."""
    return jax.jit(small_denoiser.module.init)(jax.random.key(0), *example)['params']


# Layers, width and rank of the models, and their parameters in millions (tables 1 and 3d of the paper).
SIZES = {
    'L, rank 2': (24, 1024, 2, 313.2),
    'L, rank 4': (24, 1024, 4, 313.6),
    'L, rank 16': (24, 1024, 16, 315.6),
    'L, rank 64': (24, 1024, 64, 323.9),
    'XL, rank 2': (28, 1152, 2, 460.0),
}


@pytest.mark.parametrize(('depth', 'width', 'rank', 'expected'), SIZES.values(), ids=SIZES.keys())
def test_parameter_counts_of_the_paper(depth, width, rank, expected):
    _, variables = shapes(Walt(latent_shape=(5, 16, 16, 8), classes=101, depth=depth, width=width, rank=rank))
    millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(variables))) / 1e6
    np.testing.assert_allclose(millions, expected, rtol=0.003)


def test_each_layer_has_a_bias_for_every_offset_within_its_window():
    """31^2 offsets in 1x16x16 and 9 x 15^2 in 5x8x8, for 16 heads in each of 12 blocks."""
    _, variables = shapes(Walt(latent_shape=(5, 16, 16, 8), classes=101))
    blocks = nn.unbox(variables)['params']['blocks']
    tables = {name: blocks[name]['relative_position']['table'].shape for name in ('spatial', 'spatiotemporal')}
    assert tables == {'spatial': (12, 31 * 31, 16), 'spatiotemporal': (12, 9 * 15 * 15, 16)}


def test_a_rank_costs_seven_widths_a_layer(small_denoiser):
    def count(rank):
        _, variables = shapes(dataclasses.replace(small_denoiser.module, rank=rank, parent=None))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(variables)))

    assert count(3) - count(0) == 3 * 7 * 8 * 4


def test_a_new_denoiser_predicts_zero_and_its_blocks_change_nothing(small_denoiser, new_params, example):
    z, t_B, cond = example
    module, params = small_denoiser.module, nn.unbox(new_params)
    np.testing.assert_array_equal(small_denoiser.apply(params, z, t_B, cond), np.zeros(z.shape))
    assert float(jnp.abs(params['head']['linear']['kernel']).max()) == 0

    c_BD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8)), jnp.float32)
    shared = SharedModulation().apply({'params': params['modulation']}, c_BD)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 4, 4, 8)), jnp.float32)
    first = jax.tree.map(lambda stacked: stacked[0], params['blocks'])
    unchanged, _ = block_of(module).apply({'params': first}, x, shared, c_BD)
    np.testing.assert_array_equal(unchanged, x)
    changed, _ = block_of(module).apply({'params': first}, x, shared + 1, c_BD)
    assert np.abs(changed - x).max() > 0.1  # the gates are what kept it still


def block_of(module):
    return Block(*module.windows, module.heads, module.width * module.mlp_ratio, module.rank, module.qk_norm)


def test_a_denoiser_is_its_parts_and_its_layers_one_after_another(small_denoiser, example):
    """What `nn.scan` runs is each block with its slice of the stacked parameters."""
    (z, t_B, cond), module, params = example, small_denoiser.module, small_denoiser.params

    def run(part, name, *args):
        return part.apply({'params': params[name]}, *args)

    @jax.jit
    def one_by_one(z, t_B, cond):
        c_BD = run(TimeEmbedding(8), 'time', t_B) + run(LabelEmbedding(10, 8), 'label', cond['label'])
        x = jnp.concatenate([z, cond['estimate']], -1)
        x = run(Einsum('...C,CD->...D', (6, 8), (None, None)), 'patch', x)
        x = run(SpaceTimePosition((2, 4, 4)), 'position', x)
        shared = run(SharedModulation(), 'modulation', c_BD)
        for number in range(module.depth // 2):
            mine = jax.tree.map(lambda stacked, number=number: stacked[number], params['blocks'])
            x, _ = block_of(module).apply({'params': mine}, x, shared, c_BD)
        return run(Head(3, 1), 'head', x, c_BD)

    expected = one_by_one(z, t_B, cond)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(small_denoiser.apply(params, z, t_B, cond), expected, atol=1e-5)


def test_blocks_have_parameters_of_their_own(new_params):
    blocks = new_params['blocks']
    for leaf in jax.tree.leaves(blocks, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert leaf.names[0] == 'layers' and leaf.value.shape[0] == 2
    first, second = blocks['spatial']['attention']['qkv']['kernel'].value
    assert np.abs(first - second).max() > 0.1


def test_zero_pairs_are_the_shared_modulation_alone(small_denoiser, example):
    params = small_denoiser.params
    layers = ('spatial', 'spatiotemporal')
    no_pairs = {name: {key: leaf for key, leaf in params['blocks'][name].items() if key != 'lora'} for name in layers}

    def with_up(factor):
        blocks = {
            name: no_pairs[name]
            | {'lora': params['blocks'][name]['lora'] | {'up': {'kernel': factor * lora_up(params, name)}}}
            for name in layers
        }
        return small_denoiser.apply(params | {'blocks': blocks}, *example)

    without = dataclasses.replace(small_denoiser.module, rank=0, parent=None)
    expected = jax.jit(without.apply)({'params': params | {'blocks': no_pairs}}, *example)
    np.testing.assert_allclose(with_up(0.0), expected, atol=1e-5)
    assert np.abs(with_up(1.0) - expected).max() > 1e-3


def lora_up(params, layer):
    return params['blocks'][layer]['lora']['up']['kernel']


def test_modulations_are_their_equations(rng, random_parameters):
    """A = W silu(c) + b;  W_b W_a c;  x (1 + scale) + shift."""
    c_BD = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    shared, pair = SharedModulation(vectors=3), LowRankModulation(rank=2)
    p, q = random_parameters(shared, c_BD), random_parameters(pair, c_BD)
    expected = jnp.einsum('bd,dse->bse', nn.silu(c_BD), p['linear']['kernel']) + p['linear']['bias']
    np.testing.assert_allclose(shared.apply({'params': p}, c_BD), expected, atol=1e-6)
    expected = jnp.einsum('bd,dr,rse->bse', c_BD, q['down']['kernel'], q['up']['kernel'])
    np.testing.assert_allclose(pair.apply({'params': q}, c_BD), expected, atol=1e-6)
    assert set(q['down']) == set(q['up']) == {'kernel'}

    x = jnp.asarray(rng.normal(size=(2, 1, 2, 2, 4)), jnp.float32)
    y = modulate(x, c_BD, 2 * c_BD)
    np.testing.assert_allclose(y[1, 0, 1, 0], x[1, 0, 1, 0] * (1 + c_BD[1]) + 2 * c_BD[1], atol=1e-6)


@pytest.mark.parametrize(
    ('window', 'same_window'),
    [
        ((1, 4, 4), lambda t, h, w: t == 1),
        ((3, 2, 2), lambda t, h, w: (h < 2) & (w >= 2)),
    ],
    ids=['spatial', 'spatiotemporal'],
)
def test_a_token_depends_on_its_own_window_and_on_nothing_else(window, same_window, rng, random_parameters):
    """The token at frame 1, row 0, column 3 of a 3x4x4 grid; and c has no way around the windows."""
    layer = WindowLayer(window, heads=2, hidden=16, rank=1, qk_norm=True)
    x = jnp.asarray(rng.normal(size=(1, 3, 4, 4, 8)), jnp.float32)
    shared, c_BD = jnp.ones((1, 6, 8)), jnp.asarray(rng.normal(size=(1, 8)), jnp.float32)
    params = random_parameters(layer, x, shared, c_BD)

    @jax.jit
    def token(x):
        y = layer.apply({'params': params}, x, shared, c_BD)[0, 1, 0, 3]
        return y @ jnp.cos(jnp.arange(8.0))

    gradient_THW = np.abs(jax.grad(token)(x)[0]).max(-1)
    np.testing.assert_array_equal(gradient_THW > 0, same_window(*np.indices((3, 4, 4))))


def test_a_layer_is_its_equations(rng, random_parameters):
    """x + alpha_1 Attention(gamma_1, beta_1 * LN(x)), then the same with the MLP, six different vectors in all."""
    window, grid = (2, 2, 2), (2, 4, 4)
    layer = WindowLayer(window, heads=2, hidden=16, rank=2, qk_norm=True)
    x = jnp.asarray(rng.normal(size=(2, *grid, 8)), jnp.float32)
    shared, c_BD = jnp.asarray(rng.normal(size=(2, 6, 8))), jnp.asarray(rng.normal(size=(2, 8)))
    params = random_parameters(layer, x, shared, c_BD)

    def run(part, name, *args):
        return part.apply({'params': params[name]}, *args)

    vectors = shared + run(LowRankModulation(2), 'lora', c_BD)
    gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2 = (vectors[:, i, None, None, None] for i in range(6))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    bias_NPP = run(RelativePositionBias(window, 2), 'relative_position')
    y = run(Attention(2), 'attention', partition(norm(x) * (1 + gamma_1) + beta_1, window), bias_NPP)
    y = x + alpha_1 * merge(y, window, grid)
    mlp = params['mlp']
    z = nn.gelu((norm(y) * (1 + gamma_2) + beta_2) @ mlp['up']['kernel'] + mlp['up']['bias'])
    expected = y + alpha_2 * (z @ mlp['down']['kernel'] + mlp['down']['bias'])
    np.testing.assert_allclose(layer.apply({'params': params}, x, shared, c_BD), expected, atol=1e-4)


def test_everything_that_conditions_changes_the_prediction(small_denoiser, example):
    z, t_B, cond = example
    prediction = small_denoiser.apply(small_denoiser.params, z, t_B, cond)
    others = {
        'z': (z + 1, t_B, cond),
        't': (z, t_B + 0.05, cond),
        'label': (z, t_B, cond | {'label': jnp.array([2, 10])}),  # 10 is the null class
        'estimate': (z, t_B, cond | {'estimate': jnp.zeros_like(z)}),
    }
    for name, other in others.items():
        changed_B = np.abs(small_denoiser.apply(small_denoiser.params, *other) - prediction).max((1, 2, 3, 4))
        assert (changed_B > 1e-3).all(), name


def test_rows_of_a_batch_do_not_meet(small_denoiser, example):
    z, t_B, cond = example
    together = small_denoiser.apply(small_denoiser.params, z, t_B, cond)
    other = jax.tree.map(lambda rows: rows.at[0].set(rows[1]), (z, t_B, cond))
    np.testing.assert_array_equal(small_denoiser.apply(small_denoiser.params, *other)[1], together[1])


@pytest.mark.parametrize('fields', [{'patch': 2, 'spatiotemporal_window': (1, 2)}, {'dtype': jnp.bfloat16}], ids=str)
def test_prediction_is_float32_in_the_shape_of_the_latents(fields, small_denoiser):
    module = dataclasses.replace(small_denoiser.module, parent=None, **fields)
    prediction, variables = shapes(module)
    assert prediction.shape == (1, 2, 4, 4, 3) and prediction.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_recomputing_blocks_changes_the_backward_pass_and_nothing_else(small_denoiser, example):
    again = dataclasses.replace(small_denoiser.module, remat=True, parent=None)
    assert jax.tree.structure(shapes(again)[1]) == jax.tree.structure(shapes(small_denoiser.module)[1])
    prediction = jax.jit(again.apply)({'params': small_denoiser.params}, *example)
    np.testing.assert_allclose(prediction, small_denoiser.apply(small_denoiser.params, *example), atol=1e-5)

    def program(module):
        return str(jax.make_jaxpr(lambda params: module.apply({'params': params}, *example))(small_denoiser.params))

    assert 'remat' in program(again) and 'remat' not in program(small_denoiser.module)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'depth': 3}, 'depth 3 must be even'),
        ({'heads': 3}, 'width 8 is not divisible by heads 3'),
        ({'patch': 3}, r'\(2, 4, 4, 3\) are not divisible by patch 3'),
        ({'spatiotemporal_window': (3, 2)}, r'\(2, 3, 2\) tokens .* \(2, 4, 4\) tokens'),
        ({'patch': 2, 'spatiotemporal_window': (2, 4)}, r'\(2, 2, 4\) tokens .* \(2, 2, 2\) tokens'),
    ],
    ids=str,
)
def test_sizes_that_do_not_divide_are_refused_at_construction(fields, message, small_denoiser):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(small_denoiser.module, parent=None, **fields)


def test_latents_of_another_shape_are_refused_with_both(small_denoiser):
    other = dataclasses.replace(small_denoiser.module, latent_shape=(3, 4, 4, 3), parent=None)
    with pytest.raises(ValueError, match=r'\(3, 4, 4, 3\), .* \(2, 4, 4, 3\)'):
        jax.eval_shape(small_denoiser.module.init, jax.random.key(0), *arguments(other))
