"""Steps of a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.schedules import DiscreteLinear, corrupt
from walt.diffusion.steppers import Ddim
from walt.randomness import normal, stream

SCHEDULE = DiscreteLinear()
KEY_B = stream(jax.random.key(0), 'clip', jnp.arange(2))
STEPS = [(1000, 999), (1000, 980), (999, 998), (500, 480), (20, 10), (2, 1)]


@pytest.fixture
def pair():
    z0, eps = jax.random.normal(jax.random.key(1), (2, 2, 3, 4))
    return z0, eps


def test_without_eta_a_step_only_changes_the_level(pair):
    at_t, at_s = SCHEDULE.alpha_sigma(0.5), SCHEDULE.alpha_sigma(0.4)
    np.testing.assert_array_equal(Ddim()(*pair, at_t, at_s, KEY_B), corrupt(*pair, *at_s))


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('t', [1.0, 0.02])
def test_the_last_step_is_z0(eta, t, pair):
    z_s = Ddim(eta)(*pair, SCHEDULE.alpha_sigma(t), SCHEDULE.alpha_sigma(0.0), KEY_B)
    np.testing.assert_array_equal(z_s, pair[0])


def _coefficients(eta, at_t, at_s):
    """Returns the coefficients of z0, eps and the new noise in z_s."""
    one, zero = jnp.ones((2, 3)), jnp.zeros((2, 3))
    new = Ddim(eta)(zero, zero, at_t, at_s, KEY_B)
    return (
        float((Ddim(eta)(one, zero, at_t, at_s, KEY_B) - new)[0, 0]),
        float((Ddim(eta)(zero, one, at_t, at_s, KEY_B) - new)[0, 0]),
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
    both = Ddim(0.5)(*pair, at_t, at_s, KEY_B)
    for i in range(2):
        alone = Ddim(0.5)(
            *(x[i : i + 1] for x in pair), *(tuple(x[i] for x in at) for at in (at_t, at_s)), KEY_B[i : i + 1]
        )
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-6)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match=r'\[0, 1\], not 1\.5'):
        Ddim(1.5)
