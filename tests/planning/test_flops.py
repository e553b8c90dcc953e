"""Counts agree with closed forms and with sums over all taps."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from walt.denoiser.walt import Walt
from walt.nn.conv import conv3d
from walt.planning.flops import flops
from walt.planning.program import program


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def count(function, *args, **kwargs) -> int:
    return flops(program(function, *args, **kwargs))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ('equation', 'shapes', 'expected'),
    [
        ('MK,KN->MN', [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        ('BMK,BKN->BMN', [(2, 3, 5), (2, 5, 7)], 2 * 2 * 3 * 5 * 7),
        ('BLD,DNK->BLNK', [(2, 6, 8), (8, 4, 3)], 2 * 2 * 6 * 8 * 4 * 3),
        ('K,K->', [(5,), (5,)], 2 * 5),
    ],
)
def test_a_product_counts_two_for_every_index_that_it_runs_over(equation, shapes, expected, dtype):
    arrays = [shaped(*shape, dtype=dtype) for shape in shapes]
    assert count(lambda x, w: jnp.einsum(equation, x, w), *arrays) == expected


def test_attention_counts_logits_and_mixture():
    q_BLNK, k_BSNK = shaped(2, 6, 4, 3), shaped(2, 5, 4, 3)
    assert count(jax.nn.dot_product_attention, q_BLNK, k_BSNK, k_BSNK) == 2 * (2 * 2 * 6 * 5 * 4 * 3)


CONVOLUTIONS = {
    'plain': dict(window_strides=(1, 1), padding='VALID'),
    'same': dict(window_strides=(1, 1), padding='SAME'),
    'strided': dict(window_strides=(2, 3), padding='VALID'),
    'strided, same': dict(window_strides=(2, 2), padding='SAME'),
    'uneven padding': dict(window_strides=(2, 1), padding=((0, 3), (2, 0))),
    'taps apart': dict(window_strides=(1, 2), padding='SAME', rhs_dilation=(2, 3)),
    'transposed': dict(window_strides=(1, 1), padding=((2, 2), (1, 2)), lhs_dilation=(2, 3)),
    'grouped': dict(window_strides=(1, 2), padding='SAME', feature_group_count=2),
    'groups of the batch': dict(window_strides=(1, 1), padding='VALID', batch_group_count=2),
}


def convolution(options):
    """(convolution, shape of its input, shape of its kernel)."""

    def apply(x_BHWC, kernel_HWIO):
        return lax.conv_general_dilated(x_BHWC, kernel_HWIO, **options, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    channels = 4 // options.get('feature_group_count', 1)
    return apply, shaped(2, 9, 8, 4), shaped(3, 3, channels, 6)


@pytest.mark.parametrize('options', CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_counts_the_taps_that_meet_its_input(options):
    """Convolving ones with ones counts them: padding and the zeros of a dilation add nothing."""
    apply, x_BHWC, kernel_HWIO = convolution(options)
    met = apply(*(jnp.ones(shape.shape) for shape in (x_BHWC, kernel_HWIO)))
    assert count(apply, x_BHWC, kernel_HWIO) == 2 * int(met.sum())


@pytest.mark.parametrize('options', CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize('argument', [0, 1], ids=['by input', 'by kernel'])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_costs(options, argument):
    apply, *arrays = convolution(options)

    def gradient(x, kernel, ahead):
        _, pull_back = jax.vjp(apply, x, kernel)
        return pull_back(ahead)[argument]

    assert count(gradient, *arrays, jax.eval_shape(apply, *arrays)) == count(apply, *arrays)


def test_the_tokenizers_convolution_costs_the_same_on_all_platforms():
    x_BTHWC, kernel_THWIO = shaped(2, 9, 8, 8, 16), shaped(3, 3, 3, 16, 32)

    def step(x, kernel):
        return jax.value_and_grad(lambda x, kernel: conv3d(x, kernel, (2, 2, 2)).sum(), (0, 1))(x, kernel)[1]

    forward = 2 * (2 * 4 * 3 * 3) * 27 * 16 * 32
    for platform in ('tpu', 'cpu'):
        assert count(conv3d, x_BTHWC, kernel_THWIO, platform=platform) == 2 * (2 * 7 * 6 * 6) * 27 * 16 * 32
        assert count(step, x_BTHWC, kernel_THWIO, platform=platform) == 2 * forward


W = shaped(4, 4)


def test_a_scan_counts_its_body_every_time_and_inner_scans_again():
    def scanned(x, w, length=1):
        return lax.scan(lambda x, _: (x @ w, None), x, length=length)[0]

    def nested(x, w):
        return lax.scan(lambda x, _: (scanned(x, w, 5), None), x, length=3)[0]

    assert count(lambda x, w: scanned(x, w, 7), W, W) == 7 * 2 * 4**3
    assert count(nested, W, W) == 15 * 2 * 4**3


def test_the_costlier_branch_counts():
    def choose(x, w):
        return lax.cond(x[0, 0] < 0, lambda: x @ w @ w, lambda: x @ w)

    assert count(choose, W, W) == 2 * 2 * 4**3


def test_a_loop_of_unknown_length_is_refused_if_there_are_flops_in_it():
    def loop(body):
        return lambda x, w: lax.while_loop(lambda x: x[0, 0] < 1, lambda x: body(x, w), x)

    assert count(loop(jnp.add), W, W) == 0
    with pytest.raises(ValueError, match='while does 128 FLOPs a turn'):
        count(loop(jnp.matmul), W, W)


def mlp_loss(weights, x):
    for w in weights:
        x = jax.nn.gelu(x @ w)
    return jnp.square(x).sum()


def test_a_training_step_of_an_mlp_is_three_passes_without_the_gradient_by_its_input():
    widths, batch = [5, 7, 11, 3], 13
    weights = [shaped(a, b) for a, b in itertools.pairwise(widths)]
    by_layer = [2 * batch * a * b for a, b in itertools.pairwise(widths)]
    x = shaped(batch, widths[0])
    assert count(mlp_loss, weights, x) == sum(by_layer)
    assert count(jax.value_and_grad(mlp_loss), weights, x) == 3 * sum(by_layer) - by_layer[0]


def test_what_is_recomputed_counts_again():
    weights, x = [W, W], shaped(4, 4)

    def remat(w, x):
        return jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w[0]) @ w[1]))(w, x).sum()

    # Two products forward, two again (the last is needed for the derivative of its sine), three backward.
    assert count(jax.value_and_grad(remat), weights, x) == 7 * 2 * 4**3


def test_a_denoiser_costs_what_its_layers_do():
    """Projections and MLP 24 D^2 a token and layer, attention 4 P D; embeddings and modulation by hand."""
    denoiser = Walt((2, 4, 4, 3), classes=10, width=8, depth=4, heads=2, spatiotemporal_window=(2, 2), rank=2)
    z = shaped(5, *denoiser.latent_shape)
    cond = {'label': shaped(5, dtype=jnp.int32), 'estimate': z}
    args = (z, shaped(5), cond)
    params = jax.eval_shape(lambda *args: denoiser.init(jax.random.key(0), *args), *args)
    tokens, width = 2 * 4 * 4, 8
    layers = 4 * 24 * width**2 * tokens + 2 * 4 * (16 + 8) * width * tokens
    patches = 2 * tokens * width * (2 * 3 + 3)
    time = 2 * (256 * width + width * width)
    modulation = 2 * (6 + 2) * width * width + 4 * 2 * (width * 2 + 2 * 6 * width)
    assert count(denoiser.apply, params, *args) == 5 * (layers + patches + time + modulation)
