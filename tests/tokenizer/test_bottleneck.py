"""Bottlenecks: what the decoder gets, what the terms measure, and how gradients pass through codes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.bottleneck import Continuous, Fsq, Kl, Lfq, Vq, code_counts, code_metrics

CHANNELS = 3
DISCRETE = {'vq': Vq(codes=16), 'lfq': Lfq(group_bits=2), 'fsq': Fsq(levels=(4, 3, 5))}
ALL = {'none': Continuous(), 'kl': Kl(), **DISCRETE}


@pytest.fixture
def h(rng):
    return lambda bottleneck: jnp.asarray(rng.normal(size=(2, 3, 4, 4, bottleneck.features(CHANNELS))), jnp.float32)


@pytest.fixture
def call(random_parameters):
    """call(bottleneck, h, key_B=None) -> Bottled."""

    def call(bottleneck, h, key_B=None):
        params = random_parameters(bottleneck, h, scale=1.0) if isinstance(bottleneck, Vq) else {}
        return bottleneck.apply({'params': params}, h, key_B)

    return call


@pytest.mark.parametrize('name', ALL)
def test_latents_have_their_shape_and_the_terms_their_names(name, h, call):
    bottled = call(ALL[name], h(ALL[name]), jax.random.split(jax.random.key(0)))
    assert bottled.z_BTHWC.shape == (2, 3, 4, 4, CHANNELS)
    assert set(bottled.terms) == set(ALL[name].terms)
    assert all(term.shape == () and np.isfinite(term) for term in bottled.terms.values())
    assert (bottled.codes_BTHW is None) == (name not in DISCRETE) == (ALL[name].size(CHANNELS) == 0)


@pytest.mark.parametrize('name', DISCRETE)
def test_a_code_stands_for_one_latent_and_codes_are_in_range(name, h, call):
    bottled = call(DISCRETE[name], h(DISCRETE[name]))
    codes, z = np.asarray(bottled.codes_BTHW).ravel(), np.asarray(bottled.z_BTHWC).reshape(-1, CHANNELS)
    assert codes.min() >= 0 and codes.max() < DISCRETE[name].size(CHANNELS)
    for code in np.unique(codes):
        np.testing.assert_allclose(z[codes == code], z[codes == code][:1].repeat((codes == code).sum(), 0), atol=1e-5)
    assert len(np.unique(codes)) == len(np.unique(z.round(4), axis=0)) > 4


@pytest.mark.parametrize('name', ['lfq', 'fsq'])
def test_latents_pass_through_once_more_unchanged(name, h, call):
    """A latent is its own nearest code, up to how FSQ bounds its input."""
    z = call(DISCRETE[name], h(DISCRETE[name])).z_BTHWC
    if name == 'fsq':
        inner = (z + 1) / 2
        z_again = call(DISCRETE[name], jnp.log(inner + 1e-4) - jnp.log(1 - inner + 1e-4)).z_BTHWC
    else:
        z_again = call(DISCRETE[name], z).z_BTHWC
    np.testing.assert_allclose(z_again, z, atol=1e-5)


@pytest.mark.parametrize('name', ['vq', 'lfq'])
def test_gradients_pass_straight_through(name, h, call):
    bottleneck = DISCRETE[name]
    x = h(bottleneck)
    if name == 'vq':  # which sees directions only
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True))
    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    gradient = jax.grad(lambda x: (call(bottleneck, x).z_BTHWC * weights).sum())(x)
    if name == 'vq':
        radial = (weights * x).mean(-1, keepdims=True) * x
        np.testing.assert_allclose(gradient, weights - radial, atol=1e-4)
    else:
        np.testing.assert_allclose(gradient, weights, atol=1e-6)


def test_fsq_rounds_a_sigmoid_and_keeps_its_gradient():
    h = jnp.array([[-9.0, 0.1, 9.0]])
    gradient = jax.grad(lambda h: Fsq(levels=(3, 3, 3)).apply({}, h).z_BTHWC.sum())(h)
    np.testing.assert_allclose(Fsq(levels=(3, 3, 3)).apply({}, h).z_BTHWC, [[-1, 0, 1]], atol=1e-6)
    sigmoid = jax.nn.sigmoid(h)
    np.testing.assert_allclose(gradient, 2 * sigmoid * (1 - sigmoid), atol=1e-6)


def test_vq_takes_the_nearest_code_of_the_sphere(rng):
    h = jnp.asarray(rng.normal(size=(5, CHANNELS)), jnp.float32)
    codebook = jnp.asarray(rng.normal(size=(16, CHANNELS)), jnp.float32)
    bottled = Vq(codes=16).apply({'params': {'codebook': codebook}}, h)

    def on_sphere(x):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True))

    distance = np.square(on_sphere(h)[:, None] - on_sphere(codebook)).sum(-1)
    np.testing.assert_array_equal(bottled.codes_BTHW, distance.argmin(1))
    np.testing.assert_allclose(bottled.z_BTHWC, on_sphere(codebook)[distance.argmin(1)], atol=1e-4)
    np.testing.assert_allclose(bottled.terms['commitment'], distance.min(1).mean() / CHANNELS, rtol=1e-4)
    np.testing.assert_allclose(bottled.terms['coverage'], distance.min(0).mean() / CHANNELS, rtol=1e-4)


def test_of_vqs_terms_one_moves_h_and_two_move_codes(rng):
    h = jnp.asarray(rng.normal(size=(4, CHANNELS)), jnp.float32)
    codebook = jnp.asarray(rng.normal(size=(16, CHANNELS)), jnp.float32)

    def gradients(term):
        of = lambda codebook, h: Vq(codes=16).apply({'params': {'codebook': codebook}}, h).terms[term]  # noqa: E731
        return [np.abs(gradient).max(-1) for gradient in jax.grad(of, (0, 1))(codebook, h)]

    moved = {term: gradients(term) for term in Vq.terms}
    assert {term: bool(of_h.any()) for term, (_, of_h) in moved.items()} == {
        'codebook': False,
        'commitment': True,
        'coverage': False,
    }
    assert not moved['commitment'][0].any()
    assert 0 < (moved['codebook'][0] > 1e-6).sum() <= 4  # only codes that were chosen
    assert (moved['coverage'][0] > 1e-6).all()  # and all of them


def test_vqs_codes_find_data_that_fill_a_small_part_of_the_sphere(rng):
    """In 200 steps of Adam, from wherever they start."""
    module, optimizer = Vq(codes=64), optax.adam(2e-3)
    h = jnp.asarray(3 * np.ones(4) + rng.normal(size=(512, 4)), jnp.float32)

    def loss(params):
        bottled = module.apply({'params': params}, h)
        return bottled.terms['codebook'] + 0.25 * bottled.terms['coverage'], bottled.codes_BTHW

    def update(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss, has_aux=True)(params)[0], state)
        return (optax.apply_updates(params, updates), state), None

    params = nn.unbox(module.init(jax.random.key(0), h))['params']
    before = code_metrics(code_counts(loss(params)[1], 64))
    (params, _), _ = jax.jit(lambda start: jax.lax.scan(update, start, length=200))((params, optimizer.init(params)))
    after = code_metrics(code_counts(loss(params)[1], 64))
    assert before['perplexity'] < 8 and after['perplexity'] > 25, (before, after)


def test_kl_is_that_of_the_gaussian_and_is_0_for_the_unit_one(h):
    zero = Kl().apply({}, jnp.zeros((1, 1, 2, 2, 6)))
    np.testing.assert_allclose(zero.terms['kl'], 0, atol=1e-6)
    mean, log_variance = 0.7, -1.2
    h = jnp.concatenate([jnp.full((1, 1, 1, 1, 3), mean), jnp.full((1, 1, 1, 1, 3), log_variance)], -1)
    std = np.exp(log_variance / 2)
    x = np.linspace(-12, 12, 20001)
    p = np.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi))
    q = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    expected = np.trapezoid(p * (np.log(p + 1e-300) - np.log(q)), x)
    np.testing.assert_allclose(Kl().apply({}, h).terms['kl'], expected, rtol=1e-4)


def test_kl_draws_by_its_key_around_the_mean_it_encodes_to():
    h = jnp.concatenate([jnp.full((40, 1, 8, 8, 3), 2.0), jnp.full((40, 1, 8, 8, 3), np.log(0.25))], -1)
    drawn = Kl().apply({}, h, jax.random.split(jax.random.key(0), len(h))).z_BTHWC
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [2, 0.5], atol=0.02)
    np.testing.assert_array_equal(Kl().apply({}, h).z_BTHWC, 2.0)
    assert (drawn != Kl().apply({}, h, jax.random.split(jax.random.key(1), len(h))).z_BTHWC).all()


def test_kl_stays_finite_where_the_encoder_puts_out_a_variance_beyond_all_bounds():
    h, key_B = jnp.full((1, 1, 1, 1, 6), 200.0).at[..., 4:].set(-1e6), jax.random.split(jax.random.key(0), 1)
    value, gradient = jax.value_and_grad(lambda h: Kl().apply({}, h, key_B).terms['kl'])(h)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.isfinite(Kl().apply({}, h, key_B).z_BTHWC).all()


@pytest.mark.parametrize('group_bits', [3, 2])
def test_lfqs_entropy_is_that_of_a_softmax_over_all_codes(group_bits, rng):
    h = jnp.asarray(0.3 * rng.normal(size=(50, CHANNELS)), jnp.float32)
    temperature = 0.5
    term = Lfq(temperature, group_bits).apply({}, h).terms['entropy']
    codes = np.array(list(itertools.product([-1, 1], repeat=CHANNELS)))
    q = np.array(jax.nn.softmax(-np.square(np.asarray(h)[:, None] - codes).sum(-1) / temperature, axis=-1))

    def entropy(q):
        return -(q * np.log(q)).sum(-1)

    joint = entropy(q).mean() - entropy(q.mean(0))
    if group_bits == CHANNELS:
        np.testing.assert_allclose(term, joint, rtol=1e-4)
    else:  # the entropy of groups is at least that of all together
        assert term <= joint


def test_lfqs_commitment_pulls_h_to_its_code():
    h = jnp.array([[-0.3, 0.4, 2.0]])
    value, gradient = jax.value_and_grad(lambda h: Lfq().apply({}, h).terms['commitment'])(h)
    np.testing.assert_allclose(value, (0.7**2 + 0.6**2 + 1) / 3, rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 / 3 * np.array([[0.7, -0.6, 1.0]]), rtol=1e-5)


def test_lfqs_entropy_has_a_gradient_where_every_h_is_sure_of_one_code():
    gradient = jax.grad(lambda h: Lfq().apply({}, h).terms['entropy'])(jnp.full((5, CHANNELS), 3.0))
    assert np.isfinite(gradient).all()


def test_perplexity_and_use_of_codes():
    counts = code_counts(jnp.array([[0, 0, 1, 1], [3, 3, 2, 2]]), 8)
    np.testing.assert_array_equal(counts, [2, 2, 2, 2, 0, 0, 0, 0])
    metrics = code_metrics(counts)
    np.testing.assert_allclose([metrics['code_use'], metrics['perplexity']], [0.5, 4.0], rtol=1e-5)
    np.testing.assert_allclose(code_metrics(jnp.array([7, 0]))['perplexity'], 1.0, rtol=1e-5)


def test_levels_that_do_not_fit_the_channels_are_refused_with_both():
    with pytest.raises(ValueError, match=r'levels \(8, 8, 8, 5, 5, 5\) .* 8 channels'):
        Tokenizer(bottleneck=Fsq())
    with pytest.raises(ValueError, match=r'levels \(8, 1\) must be 2 or more'):
        Tokenizer(latent_channels=2, bottleneck=Fsq(levels=(8, 1)))
