"""The W.A.L.T transformer: what it is at initialisation, what it is made of, and what it refuses."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.denoiser.adaln import Modulation
from walt.denoiser.blocks import Block, Context, LayerSpec
from walt.denoiser.walt import Head
from walt.nn.einsum import Einsum
from walt.nn.embeddings import LabelEmbedding, SpaceTimePosition, TimeEmbedding
from walt.nn.remat import REMATS


@pytest.fixture(scope='module')
def new_params(small_denoiser):
    """Boxed parameters as the initialisers make them."""
    return jax.jit(small_denoiser.module.init)(jax.random.key(0), *small_denoiser.inputs)['params']


def shapes(module, inputs):
    """(prediction, parameters) as shapes."""
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *inputs))


def block_of(module):
    spec = LayerSpec(module.heads, 4 * module.width, module.rank)
    return Block(tuple((name, window, window) for name, window in module.windows.items()), spec)


def test_a_new_denoiser_predicts_zero_and_its_blocks_change_nothing(small_denoiser, new_params, rng):
    (z, t_B, cond), module, params = small_denoiser.inputs, small_denoiser.module, nn.unbox(new_params)
    np.testing.assert_array_equal(small_denoiser.apply(params, z, t_B, cond), np.zeros(z.shape))
    assert float(jnp.abs(params['head']['linear']['kernel']).max()) == 0

    x, c_BTD = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(2, 2, 4, 4, 8), (2, 1, 8)])
    shared = jax.jit(Modulation().apply)({'params': params['modulation']}, c_BTD)
    first = jax.tree.map(lambda stacked: np.asarray(stacked)[0], params['blocks'])
    apply = jax.jit(block_of(module).apply)
    unchanged, _ = apply({'params': first}, x, Context(c_BTD, shared))
    np.testing.assert_array_equal(unchanged, x)
    changed, _ = apply({'params': first}, x, Context(c_BTD, shared + 1))
    assert np.abs(changed - x).max() > 0.1  # the gates are what kept it still


def test_new_layers_with_text_rotary_positions_and_modulations_of_their_own_change_nothing(tiny_denoiser):
    """Under a random head, which shows what reaches it."""
    tiny = tiny_denoiser(text_shape=(3, 5), rope=True, heads=1, separate_adaln=True, rank=0)
    params = nn.unbox(jax.jit(tiny.module.init)(jax.random.key(0), *tiny.inputs)['params']) | {
        'head': tiny.params['head']
    }
    prediction = tiny.apply(params, *tiny.inputs)
    assert np.abs(prediction).max() > 0.1
    no_layers = params | {'blocks': jax.tree.map(jnp.zeros_like, params['blocks'])}
    np.testing.assert_array_equal(prediction, tiny.apply(no_layers, *tiny.inputs))


def test_a_denoiser_is_its_parts_and_its_layers_one_after_another(small_denoiser):
    """What `nn.scan` runs is each block with its slice of the stacked parameters."""
    module, params = small_denoiser.module, small_denoiser.params

    def run(part, name, *args):
        return part.apply({'params': params[name]}, *args)

    @jax.jit
    def one_by_one(z, t_B, cond):
        c_BTD = (run(TimeEmbedding(8), 'time', t_B) + run(LabelEmbedding(10, 8), 'label', cond['label']))[:, None]
        x = jnp.concatenate([z, cond['estimate']], -1)
        x = run(Einsum('...C,CD->...D', (6, 8), (None, None)), 'patch', x)
        x = run(SpaceTimePosition((2, 4, 4)), 'position', x)
        context = Context(c_BTD, run(Modulation(), 'modulation', c_BTD))
        for number in range(module.depth // 2):
            mine = jax.tree.map(lambda stacked, number=number: stacked[number], params['blocks'])
            x, _ = block_of(module).apply({'params': mine}, x, context)
        return run(Head(3, 1), 'head', x, c_BTD)

    expected = one_by_one(*small_denoiser.inputs)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(small_denoiser.apply(params, *small_denoiser.inputs), expected, atol=1e-5)


def test_blocks_have_parameters_of_their_own(new_params):
    blocks = new_params['blocks']
    for leaf in jax.tree.leaves(blocks, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert leaf.names[0] == 'layers' and leaf.value.shape[0] == 2
    first, second = blocks['spatial']['attention']['qkv']['kernel'].value
    assert np.abs(first - second).max() > 0.1


def test_zero_pairs_are_the_shared_modulation_alone(small_denoiser, tiny_denoiser):
    params = small_denoiser.params
    layers = ('spatial', 'spatiotemporal')
    no_pairs = {name: {key: leaf for key, leaf in params['blocks'][name].items() if key != 'lora'} for name in layers}

    def with_up(factor):
        blocks = {
            name: no_pairs[name]
            | {'lora': params['blocks'][name]['lora'] | {'up': {'kernel': factor * lora_up(params, name)}}}
            for name in layers
        }
        return small_denoiser.apply(params | {'blocks': blocks}, *small_denoiser.inputs)

    without = tiny_denoiser(classes=10, depth=4, rank=0)
    expected = without.apply(params | {'blocks': no_pairs}, *small_denoiser.inputs)
    np.testing.assert_allclose(with_up(0.0), expected, atol=1e-5)
    assert np.abs(with_up(1.0) - expected).max() > 1e-3


def lora_up(params, layer):
    return params['blocks'][layer]['lora']['up']['kernel']


def test_spatial_windows_are_the_whole_frame_or_as_large_as_asked(tiny_denoiser):
    """With 2x2 windows in all layers, a token hears of the 2x2 places around it, in all frames, and of no other."""
    whole, parted = (tiny_denoiser(depth=4, spatial_window=window) for window in ((), (2, 2)))
    assert whole.module.windows == {'spatial': (1, 4, 4), 'spatiotemporal': (2, 2, 2)}
    assert parted.module.windows == {'spatial': (1, 2, 2), 'spatiotemporal': (2, 2, 2)}
    for tiny, inside in [(whole, np.ones((2, 4, 4), bool)), (parted, np.indices((2, 4, 4))[1:].max(0) < 2)]:

        def token(z, tiny=tiny):
            return tiny.apply(tiny.params, z, *tiny.inputs[1:])[0, 1, 0, 1] @ jnp.arange(3.0)

        gradient_THW = np.abs(jax.jit(jax.grad(token))(tiny.inputs[0])[0]).max(-1)
        np.testing.assert_array_equal(gradient_THW > 0, inside)


@pytest.mark.parametrize(
    'fields',
    [{'patch': 2, 'spatiotemporal_window': (1, 2)}, {'dtype': jnp.bfloat16, 'text_shape': (3, 5), 'upsample': 2}],
    ids=str,
)
def test_prediction_is_float32_in_the_shape_of_the_latents(fields, tiny_denoiser):
    tiny = tiny_denoiser(**fields)
    prediction, variables = shapes(tiny.module, tiny.inputs)
    assert prediction.shape == (2, 2, 4, 4, 3) and prediction.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


# Of 'attention' alone the names are ours; what the others keep is told by the test below.
@pytest.mark.parametrize(
    'remat',
    [
        'attention',
        *(pytest.param(remat, marks=pytest.mark.slow) for remat in REMATS if remat not in ('none', 'attention')),
    ],
)
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(remat, small_denoiser, tiny_denoiser):
    again, inputs = tiny_denoiser(classes=10, depth=4, remat=remat), small_denoiser.inputs
    assert jax.tree.structure(again.params) == jax.tree.structure(small_denoiser.params)

    def gradients(tiny):
        def square(params):
            return jnp.square(tiny.module.apply({'params': params}, *inputs)).sum()

        return jax.jit(jax.grad(square))(small_denoiser.params)

    (same, _), (expected, _) = (jax.flatten_util.ravel_pytree(gradients(tiny)) for tiny in (again, small_denoiser))
    np.testing.assert_allclose(same, expected, atol=1e-5 * np.abs(expected).max())


def test_what_is_kept_for_the_backward_pass_falls_from_all_to_products_to_attention_to_blocks_to_nothing(tiny_denoiser):
    """Numbers that lie on the device, and on the host, between forward and backward pass."""

    def kept(remat):
        tiny = tiny_denoiser(classes=10, depth=4, remat=remat)
        apply = functools.partial(tiny.module.apply, {'params': tiny.params})
        _, backward = jax.eval_shape(lambda z: jax.vjp(lambda z: apply(z, *tiny.inputs[1:]), z), tiny.inputs[0])
        program = jax.make_jaxpr(lambda z: jax.vjp(lambda z: apply(z, *tiny.inputs[1:]), z)[1])(tiny.inputs[0])
        on_host = sum('host' in str(var.aval) for var in program.jaxpr.outvars)
        return sum(leaf.size for leaf in jax.tree.leaves(backward)), on_host

    policies = ('none', 'products', 'attention', 'blocks', 'offload')
    everything, products, attention, blocks, offload = (kept(remat) for remat in policies)
    assert everything[0] > products[0] > attention[0] > blocks[0]
    assert attention[0] - blocks[0] == 2 * 2 * 2 * (2 * 4 * 4) * 8  # blocks, layers in them, rows, tokens, width
    assert everything[1] == products[1] == attention[1] == blocks[1] == 0 < offload[1]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'depth': 3}, 'depth 3 must be even'),
        ({'heads': 3}, 'width 8 is not divisible by heads 3'),
        ({'patch': 3}, r'\(2, 4, 4, 3\) are not divisible by patch 3'),
        ({'upsample': 3}, r'\(2, 4, 4, 3\) are not divisible by upsample 3'),
        ({'upsample': 0}, r'upsample 0'),
        ({'spatial_window': (4, 3)}, r'\(1, 4, 3\) tokens .* \(2, 4, 4\) tokens'),
        ({'spatiotemporal_window': (3, 2)}, r'\(2, 3, 2\) tokens .* \(2, 4, 4\) tokens'),
        ({'patch': 2, 'spatiotemporal_window': (2, 4)}, r'\(2, 2, 4\) tokens .* \(2, 2, 2\) tokens'),
        ({'separate_adaln': True}, 'separate_adaln goes with rank 0, not 2'),
        ({'pooled_text': True}, r'text_shape is \(\)'),
        ({'skip_images': True}, 'images is off'),
        ({'rope': True}, 'head width of 6 or more, not 4'),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_each_other_are_refused_at_construction(fields, message, small_denoiser):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(small_denoiser.module, parent=None, **fields)


def test_latents_of_another_shape_are_refused_with_both(small_denoiser, tiny_denoiser):
    other = tiny_denoiser(classes=10, latent_shape=(3, 4, 4, 3))
    with pytest.raises(ValueError, match=r'\(3, 4, 4, 3\), .* \(2, 4, 4, 3\)'):
        small_denoiser.apply(small_denoiser.params, *other.inputs)
