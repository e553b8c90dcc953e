"""The sampling loop, against denoisers that are known exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.guidance import classifier_free
from walt.diffusion.prediction import target, to_z0_eps
from walt.diffusion.sampler import draw_noise, passes, sample
from walt.diffusion.schedules import ContinuousLinear, Cosine, DiscreteLinear, RectifiedFlow, over_trailing
from walt.diffusion.steppers import Ddim, DpmSolverPlusPlus2M, Heun, Pass
from walt.randomness import normal, stream

SHAPE = (3, 4)
SEED = jax.random.key(0)


def _keys(*index):
    return stream(SEED, 'clip', jnp.array(index))


def _gaussian(schedule, mean, std, parametrisation='v'):
    """The exact denoiser of z0 ~ N(mean, std^2): E[z0 | z_t], as a prediction.

    `mean` and `std` broadcast against z; std = 0 is an oracle that knows z0.
    """

    def denoise(z, t_B, cond):
        level = schedule.alpha_sigma(t_B)
        alpha, sigma = (over_trailing(x, z) for x in level)
        z0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * mean)
        _, eps = to_z0_eps('z0', z0, z, *level)
        return target(parametrisation, z0, eps, *level)

    return denoise


def _network(z, t_B, cond):
    """A denoiser that mixes all its inputs, though not its examples."""
    return jnp.tanh(z[..., ::-1] + 0.5 * cond['estimate'] + over_trailing(t_B + cond['label'], z))


STATIC = ('denoise', 'schedule', 'stepper', 'steps', 'self_conditioning', 'parametrisation', 'project')
_jitted = jax.jit(sample, static_argnames=STATIC)


def _sample(denoise, *index, run=_jitted, noise=None, label=1.0, **options):
    key_B = _keys(*index)
    noise = draw_noise(key_B, SHAPE) if noise is None else noise
    options = {'schedule': DiscreteLinear(), 'stepper': Ddim(), 'steps': 4, 'self_conditioning': True} | options
    return run(denoise, noise, {'label': label * (1 + jnp.array(index))}, key_B=key_B, **options)


@pytest.mark.parametrize(
    'schedule, eta, parametrisation',
    [
        (DiscreteLinear(), 0.0, 'v'),
        (DiscreteLinear(), 1.0, 'v'),
        (DiscreteLinear(), 0.0, 'z0'),
        (DiscreteLinear(), 0.0, 'flow'),
        (ContinuousLinear(), 0.0, 'v'),
        (Cosine(), 0.0, 'v'),
        (RectifiedFlow(shift=3.0), 0.0, 'flow'),
    ],
)
def test_an_oracle_recovers_z0_in_fifty_steps(schedule, eta, parametrisation):
    z0 = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    oracle = _gaussian(schedule, z0, 0.0, parametrisation)
    found = _sample(oracle, 0, 1, schedule=schedule, stepper=Ddim(eta), steps=50, parametrisation=parametrisation)
    np.testing.assert_allclose(found, z0, atol=1e-5)


def test_an_oracle_of_eps_recovers_z0_under_a_raw_schedule():
    schedule = DiscreteLinear(zero_terminal_snr=False)
    z0 = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    found = _sample(_gaussian(schedule, z0, 0.0, 'eps'), 0, 1, schedule=schedule, steps=50, parametrisation='eps')
    np.testing.assert_allclose(found, z0, atol=1e-3)


@pytest.mark.parametrize('schedule', [DiscreteLinear(), ContinuousLinear()], ids=lambda s: type(s).__name__)
def test_ddim_tends_to_the_flow_of_a_gaussian(schedule):
    """The probability flow of N(m, s^2) ends at m + s noise; the error of DDIM is of first order in 1 / steps."""
    mean, std = 1.5, 0.5
    noise = draw_noise(_keys(0), SHAPE)
    errors = []
    for steps in (10, 100, 1000):
        z0 = _sample(_gaussian(schedule, mean, std), 0, schedule=schedule, steps=steps)
        errors.append(float(jnp.abs(z0 - (mean + std * noise)).max()))
    assert errors[2] < errors[1] / 5 < errors[0] / 25 and errors[2] < 1e-2


@pytest.mark.parametrize('eta', [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_every_eta_samples_the_gaussian(eta):
    mean, std, count = 1.5, 0.5, 40_000
    key_B = _keys(0)
    z0 = sample(
        _gaussian(DiscreteLinear(), mean, std),
        draw_noise(key_B, (count,)),
        {},
        schedule=DiscreteLinear(),
        stepper=Ddim(eta),
        steps=500,
        key_B=key_B,
        self_conditioning=False,
    )
    np.testing.assert_allclose(z0.mean(), mean, atol=5 * std / count**0.5)
    np.testing.assert_allclose(z0.std(), std, rtol=0.015)


def test_sampling_is_the_written_out_loop():
    schedule, stepper, key_B = DiscreteLinear(), Ddim(0.5), _keys(3, 4)
    z, cond = draw_noise(key_B, SHAPE), {'label': jnp.array([4.0, 5.0])}
    estimate = jnp.zeros_like(z)
    for i, (t, s) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]):
        at_t, at_s = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        prediction = _network(z, jnp.full(2, t), cond | {'estimate': estimate})
        estimate, eps = to_z0_eps('v', prediction, z, *at_t)
        here = Pass(z, estimate, eps, at_t)
        z = stepper(here, here, at_s, stream(key_B, 'sampler', i))  # DDIM does not look at the pass before
    np.testing.assert_allclose(_sample(_network, 3, 4, stepper=stepper), z, atol=1e-5)


def test_without_self_conditioning_the_estimate_stays_zero():
    def blind(z, t_B, cond):
        return _network(z, t_B, cond | {'estimate': jnp.zeros_like(z)})

    plain = _sample(_network, 0, self_conditioning=False)
    np.testing.assert_allclose(plain, _sample(blind, 0, self_conditioning=True), atol=1e-5)
    assert np.abs(plain - _sample(_network, 0, self_conditioning=True)).max() > 0.01


def _visited(**options):
    """The times at which the network runs, in order."""
    times = []

    def counted(z, t_B, cond):
        jax.debug.callback(lambda t: times.append(float(t)), t_B[0], ordered=True)
        return _network(z, t_B, cond)

    jax.block_until_ready(_sample(counted, 0, **options))
    jax.effects_barrier()
    return times


def test_one_step_is_one_pass():
    np.testing.assert_allclose(_visited(steps=5), [1.0, 0.8, 0.6, 0.4, 0.2], atol=1e-6)


def test_one_step_of_heun_is_two_passes_but_the_last_is_one():
    np.testing.assert_allclose(_visited(steps=4, stepper=Heun()), [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25], atol=1e-6)


@pytest.mark.parametrize('stepper, count', [(Ddim(), 6), (DpmSolverPlusPlus2M(), 6), (Heun(), 11)], ids=str)
def test_passes_are_as_many_as_are_made(stepper, count):
    assert passes(DiscreteLinear(), stepper, 6) == count == len(_visited(steps=6, stepper=stepper))


@pytest.mark.parametrize('stepper', [Ddim(), DpmSolverPlusPlus2M(), Heun()], ids=str)
def test_every_stepper_has_the_network_once_in_its_program(stepper):
    traces = []

    def counted(z, t_B, cond):
        traces.append(z.shape)
        return _network(z, t_B, cond)

    _sample(counted, 0, stepper=stepper, run=jax.jit(sample, static_argnames=STATIC))
    assert len(traces) == 1


def test_a_clip_does_not_depend_on_its_batch():
    alone = _sample(_network, 7, stepper=Ddim(1.0))
    among = _sample(_network, 2, 7, 5, stepper=Ddim(1.0))
    np.testing.assert_allclose(among[1], alone[0], atol=1e-5)
    assert np.abs(among[0] - among[2]).max() > 0.1


def test_the_same_keys_give_the_same_sample_and_others_another():
    noise = draw_noise(_keys(0), SHAPE)
    first, again, other = (_sample(_network, i, noise=noise, label=0.0, stepper=Ddim(1.0)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_initial_noise_and_the_noise_of_every_step_are_independent():
    drawn = []

    class Listen(Ddim):
        def __call__(self, here, before, at_s, key_B):
            drawn.append(normal(key_B, (500,)))
            return here.eps

    key_B = _keys(0)
    initial = draw_noise(key_B, (500,))
    with jax.disable_jit():
        options = {'schedule': DiscreteLinear(), 'stepper': Listen(), 'steps': 2, 'self_conditioning': False}
        sample(lambda z, t_B, cond: z, initial, {}, key_B=key_B, **options)
    correlation = np.corrcoef(np.concatenate([initial, *drawn, normal(key_B, (500,))]))
    np.testing.assert_allclose(correlation, np.eye(4), atol=0.2)


@pytest.mark.parametrize('stepper', [Ddim(), DpmSolverPlusPlus2M(), Heun()], ids=str)
def test_every_pass_is_given_the_estimate_of_the_pass_before(stepper):
    """With v = 0, z0 is alpha z."""
    seen = []

    def listen(z, t_B, cond):
        jax.debug.callback(lambda *x: seen.append(x), t_B[0], z, cond['estimate'], ordered=True)
        return jnp.zeros_like(z)

    jax.block_until_ready(_sample(listen, 0, stepper=stepper))
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[0][2], 0)
    for (t, z, _), (_, _, estimate) in itertools.pairwise(seen):
        np.testing.assert_allclose(estimate, DiscreteLinear().alpha_sigma(t)[0] * z, atol=1e-6)


KNOWN = jnp.arange(8.0).reshape(2, 4)


def _hold(z0):
    """The first two of three rows of every example are known."""
    return z0.at[:, :2].set(KNOWN)


SAMPLERS = [
    (DiscreteLinear(), Ddim(), 'v'),
    (DiscreteLinear(), Ddim(1.0), 'v'),
    (DiscreteLinear(), Heun(), 'v'),
    (RectifiedFlow(), DpmSolverPlusPlus2M(), 'flow'),
]


@pytest.mark.parametrize('schedule, stepper, parametrisation', SAMPLERS, ids=str)
def test_what_is_projected_ends_where_it_is_held(schedule, stepper, parametrisation):
    options = {'schedule': schedule, 'stepper': stepper, 'parametrisation': parametrisation, 'steps': 5}
    held = _sample(_network, 0, 1, project=_hold, **options)
    np.testing.assert_array_equal(held[:, :2], jnp.stack([KNOWN, KNOWN]))
    free = _sample(_network, 0, 1, **options)
    assert np.abs(held[:, :2] - free[:, :2]).max() > 0.1


def test_the_network_sees_what_is_held_in_its_latents_and_its_estimate():
    """Held rows run straight from their noise to what they are held at."""
    seen = []

    def listen(z, t_B, cond):
        jax.debug.callback(lambda *x: seen.append(x), t_B[0], z, cond['estimate'], ordered=True)
        return _network(z, t_B, cond)

    jax.block_until_ready(_sample(listen, 0, project=_hold))
    jax.effects_barrier()
    noise = draw_noise(_keys(0), SHAPE)[0, :2]
    for i, (t, z, estimate) in enumerate(seen):
        alpha, sigma = DiscreteLinear().alpha_sigma(t)
        np.testing.assert_allclose(z[0, :2], alpha * KNOWN + sigma * noise, atol=1e-4)
        np.testing.assert_array_equal(estimate[0, :2], KNOWN if i else 0)


@pytest.mark.parametrize('stepper', [Ddim(), DpmSolverPlusPlus2M(), Heun()], ids=str)
def test_a_projection_that_changes_nothing_changes_nothing(stepper):
    plain, projected = (_sample(_network, 0, stepper=stepper, project=p) for p in (None, lambda z0: z0))
    np.testing.assert_allclose(projected, plain, atol=1e-4)


def test_jit_agrees_with_eager():
    guided = classifier_free(_network, 2.0, lambda cond: cond | {'label': jnp.zeros_like(cond['label'])})
    np.testing.assert_allclose(_sample(guided, 0, 1, run=_jitted), _sample(guided, 0, 1, run=sample), atol=1e-5)


def test_errors_name_both_values():
    noise = draw_noise(_keys(0), SHAPE)
    with pytest.raises(ValueError, match=r'keys are \(2,\), noise is \(1, 3, 4\)'):
        _sample(_network, 0, 1, noise=noise)
    with pytest.raises(ValueError, match='1001 sampler steps do not fit a schedule of 1000 steps'):
        _sample(_network, 0, steps=1001)
    with pytest.raises(ValueError, match="'eps' does not go with"):
        _sample(_network, 0, parametrisation='eps')
    with pytest.raises(ValueError, match='none of'):
        _sample(_network, 0, parametrisation='x0')
