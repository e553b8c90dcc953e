"""Conversions among v, eps and z0."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.prediction import check, target, to_z0_eps
from walt.diffusion.schedules import ContinuousLinear, DiscreteLinear, corrupt

NAMES = ('v', 'eps', 'z0')


@pytest.fixture(params=[(4, 3), (4, 2, 3, 3, 2)], ids=['rank2', 'rank5'])
def pair(request):
    """z0, eps, z_t and the level of every example, away from both ends."""
    key_z0, key_eps = jax.random.split(jax.random.key(0))
    z0, eps = jax.random.normal(key_z0, request.param), jax.random.normal(key_eps, request.param)
    alpha_B, sigma_B = DiscreteLinear().alpha_sigma(jnp.array([0.1, 0.3, 0.5, 0.7]))
    return z0, eps, corrupt(z0, eps, alpha_B, sigma_B), alpha_B, sigma_B


@pytest.mark.parametrize('name', NAMES)
def test_the_target_gives_back_z0_and_eps(name, pair):
    z0, eps, z_t, *level = pair
    found = to_z0_eps(name, target(name, z0, eps, *level), z_t, *level)
    np.testing.assert_allclose(found, (z0, eps), atol=2e-5)


@pytest.mark.parametrize('names', itertools.product(NAMES, repeat=3))
def test_any_cycle_of_predictions_is_the_identity(names, pair):
    """Any prediction, not only a perfect one: a -> b -> c -> a."""
    _, _, z_t, *level = pair
    start = prediction = jax.random.normal(jax.random.key(1), z_t.shape)
    for here, there in zip(names, (*names[1:], names[0])):
        prediction = target(there, *to_z0_eps(here, prediction, z_t, *level), *level)
    np.testing.assert_allclose(prediction, start, atol=2e-4)


@pytest.mark.parametrize('name', NAMES)
def test_any_prediction_agrees_with_the_noisy_latents(name, pair):
    _, _, z_t, *level = pair
    z0, eps = to_z0_eps(name, jax.random.normal(jax.random.key(1), z_t.shape), z_t, *level)
    np.testing.assert_allclose(corrupt(z0, eps, *level), z_t, atol=2e-5)


def test_velocity_is_alpha_eps_minus_sigma_z0():
    z0, eps = jnp.array([[2.0]]), jnp.array([[3.0]])
    np.testing.assert_allclose(target('v', z0, eps, jnp.array([0.8]), jnp.array([0.6])), 0.8 * 3 - 0.6 * 2, rtol=1e-6)


def test_at_zero_snr_z0_is_minus_v_and_the_latents_say_nothing():
    v, alpha, sigma = jnp.array([[1.5]]), jnp.zeros(1), jnp.ones(1)
    for z_t in (jnp.array([[0.0]]), jnp.array([[100.0]])):
        z0, eps = to_z0_eps('v', v, z_t, alpha, sigma)
        np.testing.assert_array_equal(z0, -v)
        np.testing.assert_array_equal(eps, z_t)


@pytest.mark.parametrize('name', NAMES)
def test_low_precision_predictions_are_converted_in_float32(name, pair):
    _, _, z_t, *level = pair
    assert {x.dtype for x in to_z0_eps(name, z_t.astype(jnp.bfloat16), z_t, *level)} == {jnp.dtype('float32')}


def test_an_unknown_parametrisation_lists_the_choices():
    with pytest.raises(ValueError, match=r"'x0' is none of \['eps', 'v', 'z0'\]"):
        check('x0', DiscreteLinear())


@pytest.mark.parametrize('kind', [DiscreteLinear, ContinuousLinear])
def test_eps_prediction_is_refused_under_zero_terminal_snr_only(kind):
    with pytest.raises(ValueError, match=rf"'eps' does not go with {kind.__name__}.*alpha is 0 at t = 1"):
        check('eps', kind())
    check('eps', kind(zero_terminal_snr=False))
