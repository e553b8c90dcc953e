"""Steps of a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.schedules import ContinuousLinear, DiscreteLinear, RectifiedFlow, corrupt
from walt.diffusion.steppers import Ddim, DpmSolverPlusPlus2M, Heun, Pass, ancestral
from walt.randomness import normal, stream

SCHEDULE = DiscreteLinear()
KEY_B = stream(jax.random.key(0), 'clip', jnp.arange(2))
STEPS = [(1000, 999), (1000, 980), (999, 998), (500, 480), (20, 10), (2, 1)]


@pytest.fixture
def pair():
    z0, eps = jax.random.normal(jax.random.key(1), (2, 2, 3, 4))
    return z0, eps


def _step(stepper, z0, eps, at_t, at_s, key_B, before=None):
    here = Pass(corrupt(z0, eps, *at_t), z0, eps, at_t)
    return stepper(here, before or Pass(eps, jnp.zeros_like(eps), eps, (0.0, 1.0)), at_s, key_B)


def test_without_eta_a_step_only_changes_the_level(pair):
    at_t, at_s = SCHEDULE.alpha_sigma(0.5), SCHEDULE.alpha_sigma(0.4)
    np.testing.assert_array_equal(_step(Ddim(), *pair, at_t, at_s, KEY_B), corrupt(*pair, *at_s))


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('t', [1.0, 0.02])
def test_the_last_step_is_z0(eta, t, pair):
    z_s = _step(Ddim(eta), *pair, SCHEDULE.alpha_sigma(t), SCHEDULE.alpha_sigma(0.0), KEY_B)
    np.testing.assert_array_equal(z_s, pair[0])


def _coefficients(eta, at_t, at_s):
    """Returns the coefficients of z0, eps and the new noise in z_s."""
    one, zero = jnp.ones((2, 3)), jnp.zeros((2, 3))
    new = _step(Ddim(eta), zero, zero, at_t, at_s, KEY_B)
    return (
        float((_step(Ddim(eta), one, zero, at_t, at_s, KEY_B) - new)[0, 0]),
        float((_step(Ddim(eta), zero, one, at_t, at_s, KEY_B) - new)[0, 0]),
        float((new / normal(KEY_B, (3,)))[0, 0]),
    )


@pytest.mark.parametrize('eta', [0.3, 1.0])
@pytest.mark.parametrize('t, s', STEPS)
def test_every_eta_keeps_the_marginal(eta, t, s):
    at_t, at_s = (SCHEDULE.alpha_sigma(k / 1000) for k in (t, s))
    signal, old, new = _coefficients(eta, at_t, at_s)
    np.testing.assert_allclose(signal, at_s[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.hypot(old, new), at_s[1], rtol=1e-5)


@pytest.mark.parametrize('t, s', STEPS)
def test_eta_one_draws_with_the_variance_of_the_ddpm_posterior(t, s):
    """(1 - gamma_s) / (1 - gamma_t) (1 - gamma_t / gamma_s), from a schedule in float64."""
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    gamma = np.concatenate([[1], ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2])
    variance = (1 - gamma[s]) / (1 - gamma[t]) * (1 - gamma[t] / gamma[s])
    at_t, at_s = (SCHEDULE.alpha_sigma(k / 1000) for k in (t, s))
    np.testing.assert_allclose(_coefficients(1.0, at_t, at_s)[2], np.sqrt(variance), rtol=1e-4)
    np.testing.assert_allclose(_coefficients(0.3, at_t, at_s)[2], 0.3 * np.sqrt(variance), rtol=1e-4)


def test_levels_may_differ_between_examples(pair):
    at_t, at_s = (SCHEDULE.alpha_sigma(jnp.array(t)) for t in ([1.0, 0.5], [0.9, 0.4]))
    both = _step(Ddim(0.5), *pair, at_t, at_s, KEY_B)
    for i in range(2):
        alone = _step(
            Ddim(0.5),
            *(x[i : i + 1] for x in pair),
            *(tuple(x[i] for x in at) for at in (at_t, at_s)),
            KEY_B[i : i + 1],
        )
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-6)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match=r'\[0, 1\], not 1\.5'):
        Ddim(1.5)


def test_ancestral_is_ddim_with_all_noise_new():
    assert ancestral() == Ddim(eta=1.0)


@pytest.mark.parametrize('t, s', [(0.9, 0.8), (0.5, 0.1)])
def test_ancestral_draws_with_the_variance_of_the_posterior_off_the_circle_too(t, s):
    """q(z_s | z_t, z0) of z_t = (alpha_t / alpha_s) z_s + noise, under rectified flow in float64."""
    at_t, at_s = (RectifiedFlow().alpha_sigma(x) for x in (t, s))
    forward = t**2 - ((1 - t) / (1 - s) * s) ** 2
    signal, old, new = _coefficients(1.0, at_t, at_s)
    np.testing.assert_allclose(new, np.sqrt(forward) * s / t, rtol=1e-5)
    np.testing.assert_allclose(old, (1 - t) / (1 - s) * s**2 / t, rtol=1e-5)
    np.testing.assert_allclose(signal, 1 - s, rtol=1e-4)


TIMES = np.array([1.0, 0.6, 0.3, 0.0], np.float32)


def test_ddim_and_dpm_solver_visit_every_time_once_and_heun_all_but_the_first_and_the_last_twice():
    for stepper in (Ddim(), DpmSolverPlusPlus2M()):
        np.testing.assert_array_equal(stepper.visits(TIMES), TIMES)
    np.testing.assert_array_equal(Heun().visits(TIMES), np.array([1.0, 0.6, 0.6, 0.3, 0.3, 0.0], np.float32))
    np.testing.assert_array_equal(Heun().visits(TIMES[[0, -1]]), [1, 0])


@pytest.mark.parametrize('schedule', [DiscreteLinear(), RectifiedFlow()], ids=['circle', 'line'])
@pytest.mark.parametrize('stepper', [Heun(), DpmSolverPlusPlus2M()], ids=str)
@pytest.mark.parametrize('t, s', [(1.0, 0.6), (1.0, 0.0), (0.3, 0.0)])
def test_the_first_step_and_the_last_step_are_those_of_ddim(t, s, stepper, schedule, pair):
    at_t, at_s = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    before = None if t == 1 else Pass(*jax.random.normal(jax.random.key(2), (3, 2, 3, 4)), schedule.alpha_sigma(0.6))
    z_s = _step(stepper, *pair, at_t, at_s, KEY_B, before)
    np.testing.assert_allclose(z_s, corrupt(*pair, *at_s), atol=1e-6)
    if s == 0:
        np.testing.assert_array_equal(z_s, pair[0])


def test_the_second_pass_of_heun_does_the_step_again_with_the_mean_velocity():
    """On the circle, from angle phi_t to phi_s."""
    at_t, at_s = (ContinuousLinear().alpha_sigma(t) for t in (0.5, 0.3))
    z_t, eps_t, z0_t, z0_s, eps_s = jax.random.normal(jax.random.key(3), (5, 2, 3))
    start = Pass(z_t, z0_t, eps_t, at_t)
    end = Pass(corrupt(z0_s, eps_s, *at_s), z0_s, eps_s, at_s)
    v_t, v_s = (at[0] * eps - at[1] * z0 for at, z0, eps in ((at_t, z0_t, eps_t), (at_s, z0_s, eps_s)))
    turn = np.arcsin(at_s[1]) - np.arcsin(at_t[1])
    np.testing.assert_allclose(Heun()(end, start, at_s, KEY_B), z_t + turn * (v_t + v_s) / 2, atol=1e-5)


def test_dpm_solver_is_its_algorithm():
    """Equation (7) as arXiv:2211.01095 writes it, in float64."""
    at_r, at_t, at_s = (ContinuousLinear().alpha_sigma(t) for t in (0.7, 0.5, 0.3))
    z0, eps, z0_r = jax.random.normal(jax.random.key(3), (3, 2, 3))
    before = Pass(jnp.full_like(z0, jnp.nan), z0_r, jnp.full_like(z0, jnp.nan), at_r)
    (a_r, s_r), (a_t, s_t), (a_s, s_s) = (np.asarray(at, np.float64) for at in (at_r, at_t, at_s))
    h, h_before = np.log(a_s / s_s * s_t / a_t), np.log(a_t / s_t * s_r / a_r)
    ratio = h_before / h
    data = (1 + 1 / (2 * ratio)) * z0 - 1 / (2 * ratio) * z0_r
    expected = s_s / s_t * corrupt(z0, eps, *at_t) - a_s * np.expm1(-h) * data
    np.testing.assert_allclose(_step(DpmSolverPlusPlus2M(), z0, eps, at_t, at_s, KEY_B, before), expected, atol=1e-5)


def test_an_infinite_lambda_before_leaves_the_prediction_as_it_is(pair):
    """The second step after zero terminal SNR."""
    at_t, at_s = (DiscreteLinear().alpha_sigma(t) for t in (0.8, 0.6))
    before = Pass(*jax.random.normal(jax.random.key(2), (3, 2, 3, 4)), DiscreteLinear().alpha_sigma(1.0))
    z_s = _step(DpmSolverPlusPlus2M(), *pair, at_t, at_s, KEY_B, before)
    np.testing.assert_allclose(z_s, corrupt(*pair, *at_s), atol=1e-5)
