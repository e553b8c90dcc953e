"""A learned variance: its range, its bound, and the sampler that draws with it, where all of it is known exactly."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.prediction import target
from walt.diffusion.sampler import draw_noise, sample
from walt.diffusion.schedules import ContinuousLinear, Cosine, DiscreteLinear, RectifiedFlow, corrupt, over_trailing
from walt.diffusion.steppers import Ddim, LearnedAncestral, Pass, ancestral
from walt.diffusion.variance import (
    _log_level,
    bound_bits,
    log_variance,
    new_noise,
    posterior_mean,
    split_prediction,
)
from walt.randomness import normal, row_keys, stream

RAW = DiscreteLinear(zero_terminal_snr=False)  # the schedule of DDPM, ADM and DiT
BETA = np.linspace(1e-4, 0.02, 1000)
GAMMA = np.cumprod(1 - BETA)
MEAN, STD = 0.1, 0.2


def published_steps(steps: int, count: int) -> list[int]:
    """Which of `steps` steps, counted from 0, IDDPM keeps `count` of: the first and the last and evenly between."""
    stride, place, kept = (steps - 1) / (count - 1), 0.0, []
    for _ in range(count):
        kept.append(round(place))
        place += stride
    return kept


@pytest.mark.parametrize('count', [2, 10, 50, 250, 400, 667, 1000])
def test_the_steps_that_are_kept_are_those_of_iddpm(count):
    times = RAW.sampling_times(count, last=1 / 1000)
    np.testing.assert_array_equal(np.round(times * 1000), [*(k + 1 for k in published_steps(1000, count)[::-1]), 0])


@pytest.mark.parametrize('schedule', [RAW, Cosine(100), ContinuousLinear(), RectifiedFlow(3.0)], ids=str)
def test_as_many_steps_as_there_are_is_no_respacing(schedule):
    np.testing.assert_allclose(schedule.sampling_times(100, 0.01), schedule.sampling_times(100), atol=1e-6)


def test_a_last_time_that_leaves_too_few_steps_is_refused():
    with pytest.raises(ValueError, match=r'600 times from 1 to 0\.5 do not fit a schedule of 1000'):
        RAW.sampling_times(600, 0.5)
    for steps, last in [(1, 0.1), (5, 0.0), (5, 1.0)]:
        with pytest.raises(ValueError, match=f'not {steps} to {last}'):
            ContinuousLinear().sampling_times(steps, last)


@pytest.mark.parametrize('count', [20, 250, 1000])
def test_the_range_of_the_variance_is_that_of_a_schedule_of_the_kept_steps_alone(count):
    """beta' = 1 - gamma / (gamma of the kept step before), beta~' from it by the formula of DDPM, in float64."""
    kept = GAMMA[published_steps(1000, count)]
    before = np.concatenate([[1.0], kept[:-1]])
    beta = 1 - kept / before
    lower = beta * (1 - before) / (1 - kept)
    alphas, sigmas = RAW.alpha_sigma(RAW.sampling_times(count, 1 / 1000)[::-1])
    at_t, at_s = (alphas[2:], sigmas[2:]), (alphas[1:-1], sigmas[1:-1])
    ends = [jnp.exp(log_variance(jnp.full(count - 1, share), at_t, at_s)) for share in (0.0, 1.0, 0.3)]
    np.testing.assert_allclose(ends[0], lower[1:], rtol=2e-4)
    np.testing.assert_allclose(ends[1], beta[1:], rtol=2e-4)
    np.testing.assert_allclose(ends[2], lower[1:] ** 0.7 * beta[1:] ** 0.3, rtol=2e-4)
    if count == 1000:
        np.testing.assert_allclose(beta, BETA, rtol=1e-9)


def test_the_mean_is_that_of_ddpms_posterior():
    t, s, z0, z = 600, 560, 0.7, -0.4
    (gamma_t, gamma_s), beta = (GAMMA[k - 1] for k in (t, s)), 1 - GAMMA[t - 1] / GAMMA[s - 1]
    expected = math.sqrt(gamma_s) * beta / (1 - gamma_t) * z0 + math.sqrt(1 - beta) * (1 - gamma_s) / (1 - gamma_t) * z
    at_t, at_s = RAW.alpha_sigma(t / 1000), RAW.alpha_sigma(s / 1000)
    eps = (z - math.sqrt(gamma_t) * z0) / math.sqrt(1 - gamma_t)
    np.testing.assert_allclose(posterior_mean(jnp.array([z0]), jnp.array([eps]), at_t, at_s), [expected], rtol=1e-5)


def exact(schedule, t_B, z, at_s):
    """(z0, eps, share) of the exact model of z0 ~ N(MEAN, STD^2) at z_t: p(z_s | z_t) is a Gaussian too."""
    alpha, sigma = (over_trailing(x, z) for x in schedule.alpha_sigma(t_B))
    alpha_s, sigma_s = (over_trailing(x, z) for x in at_s)
    spread, spread_s = alpha**2 * STD**2 + sigma**2, alpha_s**2 * STD**2 + sigma_s**2
    z0 = MEAN + alpha * STD**2 / spread * (z - alpha * MEAN)
    eps = (z - alpha * z0) / sigma
    # var = beta spread_s / spread lies between beta~ = beta sigma_s^2 / sigma^2 and beta.
    share = jnp.log(spread_s / spread * sigma**2 / sigma_s**2) / jnp.log(sigma**2 / sigma_s**2)
    return z0, eps, jnp.broadcast_to(share, z.shape)


def gaussian(schedule, steps: int, last: float, parametrisation='eps', share=None):
    """A denoiser that learned the Gaussian and, for a sampler of these steps, its variance: 2 C channels."""
    times = jnp.asarray(schedule.sampling_times(steps, last))

    def denoise(z, t_B, cond):
        level = schedule.alpha_sigma(t_B)
        s_B = times[jnp.argmin(jnp.abs(times - t_B[:, None]), axis=1) + 1]
        z0, eps, found = exact(schedule, t_B, z, schedule.alpha_sigma(jnp.maximum(s_B, 1e-3)))
        found = found if share is None else jnp.full_like(found, share)
        return jnp.concatenate([target(parametrisation, z0, eps, *level), 2 * found - 1], axis=-1)

    return denoise


def drawn(denoise, stepper, steps, count=40_000, schedule=RAW, last=1 / 1000, parametrisation='eps', seed=0):
    key_B = row_keys(jax.random.key(seed), 1)
    options = dict(self_conditioning=False, parametrisation=parametrisation, last_time=last)
    noise = draw_noise(key_B, (count,))
    return sample(denoise, noise, {}, schedule=schedule, stepper=stepper, steps=steps, key_B=key_B, **options)


@pytest.mark.parametrize(('schedule', 'parametrisation'), [(RAW, 'eps'), (RAW, 'v'), (DiscreteLinear(), 'v')], ids=str)
def test_few_steps_with_the_exact_variance_sample_the_gaussian_exactly(schedule, parametrisation):
    """In 10 steps; with either end of the range in its place they do not."""
    steps = 10
    found, low, high = (
        drawn(
            gaussian(schedule, steps, 1e-3, parametrisation, share),
            LearnedAncestral(),
            steps,
            schedule=schedule,
            parametrisation=parametrisation,
        ).std()
        for share in (None, 0.0, 1.0)
    )
    np.testing.assert_allclose(found, STD, rtol=0.02)
    assert low < 0.9 * STD and high > 1.5 * STD


def test_the_lower_end_of_the_range_is_ancestral_sampling():
    denoise = gaussian(RAW, 10, 1e-3, share=0.0)
    ours, theirs = (drawn(denoise, stepper, 10, 50) for stepper in (LearnedAncestral(), ancestral()))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_other_steppers_sample_from_the_prediction_alone():
    with_variance = gaussian(RAW, 50, 1e-3)

    def without(z, t_B, cond):
        return with_variance(z, t_B, cond)[..., : z.shape[-1]]

    np.testing.assert_array_equal(*(drawn(denoise, Ddim(), 50, 50) for denoise in (with_variance, without)))
    with pytest.raises(ValueError, match='the denoiser predicts none'):
        drawn(without, LearnedAncestral(), 50, 50)


def test_the_denoiser_is_told_the_times_that_it_was_trained_with():
    told = []

    def denoise(z, t_B, cond):
        jax.debug.callback(lambda t: told.append(round(float(t) * 1000)), t_B[0], ordered=True)
        return jnp.zeros((*z.shape[:-1], 2 * z.shape[-1]))

    drawn(denoise, LearnedAncestral(), 5, 4).block_until_ready()
    jax.effects_barrier()
    assert told == [1000, 750, 501, 251, 1]


def test_the_last_step_draws_nothing_whatever_the_share():
    here = Pass(
        jnp.ones((1, 3)), jnp.ones((1, 3)) / 2, jnp.ones((1, 3)), RAW.alpha_sigma(0.01), jnp.array([[-1, 1, 2.0]])
    )
    key_B = row_keys(jax.random.key(0), 1)
    np.testing.assert_array_equal(LearnedAncestral()(here, here, RAW.alpha_sigma(0.0), key_B), here.z0)


def uncorrelated(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two draws of normal numbers with means, variances and product as they are on average."""
    one, other = np.random.default_rng(0).normal(size=(2, count))
    one = (one - one.mean()) / one.std()
    other = other - other.mean() - one * (one * other).mean()
    return one.astype(np.float32), (other / other.std()).astype(np.float32)


@jax.jit
def bits_of_exact_model(t_B, shift=0.0, share=None):
    """K L_k of the exact model at every time; or of one that is `shift` off in z0, or has another share."""
    z0, eps = (jnp.broadcast_to(numbers, (len(t_B), 1000)) for numbers in uncorrelated(1000))
    z0 = MEAN + STD * z0
    z = corrupt(z0, eps, *RAW.alpha_sigma(t_B))
    at_s = RAW.alpha_sigma(jnp.maximum(t_B - 1e-3, 1e-3))
    predicted_z0, predicted_eps, found = exact(RAW, t_B, z, at_s)
    first = over_trailing(t_B < 1.5e-3, z)
    # At the first step var = STD^2 sigma^2 / spread, and beta~ stands in for 0.
    alpha, sigma = RAW.alpha_sigma(1e-3)
    floor = log_variance(jnp.zeros(()), RAW.alpha_sigma(2e-3), RAW.alpha_sigma(1e-3))
    log_var = jnp.log(STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2))
    found = jnp.where(first, (log_var - floor) / (2 * jnp.log(sigma) - floor), found)
    found = found if share is None else jnp.full_like(found, share)
    return bound_bits(RAW, t_B, z0, eps, predicted_z0 + shift, predicted_eps, found)


def test_the_bound_of_the_exact_model_is_the_entropy_of_the_data():
    """With the exact reverse chain the bound is tight: -log p(z0), of intervals of 2 / 255, on average."""
    bits = bits_of_exact_model(jnp.arange(1, 1001) / 1000)
    entropy = (math.log(STD * math.sqrt(2 * math.pi * math.e)) - math.log(2 / 255)) / math.log(2)
    np.testing.assert_allclose(bits.mean(), entropy, atol=0.005)


def test_any_other_model_has_a_larger_bound():
    t_B = jnp.array([0.001, 0.002, 0.02, 0.3])
    exact_B = bits_of_exact_model(t_B)
    assert (bits_of_exact_model(t_B, shift=0.05) > exact_B).all()
    for share in (-0.2, 1.2):
        assert (bits_of_exact_model(t_B, share=share) > exact_B).all()


def test_the_levels_of_a_picture_have_probability_one_in_all():
    levels = jnp.asarray(2 * np.arange(256) / 255 - 1, jnp.float32)[:, None]
    mean, log_var = jnp.array([0.0, 0.3, -1.0, 1.5, 0.999]), 2 * jnp.log(jnp.array([0.5, 0.004, 0.1, 1.0, 0.02]))
    probabilities = jnp.exp(_log_level(levels, mean, jnp.broadcast_to(log_var, (256, 5))))
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-4)


def test_the_bound_trains_the_variance_and_not_the_mean():
    """The gradient of the prediction is that of the plain loss; that of the variance is not zero."""
    z0 = jax.random.normal(jax.random.key(1), (6, 2, 4))
    key_B = row_keys(jax.random.key(0), 6)
    output = 0.3 * jax.random.normal(jax.random.key(2), (6, 2, 8))

    def gradient(loss, channels):
        def mean(output):
            return loss(lambda z, t_B, cond: output[..., :channels], z0, {}, key_B)[0].mean()

        return jax.jit(jax.grad(mean))(output)

    plain = gradient(DenoisingLoss(RAW, 'eps', 0.0), 4)
    hybrid = gradient(DenoisingLoss(RAW, 'eps', 0.0, vlb_weight=0.001), 8)
    np.testing.assert_allclose(hybrid[..., :4], plain[..., :4], rtol=1e-6)
    assert np.isfinite(hybrid).all() and np.abs(hybrid[..., 4:]).min() > 0


def test_the_hybrid_loss_is_the_plain_one_and_a_share_of_the_bound():
    """w = 0.001 of the K steps' sum is the whole L_k of one of 1000 steps."""
    z0 = 0.3 * jax.random.normal(jax.random.key(1), (6, 2, 4))
    key_B = row_keys(jax.random.key(0), 6)

    def denoise(z, t_B, cond):
        return jnp.concatenate([jnp.tanh(z), jnp.sin(3 * z)], axis=-1)

    hybrid_B, drawn = DenoisingLoss(RAW, 'eps', 0.0, vlb_weight=0.001)(denoise, z0, {}, key_B)
    plain_B, _ = DenoisingLoss(RAW, 'eps', 0.0)(lambda z, t_B, cond: jnp.tanh(z), z0, {}, key_B)
    for row, t in enumerate(np.asarray(drawn['t_B'])):
        k = round(float(t) * 1000)
        assert k > 1
        beta, gamma, before = BETA[k - 1], GAMMA[k - 1], GAMMA[k - 2]
        lower = beta * (1 - before) / (1 - gamma)
        eps = np.asarray(normal(stream(key_B, 'noise'), z0.shape[1:]), np.float64)[row]
        clean = np.asarray(z0, np.float64)[row]
        z = math.sqrt(gamma) * clean + math.sqrt(1 - gamma) * eps
        guess = (z - math.sqrt(1 - gamma) * np.tanh(z)) / math.sqrt(gamma)
        var = np.exp((np.sin(3 * z) + 1) / 2 * np.log(beta) + (1 - np.sin(3 * z)) / 2 * np.log(lower))
        off = math.sqrt(before) * beta / (1 - gamma) * (clean - guess)  # z has the same coefficient in both means
        kl = 0.5 * (np.log(var / lower) + (lower + off**2) / var - 1)
        np.testing.assert_allclose(hybrid_B[row] - plain_B[row], kl.mean() / math.log(2), rtol=2e-3)


def test_a_prediction_has_the_channels_of_the_latents_or_twice_as_many():
    z, output = jnp.zeros((2, 5, 3)), jnp.arange(60.0).reshape(2, 5, 6) / 60
    prediction, share = split_prediction(output, z)
    np.testing.assert_array_equal(prediction, output[..., :3])
    np.testing.assert_allclose(share, (output[..., 3:] + 1) / 2)
    assert split_prediction(output[..., :3], z)[1] is None
    with pytest.raises(ValueError, match=r'predicts \(2, 5, 4\) for latents of \(2, 5, 3\)'):
        split_prediction(output[..., :4], z)


def test_a_variance_that_nothing_trains_or_that_is_not_there_is_refused():
    z0, key_B = jnp.zeros((2, 3)), row_keys(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r'says about its variance, and vlb_weight is None'):
        DenoisingLoss(RAW, 'eps', 0.0)(lambda z, t_B, cond: jnp.zeros((2, 6)), z0, {}, key_B)
    with pytest.raises(ValueError, match=r'says nothing about its variance, and vlb_weight is 0\.001'):
        DenoisingLoss(RAW, 'eps', 0.0, vlb_weight=0.001)(lambda z, t_B, cond: z, z0, {}, key_B)
    with pytest.raises(ValueError, match=r'vlb_weight 0\.001 goes with a chain of steps, which ContinuousLinear'):
        DenoisingLoss(ContinuousLinear(), 'v', vlb_weight=0.001)
    with pytest.raises(ValueError, match='vlb_weight is None or positive, not 0'):
        DenoisingLoss(RAW, 'eps', vlb_weight=0.0)


def test_no_noise_is_new_where_nothing_changes_and_all_of_it_at_the_clean_end():
    at = RAW.alpha_sigma(0.5)
    assert float(new_noise(at, at)) < 1e-6
    assert float(new_noise(at, RAW.alpha_sigma(0.0))) == 1
