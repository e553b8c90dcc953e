"""DiT has the published sizes, and computes what the published description says."""

import functools
import math
import operator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.denoiser.aspect import change_aspect
from walt.denoiser.conditions import bound, check_self_conditioning, text_shape, upsampling, without
from walt.denoiser.dit import Dit, sine_positions
from walt.planning.flops import flops
from walt.planning.program import program

# (width, depth, heads) of the paper's table 1.
SIZES = {'S': (384, 12, 6), 'B': (768, 12, 12), 'L': (1024, 24, 16), 'XL': (1152, 28, 16)}


def published(name: str, patch: int, side: int = 32) -> Dit:
    width, depth, heads = SIZES[name]
    return Dit((1, side, side, 4), width=width, depth=depth, heads=heads, patch=patch)


def shaped(module: Dit):
    """(parameters, inputs) in shapes."""
    inputs = jnp.zeros((1, *module.latent_shape)), jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)}
    return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs)), inputs


# Of the published modules, with 1000 classes and the null class, learned variance, and the fixed table of positions.
PARAMETERS = {
    ('S', 2, 32): 32_963_360,
    ('B', 2, 32): 130_512_416,
    ('B', 4, 32): 130_475_648,
    ('L', 2, 32): 458_102_816,
    ('L', 4, 32): 458_053_760,
    ('XL', 2, 32): 675_129_632,
    ('XL', 4, 32): 675_074_432,
    ('XL', 2, 64): 676_014_368,
}


@pytest.mark.parametrize(('size', 'count'), PARAMETERS.items(), ids=str)
def test_parameter_counts_are_the_published_ones(size, count):
    module = published(*size)
    params, _ = shaped(module)
    table = math.prod(module.grid) * module.width  # no parameter here
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + table == count


@pytest.mark.parametrize(
    ('size', 'giga'), [(('XL', 2), 118.62), (('B', 4), 5.57), (('S', 8), 0.36), (('S', 2), 6.06)], ids=str
)
def test_multiply_accumulates_of_a_pass_are_the_published_ones(size, giga):
    """Of all products: those of q with k and of attention with v too, and the maps from c. (The paper's table of
    400K-step results has 118.64 for XL/2 and 5.56 for B/4.)"""
    module = published(*size)
    params, inputs = shaped(module)
    assert round(flops(program(module.apply, params, *inputs)) / 2e9, 2) == giga


@functools.cache
def tiny(**fields) -> SimpleNamespace:
    """`module`, random `params`, `apply` and `inputs` of two rows."""
    sizes = dict(latent_shape=(1, 6, 4, 3), classes=5, width=8, depth=2, heads=2, patch=2)
    module = Dit(**sizes | fields)
    rng = np.random.default_rng(3)
    z = jnp.asarray(rng.normal(size=(2, *module.latent_shape)), jnp.float32)
    inputs = z, jnp.array([0.001, 0.7]), {'label': jnp.array([1, 5])} if module.classes else {}
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))['params']
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return SimpleNamespace(module=module, params=params, apply=jax.jit(bound_apply(module)), inputs=inputs)


def bound_apply(module: Dit):
    return lambda params, z, t_B, cond: module.apply({'params': params}, z, t_B, cond)


def linear(params, x):
    kernel = np.asarray(params['kernel'], np.float64)
    return x @ kernel.reshape(x.shape[-1], -1) + np.asarray(params['bias'], np.float64).reshape(-1)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def as_published(params, z_HWC, index: int, label: int, patch: int, heads: int):
    """The forward pass of one picture in float64, from the paper's words: 2-D arrays, tokens in rows."""
    height, width, channels = z_HWC.shape
    tokens = [
        z_HWC[i : i + patch, j : j + patch].reshape(-1) for i in range(0, height, patch) for j in range(0, width, patch)
    ]
    x = linear(params['patch'], np.array(tokens, np.float64))
    dim, columns = x.shape[1], width // patch
    rates = [10_000 ** (-4 * i / dim) for i in range(dim // 4)]
    for number in range(len(x)):
        row, column = divmod(number, columns)
        x[number] += [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in rates]

    rates = [10_000 ** (-i / 128) for i in range(128)]
    sinusoid = np.array([f(index * w) for f in (math.cos, math.sin) for w in rates])
    c = linear(params['time']['mlp']['second'], silu(linear(params['time']['mlp']['first'], sinusoid)))
    c = c + np.asarray(params['label']['table'][label], np.float64)

    layers = params['blocks']['global']
    for number in range(len(layers['mlp']['up']['bias'])):
        layer = jax.tree.map(operator.itemgetter(number), layers)
        vectors = linear(layer['modulation']['linear'], silu(c)).reshape(6, -1)
        scale_1, scale_2, shift_1, shift_2, gate_1, gate_2 = vectors
        y = norm(x) * (1 + scale_1) + shift_1
        q, k, v = linear(layer['attention']['qkv'], y).reshape(len(y), 3, heads, -1).transpose(1, 2, 0, 3)
        logits = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        y = (weights @ v).transpose(1, 0, 2).reshape(len(x), dim)
        x = x + gate_1 * linear(layer['attention']['out'], y)
        y = norm(x) * (1 + scale_2) + shift_2
        x = x + gate_2 * linear(layer['mlp']['down'], gelu_tanh(linear(layer['mlp']['up'], y)))

    scale, shift = linear(params['head']['modulation']['linear'], silu(c)).reshape(2, -1)
    patches = linear(params['head']['linear'], norm(x) * (1 + scale) + shift)
    out = np.zeros((height, width, 2 * channels))
    for number, numbers in enumerate(patches):
        i, j = (patch * place for place in divmod(number, columns))
        out[i : i + patch, j : j + patch] = numbers.reshape(patch, patch, 2 * channels)
    return out


def test_the_forward_pass_is_that_of_the_published_description():
    """Index k - 1 at t = k / 1000, the null class of a label among them."""
    dit = tiny()
    z, _, cond = dit.inputs
    found = dit.apply(dit.params, *dit.inputs)
    for row, index in enumerate([0, 699]):
        expected = as_published(dit.params, np.asarray(z[row, 0]), index, int(cond['label'][row]), 2, 2)
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(found[row, 0], expected, atol=2e-4)


def test_a_new_dit_predicts_zero_and_starts_as_published():
    module = Dit((1, 4, 4, 3), classes=100, width=64, depth=3, heads=2, patch=2)
    inputs = jnp.ones((1, *module.latent_shape)), jnp.ones(1), {'label': jnp.zeros(1, jnp.int32)}
    prediction, params = jax.jit(module.init_with_output)(jax.random.key(0), *inputs)
    params = nn.unbox(params)['params']
    assert prediction.shape == (1, 1, 4, 4, 6) and not prediction.any()
    layer = params['blocks']['global']
    assert not layer['modulation']['linear']['kernel'].any() and not params['head']['linear']['kernel'].any()
    xavier = {
        'qkv': (layer['attention']['qkv']['kernel'], 64 + 3 * 64),
        'out': (layer['attention']['out']['kernel'], 64 + 64),
        'up': (layer['mlp']['up']['kernel'], 64 + 256),
        'down': (layer['mlp']['down']['kernel'], 256 + 64),
        'patch': (params['patch']['kernel'], 12 + 64),
    }
    for name, (kernel, fans) in xavier.items():
        bound = math.sqrt(6 / fans)
        assert 0.97 * bound < np.abs(kernel).max() <= bound, name
        np.testing.assert_allclose(np.std(kernel), bound / math.sqrt(3), rtol=0.05, err_msg=name)
    for table in (params['label']['table'], *(params['time']['mlp'][name]['kernel'] for name in ('first', 'second'))):
        np.testing.assert_allclose(np.std(table), 0.02, rtol=0.05)
    assert not any(leaf.any() for path, leaf in jax.tree_util.tree_leaves_with_path(params) if 'bias' in str(path[-1]))


def test_without_learned_variance_the_prediction_has_the_channels_of_the_latents():
    dit = tiny(learn_variance=False, classes=0)
    assert dit.module.conditions == {} and 'label' not in dit.params
    assert dit.apply(dit.params, *dit.inputs).shape == (2, 1, 6, 4, 3)


def test_every_place_has_a_vector_of_its_own():
    table = sine_positions(16, 16, 32).reshape(256, -1)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert distances[~np.eye(256, dtype=bool)].min() > 0.5


def test_what_a_layer_keeps_changes_neither_value_nor_gradient():
    dit, saving = tiny(), tiny(remat='blocks')

    def loss(apply):
        return jax.jit(jax.value_and_grad(lambda params: jnp.square(apply(params, *dit.inputs)).sum()))(dit.params)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4), loss(dit.apply), loss(saving.apply)
    )


def test_nothing_in_place_of_a_label_is_the_null_class():
    dit = tiny()
    label = without({'label': jnp.array([1, 2])}, classes=dit.module.classes)['label']
    assert label.tolist() == [5, 5]
    assert text_shape(dit.module) == () and upsampling(dit.module) == 1


def test_a_network_without_self_conditioning_is_given_no_estimate_and_refuses_to_train_with_it():
    dit, (z, t_B, cond) = tiny(), tiny().inputs
    denoise = bound(dit.module, dit.params)
    np.testing.assert_allclose(
        denoise(z, t_B, cond | {'estimate': z}), dit.apply(dit.params, z, t_B, cond), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match=r'text: .*, expected absent'):
        denoise(z, t_B, cond | {'text': z})
    check_self_conditioning(dit.module, 0.0)
    with pytest.raises(ValueError, match=r"self_conditioning is 0.9, .*\['label'\]"):
        check_self_conditioning(dit.module, 0.9)


def test_pictures_of_other_sizes_have_the_same_parameters():
    dit, wide = tiny(), tiny(latent_shape=(1, 6, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, change_aspect(dit.params, dit.module, wide.module), dit.params)
    with pytest.raises(ValueError, match='heads: 2 there, 1 here'):
        change_aspect(dit.params, dit.module, tiny(heads=1).module)


def test_devices_share_the_rows_of_a_picture():
    tiny().module.check_shards(3)
    with pytest.raises(ValueError, match='2 devices cannot share'):
        tiny().module.check_shards(2)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'latent_shape': (2, 4, 4, 3)}, 'have 2 frames, a DiT takes 1'),
        ({'heads': 3}, 'width 8 is not divisible by heads 3'),
        ({'width': 6}, 'width 6 is not divisible by 4'),
        ({'patch': 4}, r'\(1, 6, 4, 3\) are not divisible by patch 4'),
        ({'remat': 'all'}, "remat is one of .*'all'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_both_values(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)
