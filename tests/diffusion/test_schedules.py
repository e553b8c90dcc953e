"""Noise schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.schedules import ContinuousLinear, Cosine, DiscreteLinear, RectifiedFlow, corrupt
from walt.randomness import row_keys

SCHEDULES = [kind(zero_terminal_snr=zsnr) for kind in (DiscreteLinear, ContinuousLinear) for zsnr in (True, False)]


@pytest.fixture(params=SCHEDULES, ids=lambda s: f'{type(s).__name__}-{"zsnr" if s.zero_terminal_snr else "raw"}')
def schedule(request):
    return request.param


@pytest.mark.parametrize(
    'zero_terminal_snr, gamma',
    [
        (True, [1, 0.9999, 0.5215, 0.0760, 2.69e-3, 2.0e-6, 4.2e-9, 0]),
        (False, [1, 0.9999, 0.5241, 0.0786, 3.35e-3, 6.0e-5, 4.1e-5, 4.0e-5]),
    ],
)
def test_gamma_is_that_of_the_paper(zero_terminal_snr, gamma):
    t = np.array([0, 1, 250, 500, 750, 980, 999, 1000]) / 1000
    alpha, _ = DiscreteLinear(zero_terminal_snr=zero_terminal_snr).alpha_sigma(t)
    np.testing.assert_allclose(alpha**2, gamma, rtol=1e-2)
    np.testing.assert_allclose(alpha[:4] ** 2, gamma[:4], atol=5e-5)


def test_raw_alpha_ends_above_zero():
    alpha, _ = DiscreteLinear(zero_terminal_snr=False).alpha_sigma(1.0)
    np.testing.assert_allclose(alpha, 0.00635, atol=5e-6)


def test_alpha_and_sigma_lie_on_the_circle_and_run_from_clean_to_noise(schedule):
    t = np.linspace(0, 1, 1001)
    alpha, sigma = (np.asarray(x, np.float64) for x in schedule.alpha_sigma(t))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=3e-7)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (np.diff(alpha) < 0).all() and (np.diff(sigma[:500]) > 0).all()


@pytest.mark.parametrize('kind', [DiscreteLinear, ContinuousLinear])
@pytest.mark.parametrize(
    'fields', [{}, {'beta_end': 0.01}, {'beta_end': 0.011}, {'steps': 100, 'beta_start': 1e-3, 'beta_end': 0.2}]
)
def test_both_ends_are_exact(kind, fields):
    for run in (lambda f: f, jax.jit):
        alpha, sigma = run(kind(**fields).alpha_sigma)(jnp.array([0.0, 1.0]))
        np.testing.assert_array_equal(alpha, [1, 0])
        np.testing.assert_array_equal(sigma, [0, 1])


def test_zero_terminal_snr_keeps_the_first_step():
    t = 1 / 1000
    np.testing.assert_allclose(
        DiscreteLinear().alpha_sigma(t), DiscreteLinear(zero_terminal_snr=False).alpha_sigma(t), rtol=1e-6
    )


@pytest.mark.parametrize('zero_terminal_snr', [True, False])
def test_discrete_and_continuous_agree(zero_terminal_snr):
    t = np.arange(1, 1001) / 1000
    discrete = DiscreteLinear(zero_terminal_snr=zero_terminal_snr).alpha_sigma(t)
    continuous = ContinuousLinear(zero_terminal_snr=zero_terminal_snr).alpha_sigma(t)
    np.testing.assert_allclose(discrete, continuous, atol=1.4e-3)
    np.testing.assert_allclose(discrete[0] ** 2, continuous[0] ** 2, atol=1e-3)


@pytest.mark.parametrize('zero_terminal_snr', [True, False])
def test_continuous_is_the_limit_of_discrete(zero_terminal_snr):
    t = np.arange(1, 11) / 10
    continuous = np.stack(ContinuousLinear(zero_terminal_snr=zero_terminal_snr).alpha_sigma(t))

    def distance(refinement):
        fine = DiscreteLinear(1000 * refinement, 1e-4 / refinement, 0.02 / refinement, zero_terminal_snr)
        return np.abs(np.stack(fine.alpha_sigma(t)) - continuous).max()

    assert distance(100) < distance(10) / 5 < distance(1) / 25


@pytest.mark.parametrize('zero_terminal_snr', [True, False])
def test_continuous_keeps_its_digits_at_both_ends(zero_terminal_snr):
    schedule = ContinuousLinear(zero_terminal_snr=zero_terminal_snr)
    t = np.concatenate([np.geomspace(1e-7, 0.5, 50), 1 - np.geomspace(1e-6, 0.5, 50)]).astype(np.float32)
    alpha, sigma = schedule.alpha_sigma(t)

    t = t.astype(np.longdouble)
    raw, terminal = (np.exp(-500 * (1e-4 * t + 0.0199 * t**2 / 2)) for t in (t, np.longdouble(1)))
    shift = terminal if zero_terminal_snr else 0
    exact = (raw - shift) / (1 - shift)
    np.testing.assert_allclose(alpha, exact.astype(np.float64), rtol=2e-6)
    np.testing.assert_allclose(sigma, np.sqrt((1 - exact) * (1 + exact)).astype(np.float64), rtol=2e-6)


def test_training_times_cover_the_trained_range_evenly(schedule):
    t = np.asarray(schedule.draw_times(row_keys(jax.random.key(0), 4000)))
    assert t.dtype == np.float32 and t.min() >= 0 and t.max() <= 1
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


def test_discrete_training_draws_every_step_but_the_clean_one():
    t = DiscreteLinear(steps=5).draw_times(row_keys(jax.random.key(0), 500))
    np.testing.assert_allclose(np.unique(t), [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


def test_fifty_sampling_times_are_trailing(schedule):
    expected = [*range(1000, 0, -20), 0]
    np.testing.assert_allclose(schedule.sampling_times(50) * 1000, expected, atol=1e-4)


@pytest.mark.parametrize('steps', [1, 3, 7, 999, 1000])
def test_sampling_times_fall_from_one_to_zero_on_the_grid(steps):
    times = DiscreteLinear().sampling_times(steps)
    assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0 and (np.diff(times) < 0).all()
    np.testing.assert_allclose(times * 1000, np.round(times * 1000), atol=1e-4)


def test_schedules_are_static_arguments_and_jit_like_eager(schedule):
    t = jnp.linspace(0, 1, 7).reshape(1, 7)
    jitted = jax.jit(lambda schedule, t: schedule.alpha_sigma(t), static_argnums=0)(schedule, t)
    np.testing.assert_allclose(jitted, schedule.alpha_sigma(t), rtol=1e-6, atol=1e-7)
    assert jitted[0].shape == jitted[1].shape == t.shape and jitted[0].dtype == jitted[1].dtype == jnp.float32


def test_corruption_takes_one_level_an_example_in_any_rank():
    z0, eps = jnp.ones((2, 3, 4, 5)), 10 * jnp.ones((2, 3, 4, 5))
    z_t = corrupt(z0, eps, jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(z_t[0], 1)
    np.testing.assert_array_equal(z_t[1], 10)
    np.testing.assert_array_equal(corrupt(z0, eps, jnp.float32(1), jnp.float32(2)), 21)


@pytest.mark.parametrize('kind', [DiscreteLinear, ContinuousLinear])
def test_errors_name_both_values(kind):
    with pytest.raises(ValueError, match=r'0\.03 and 0\.02'):
        kind(beta_start=0.03)
    with pytest.raises(ValueError, match=r'2 steps or more, not 1'):
        kind(steps=1)
    with pytest.raises(ValueError, match='at least 1 step, not 0'):
        kind().sampling_times(0)


def test_more_sampler_steps_than_the_schedule_has_are_refused():
    with pytest.raises(ValueError, match='101 sampler steps do not fit a schedule of 100 steps'):
        DiscreteLinear(steps=100).sampling_times(101)


def test_gamma_of_cosine_is_its_closed_form_up_to_the_last_step():
    t = np.arange(1000) / 1000
    alpha, sigma = Cosine().alpha_sigma(t)
    closed = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.square(alpha, dtype=np.float64), closed, rtol=1e-5)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=3e-7)
    assert (alpha[0], sigma[0]) == (1, 0)


def test_the_last_beta_of_cosine_is_clipped():
    alpha, _ = Cosine().alpha_sigma(np.array([0.999, 1.0]))
    np.testing.assert_allclose((alpha[1] / alpha[0]) ** 2, 1 - 0.999, rtol=1e-3)
    assert alpha[1] > 0 and not Cosine().zero_terminal_snr


def test_cosine_trains_and_samples_on_its_grid():
    t = Cosine(steps=5).draw_times(row_keys(jax.random.key(0), 500))
    np.testing.assert_allclose(np.unique(t), [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(Cosine(steps=10).sampling_times(3), [1, 0.7, 0.3, 0], atol=1e-6)


def test_rectified_flow_is_the_straight_line():
    t = jnp.array([0.0, 0.3, 1.0])
    alpha, sigma = RectifiedFlow(shift=3.0).alpha_sigma(t)  # t is a time after the shift
    np.testing.assert_array_equal(sigma, t)
    np.testing.assert_array_equal(alpha, 1 - t)


@pytest.mark.parametrize('shift', [0.1, 0.7, 1.0, 3.0])
def test_sampling_times_are_shifted_and_keep_both_ends(shift):
    t = np.arange(10, -1, -1) / 10
    times = RectifiedFlow(shift=shift).sampling_times(10)
    assert (times[0], times[-1], times.dtype) == (1, 0, np.float32) and (np.diff(times) < 0).all()
    np.testing.assert_allclose(times, shift * t / (1 + (shift - 1) * t), rtol=1e-6)


def test_a_shift_multiplies_the_ratio_of_noise_to_signal():
    """sigma / alpha at every step: what sqrt(m / n) is for in arXiv:2403.03206."""
    plain, shifted = (RectifiedFlow(shift=shift).sampling_times(8)[1:-1] for shift in (1.0, 3.0))
    np.testing.assert_allclose(shifted / (1 - shifted), 3 * plain / (1 - plain), rtol=1e-5)


def test_logit_normal_times_have_their_location_and_scale_and_the_shift_moves_them():
    for shift in (1.0, 3.0):
        schedule = RectifiedFlow(shift=shift, logit_normal=(-0.5, 0.8))
        t = np.asarray(schedule.draw_times(row_keys(jax.random.key(0), 20_000)), np.float64)
        logit = np.log(t / (1 - t))
        np.testing.assert_allclose(logit.mean(), -0.5 + np.log(shift), atol=0.03)
        np.testing.assert_allclose(logit.std(), 0.8, rtol=0.03)


def test_uniform_times_are_shifted_as_those_of_the_sampler_are():
    t = RectifiedFlow(shift=3.0).draw_times(row_keys(jax.random.key(0), 4000))
    assert t.dtype == np.float32
    u = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(np.quantile(t, u), 3 * u / (1 + 2 * u), atol=0.03)


def test_errors_of_cosine_and_rectified_flow_name_the_values():
    with pytest.raises(ValueError, match='2 steps or more, not 1'):
        Cosine(steps=1)
    for fields in ({'offset': -0.1}, {'max_beta': 1.0}):
        with pytest.raises(ValueError, match=r'do not hold for (-0\.1 and 0\.999|0\.008 and 1\.0)'):
            Cosine(**fields)
    with pytest.raises(ValueError, match='shift is positive, not 0'):
        RectifiedFlow(shift=0)
    for wrong in ((0.0, 0.0), (0.0,)):
        with pytest.raises(ValueError, match=r'\(location, scale > 0\), not \(0\.0'):
            RectifiedFlow(logit_normal=wrong)
