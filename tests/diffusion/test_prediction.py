"""Conversions among v, eps and z0."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.prediction import check, target, to_z0_eps
from walt.diffusion.schedules import ContinuousLinear, Cosine, DiscreteLinear, RectifiedFlow, corrupt

NAMES = ('v', 'eps', 'z0', 'flow')


def _pair(shape, schedule):
    """z0, eps, z_t and the level of every example, away from both ends."""
    z0, eps = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0)))
    alpha_B, sigma_B = schedule.alpha_sigma(jnp.array([0.1, 0.3, 0.5, 0.7]))
    return z0, eps, corrupt(z0, eps, alpha_B, sigma_B), alpha_B, sigma_B


@pytest.fixture(params=[(4, 3), (4, 2, 3, 3, 2)], ids=['rank2', 'rank5'])
def pair(request):
    return _pair(request.param, DiscreteLinear())


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


@pytest.mark.parametrize('names', itertools.product(('eps', 'z0', 'flow'), repeat=3))
def test_any_cycle_of_predictions_is_the_identity_off_the_circle(names):
    test_any_cycle_of_predictions_is_the_identity(names, _pair((4, 3), RectifiedFlow()))


def test_the_velocity_of_rectified_flow_is_the_derivative_of_the_latents_by_time():
    z0, eps = (jax.random.normal(key, (4, 3)) for key in jax.random.split(jax.random.key(0)))
    t_B = jnp.array([0.1, 0.3, 0.5, 0.7])
    _, derivative = jax.jvp(lambda t: corrupt(z0, eps, *RectifiedFlow().alpha_sigma(t)), [t_B], [jnp.ones(4)])
    np.testing.assert_allclose(target('flow', z0, eps, *RectifiedFlow().alpha_sigma(t_B)), derivative, atol=1e-6)


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
    with pytest.raises(ValueError, match=r"'x0' is none of \['eps', 'flow', 'v', 'z0'\]"):
        check('x0', DiscreteLinear())


@pytest.mark.parametrize('kind', [DiscreteLinear, ContinuousLinear])
def test_eps_prediction_is_refused_under_zero_terminal_snr_only(kind):
    with pytest.raises(ValueError, match=rf"'eps' does not go with {kind.__name__}.*alpha is 0 at t = 1"):
        check('eps', kind())
    check('eps', kind(zero_terminal_snr=False))


def test_eps_and_v_are_refused_under_rectified_flow_and_the_others_are_not():
    with pytest.raises(ValueError, match=r"'eps' does not go with RectifiedFlow.*alpha is 0 at t = 1"):
        check('eps', RectifiedFlow())
    with pytest.raises(ValueError, match=r"'v' does not go with RectifiedFlow\(shift=3\.0.*alpha\^2 \+ sigma\^2 = 1"):
        check('v', RectifiedFlow(shift=3.0))
    for name in ('z0', 'flow'):
        check(name, RectifiedFlow())


@pytest.mark.parametrize('name', NAMES)
def test_every_parametrisation_goes_with_cosine(name):
    check(name, Cosine())


@pytest.mark.parametrize('schedule', [DiscreteLinear(), RectifiedFlow()], ids=['circle', 'line'])
@pytest.mark.parametrize('name', ['z0', 'flow'])
def test_both_ends_are_finite(name, schedule):
    prediction, z_t = jnp.array([[1.5], [1.5]]), jnp.array([[0.5], [0.5]])
    z0, eps = to_z0_eps(name, prediction, z_t, *schedule.alpha_sigma(jnp.array([0.0, 1.0])))
    assert np.isfinite(z0).all() and np.isfinite(eps[1])  # of z0, nothing follows for eps at the clean end
