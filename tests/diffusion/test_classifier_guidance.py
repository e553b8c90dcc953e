"""Classifier guidance on a mixture of Gaussians, where scores and classifier are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.guidance import Interval, by_classifier, of_estimate
from walt.diffusion.prediction import target, to_z0_eps
from walt.diffusion.sampler import draw_noise, sample
from walt.diffusion.schedules import ContinuousLinear, DiscreteLinear, RectifiedFlow, over_trailing
from walt.diffusion.steppers import Ddim, DpmSolverPlusPlus2M, LearnedAncestral
from walt.randomness import row_keys

MEANS = jnp.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
SHARES = jnp.array([0.6, 0.3, 0.1])
STD = 0.3
RAW = DiscreteLinear(zero_terminal_snr=False)


def log_joint(schedule, z, t_B):
    """log p(z_t, y) and E[z0 | z_t, y] of every class, (B, classes) and (B, classes, 2)."""
    alpha, sigma = (over_trailing(x, z)[:, None] for x in schedule.alpha_sigma(t_B))
    spread = alpha**2 * STD**2 + sigma**2
    off = z[:, None] - alpha * MEANS
    log = jnp.log(SHARES) - (jnp.square(off) / (2 * spread) + jnp.log(2 * jnp.pi * spread) / 2).sum(-1)
    return log, MEANS + alpha * STD**2 / spread * off


def log_prob(schedule):
    def log_prob(z, t_B, cond):
        log, _ = log_joint(schedule, z, t_B)
        return jnp.take_along_axis(jax.nn.log_softmax(log), cond['label'][:, None], axis=1)[:, 0]

    return log_prob


def denoiser(schedule, parametrisation, of_class: bool, variance: bool = False):
    """The exact denoiser of the mixture, or of the class in `cond`."""

    def denoise(z, t_B, cond):
        log, z0_of = log_joint(schedule, z, t_B)
        chosen = jax.nn.one_hot(cond['label'], 3) if of_class else jax.nn.softmax(log)
        z0 = (chosen[..., None] * z0_of).sum(1)
        level = schedule.alpha_sigma(t_B)
        _, eps = to_z0_eps('z0', z0, z, *level)
        prediction = target(parametrisation, z0, eps, *level)
        return jnp.concatenate([prediction, jnp.zeros_like(z)], axis=-1) if variance else prediction

    return denoise


@pytest.fixture
def inputs():
    z = 1.5 * jax.random.normal(jax.random.key(0), (6, 2))
    return z, jnp.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95]), {'label': jnp.array([0, 1, 2, 0, 1, 2])}


@pytest.mark.parametrize(
    ('schedule', 'parametrisation'),
    [(RAW, name) for name in ('eps', 'v', 'z0', 'flow')]
    + [(DiscreteLinear(), 'v'), (ContinuousLinear(), 'z0'), (RectifiedFlow(), 'flow'), (RectifiedFlow(), 'z0')],
    ids=str,
)
def test_the_exact_classifier_makes_of_the_mixtures_score_that_of_the_class(schedule, parametrisation, inputs):
    """At scale 1: Bayes' rule."""
    plain, exact = (denoiser(schedule, parametrisation, of_class) for of_class in (False, True))
    told = dict(schedule=schedule, parametrisation=parametrisation)
    guided = by_classifier(plain, log_prob(schedule), 1.0, **told)(*inputs)
    np.testing.assert_allclose(guided, exact(*inputs), atol=2e-4)
    assert np.abs(guided - plain(*inputs)).max() > 0.1


@pytest.mark.parametrize('scale', [2.5, Interval(3.0, 0.3, 0.7)], ids=str)
def test_the_gradient_counts_scale_times(scale, inputs):
    (z, t_B, cond), told = inputs, dict(schedule=RAW, parametrisation='eps')
    plain = denoiser(RAW, 'eps', False)
    once, guided = (by_classifier(plain, log_prob(RAW), w, **told)(z, t_B, cond) for w in (1.0, scale))
    weight = scale(t_B)[:, None] if callable(scale) else scale
    np.testing.assert_allclose(guided, plain(*inputs) + weight * (once - plain(*inputs)), atol=1e-5)
    assert by_classifier(plain, log_prob(RAW), 0.0, **told) is plain


def test_the_variance_of_a_denoiser_stays_its_own(inputs):
    plain = denoiser(RAW, 'eps', False, variance=True)
    guided = by_classifier(plain, log_prob(RAW), 2.0, schedule=RAW, parametrisation='eps')(*inputs)
    np.testing.assert_array_equal(guided[:, 2:], plain(*inputs)[:, 2:])
    assert np.abs(guided[:, :2] - plain(*inputs)[:, :2]).max() > 0.1


def test_where_z_says_nothing_nothing_is_added(inputs):
    z, _, cond = inputs
    plain = denoiser(DiscreteLinear(), 'v', False)
    guided = by_classifier(plain, lambda z, t_B, cond: z.sum(1), 5.0, schedule=DiscreteLinear(), parametrisation='v')
    np.testing.assert_array_equal(guided(z, jnp.ones(6), cond), plain(z, jnp.ones(6), cond))


def drawn(denoise, label, stepper, schedule=RAW, parametrisation='eps', count=1500):
    key_B, cond = row_keys(jax.random.key(1), count), {'label': jnp.full(count, label)}
    options = dict(schedule=schedule, stepper=stepper, steps=100, self_conditioning=False)
    noise = draw_noise(key_B, (2,))
    return sample(denoise, noise, cond, key_B=key_B, parametrisation=parametrisation, **options)


@pytest.mark.parametrize('label', [0, 2])
@pytest.mark.parametrize(
    ('stepper', 'schedule', 'parametrisation'),
    [(LearnedAncestral(), RAW, 'eps'), (Ddim(), RAW, 'eps'), (DpmSolverPlusPlus2M(), RectifiedFlow(), 'flow')],
    ids=str,
)
def test_samples_are_of_the_class_and_spread_as_it_does(stepper, schedule, parametrisation, label):
    """Also of a class that is a tenth of the data, with the denoiser of all of them."""
    told = dict(schedule=schedule, parametrisation=parametrisation)
    plain = denoiser(schedule, parametrisation, False, variance=True)
    guided = drawn(by_classifier(plain, log_prob(schedule), 1.0, **told), label, stepper, **told)
    np.testing.assert_allclose(guided.mean(0), MEANS[label], atol=0.05)
    np.testing.assert_allclose(guided.std(0), STD, rtol=0.1)


def test_a_classifier_of_clean_latents_is_asked_about_the_prediction(inputs):
    """Its value is that at z0, and with it samples are of the class."""
    (z, t_B, cond), told = inputs, dict(schedule=RAW, parametrisation='eps')
    plain = denoiser(RAW, 'eps', False, variance=True)

    def of_clean(z0, cond):
        return log_prob(RAW)(z0, jnp.zeros(len(z0)), cond)

    own = of_estimate(plain, of_clean, **told)
    z0, _ = to_z0_eps('eps', plain(z, t_B, cond)[:, :2], z, *RAW.alpha_sigma(t_B))
    np.testing.assert_allclose(own(z, t_B, cond), of_clean(z0, cond), rtol=1e-5)
    made = drawn(by_classifier(plain, own, 1.0, **told), 1, Ddim(), count=300)
    nearest = jnp.square(made[:, None] - MEANS).sum(-1).argmin(1)
    assert (nearest == 1).mean() > 0.95
