"""The training loss and self-conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.loss import DenoisingLoss, min_snr_weight
from walt.diffusion.prediction import target, to_z0_eps
from walt.diffusion.schedules import ContinuousLinear, DiscreteLinear, RectifiedFlow, corrupt
from walt.randomness import normal, row_keys, stream

SHAPE = (6, 2, 3, 3, 4)
KEY_B = row_keys(jax.random.key(0), SHAPE[0])


@pytest.fixture
def z0():
    return jax.random.normal(jax.random.key(1), SHAPE)


@pytest.fixture
def weights():
    return jax.random.normal(jax.random.key(2), (2, 4, 4)) / 2


def _denoiser(weights):
    """A small non-linear model of z, t and the estimate."""

    def denoise(z, t_B, cond):
        hidden = jnp.tanh(z @ weights[0] + cond['estimate'] + t_B.reshape(-1, 1, 1, 1, 1))
        return hidden @ weights[1] + cond['bias'].reshape(-1, 1, 1, 1, 1)

    return denoise


COND = {'bias': jnp.linspace(-1, 1, SHAPE[0])}


class Recorder:
    """Keeps what a denoiser was called with."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, []

    def __call__(self, z, t_B, cond):
        self.calls.append((z, t_B, cond))
        return self.denoise(z, t_B, cond)


@pytest.mark.parametrize('parametrisation', ['v', 'eps', 'z0', 'flow'])
def test_loss_is_the_mean_square_of_prediction_minus_target(parametrisation, z0, weights):
    schedule = DiscreteLinear(zero_terminal_snr=False)
    denoise = Recorder(_denoiser(weights))
    loss_B, drawn = DenoisingLoss(schedule, parametrisation, 0.0)(denoise, z0, COND, KEY_B)

    [(z_t, t_B, cond)] = denoise.calls
    eps = normal(stream(KEY_B, 'noise'), SHAPE[1:])
    level = schedule.alpha_sigma(drawn['t_B'])
    np.testing.assert_array_equal(t_B, drawn['t_B'])
    np.testing.assert_allclose(z_t, corrupt(z0, eps, *level), atol=1e-6)
    error = _denoiser(weights)(z_t, t_B, cond) - target(parametrisation, z0, eps, *level)
    np.testing.assert_allclose(loss_B, (np.asarray(error) ** 2).reshape(SHAPE[0], -1).mean(1), rtol=1e-5)


WEIGHTS = {
    'z0': lambda snr, capped: capped,
    'eps': lambda snr, capped: capped / snr,
    'v': lambda snr, capped: capped / (snr + 1),
    'flow': lambda snr, capped: capped / (np.sqrt(snr) + 1) ** 2,
}


@pytest.mark.parametrize('parametrisation', WEIGHTS)
def test_min_snr_weights_are_those_of_the_paper(parametrisation):
    alpha, sigma = ContinuousLinear(zero_terminal_snr=False).alpha_sigma(jnp.array([0.01, 0.1, 0.2, 0.3, 0.6, 1.0]))
    snr = np.asarray(alpha / sigma, np.float64) ** 2
    assert (snr > 5).any() and (snr < 5).any()
    expected = WEIGHTS[parametrisation](snr, np.minimum(snr, 5))
    np.testing.assert_allclose(min_snr_weight(parametrisation, alpha, sigma, 5.0), expected, rtol=1e-4)


@pytest.mark.parametrize('schedule', [ContinuousLinear(), RectifiedFlow()], ids=['circle', 'line'])
@pytest.mark.parametrize('parametrisation', ['v', 'z0', 'flow'])
def test_min_snr_weights_are_finite_at_both_ends_and_zero_at_zero_snr(parametrisation, schedule):
    clean, noise = min_snr_weight(parametrisation, *schedule.alpha_sigma(jnp.array([0.0, 1.0])), 5.0)
    assert clean == (5 if parametrisation == 'z0' else 0) and noise == 0


def test_min_snr_makes_every_parametrisation_the_same_loss_of_z0(z0, weights):
    """One prediction of z0, said in each way: the weighted losses are equal."""
    schedule = ContinuousLinear(zero_terminal_snr=False)
    losses = []
    for name in WEIGHTS:

        def denoise(z, t_B, cond, name=name):
            level = schedule.alpha_sigma(t_B)
            return target(name, *to_z0_eps('z0', _denoiser(weights)(z, t_B, cond), z, *level), *level)

        losses.append(DenoisingLoss(schedule, name, 0.0, min_snr_gamma=5.0)(denoise, z0, COND, KEY_B)[0])
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-2)


def test_min_snr_weighs_the_loss_example_by_example(z0, weights):
    schedule = DiscreteLinear()
    plain, drawn = DenoisingLoss(schedule)(_denoiser(weights), z0, COND, KEY_B)
    weighted, _ = DenoisingLoss(schedule, min_snr_gamma=2.0)(_denoiser(weights), z0, COND, KEY_B)
    weight_B = min_snr_weight('v', *schedule.alpha_sigma(drawn['t_B']), 2.0)
    np.testing.assert_allclose(weighted, plain * weight_B, rtol=1e-6)


@pytest.mark.parametrize('schedule', [DiscreteLinear(), ContinuousLinear()])
def test_a_perfect_denoiser_has_no_loss(schedule, z0):
    eps = normal(stream(KEY_B, 'noise'), SHAPE[1:])

    def oracle(z, t_B, cond):
        return target('v', z0, eps, *schedule.alpha_sigma(t_B))

    loss_B, _ = DenoisingLoss(schedule)(oracle, z0, {}, KEY_B)
    np.testing.assert_array_equal(loss_B, 0)


def test_without_self_conditioning_there_is_one_pass_with_a_zero_estimate(z0, weights):
    denoise = Recorder(_denoiser(weights))
    _, drawn = DenoisingLoss(DiscreteLinear(), self_conditioning=0.0)(denoise, z0, COND, KEY_B)
    [(_, _, cond)] = denoise.calls
    np.testing.assert_array_equal(cond['estimate'], np.zeros(SHAPE))
    assert not drawn['self_conditioned_B'].any()


def test_the_estimate_is_the_z0_of_a_pass_with_zeros(z0, weights):
    schedule = DiscreteLinear()
    denoise = Recorder(_denoiser(weights))
    DenoisingLoss(schedule, self_conditioning=1.0)(denoise, z0, COND, KEY_B)
    [(z_1, t_1, first), (z_2, t_2, second)] = denoise.calls
    np.testing.assert_array_equal(first['estimate'], np.zeros(SHAPE))
    np.testing.assert_array_equal(z_1, z_2)
    np.testing.assert_array_equal(t_1, t_2)
    alpha, sigma = (x.reshape(-1, 1, 1, 1, 1) for x in schedule.alpha_sigma(t_1))
    expected = alpha * z_1 - sigma * _denoiser(weights)(z_1, t_1, first)
    np.testing.assert_allclose(second['estimate'], expected, atol=1e-6)


def test_the_estimate_is_masked_example_by_example(z0, weights):
    """An example that drew an estimate has the loss of p_sc = 1, one that did not the loss of p_sc = 0."""
    losses = {
        p: DenoisingLoss(DiscreteLinear(), self_conditioning=p)(_denoiser(weights), z0, COND, KEY_B)
        for p in (0.0, 0.5, 1.0)
    }
    mask_B = np.asarray(losses[0.5][1]['self_conditioned_B'])
    assert 0 < mask_B.sum() < len(mask_B)
    np.testing.assert_allclose(losses[0.5][0], np.where(mask_B, losses[1.0][0], losses[0.0][0]), rtol=1e-6)
    assert (np.asarray(losses[0.0][0]) != np.asarray(losses[1.0][0])).all()


def test_self_conditioning_is_drawn_at_its_rate():
    z0, key_B = jnp.zeros((4000, 1)), row_keys(jax.random.key(0), 4000)
    _, drawn = DenoisingLoss(DiscreteLinear())(lambda z, t_B, cond: z, z0, {}, key_B)
    np.testing.assert_allclose(drawn['self_conditioned_B'].mean(), 0.9, atol=0.02)


def test_no_gradient_flows_through_the_estimate(z0, weights):
    denoise = Recorder(_denoiser(weights))
    DenoisingLoss(DiscreteLinear(), self_conditioning=1.0)(denoise, z0, COND, KEY_B)
    estimate = denoise.calls[1][2]['estimate']

    def total(weights, p, constant=None):
        model = _denoiser(weights)
        given = model if constant is None else lambda z, t_B, cond: model(z, t_B, cond | {'estimate': constant})
        return DenoisingLoss(DiscreteLinear(), self_conditioning=p)(given, z0, COND, KEY_B)[0].sum()

    conditioned = jax.grad(total)(weights, 1.0)
    np.testing.assert_allclose(conditioned, jax.grad(total)(weights, 0.0, estimate), rtol=1e-5, atol=1e-5)
    assert np.abs(conditioned - jax.grad(total)(weights, 0.0)).max() > 0.1


def test_the_first_pass_keeps_nothing_for_the_backward_pass(z0, weights):
    def residuals(p):
        def total(weights):
            loss = DenoisingLoss(DiscreteLinear(), self_conditioning=p)
            return loss(jax.jit(_denoiser(weights)), z0, COND, KEY_B)[0].sum()

        _, backward = jax.vjp(total, weights)
        return sum(x.size for x in jax.tree.leaves(backward))

    assert residuals(0.9) == residuals(0.0)


def test_the_same_key_draws_the_same_loss_and_the_rate_leaves_time_and_noise_alone(z0, weights):
    first, second = (Recorder(_denoiser(weights)) for _ in range(2))
    a, _ = DenoisingLoss(DiscreteLinear(), self_conditioning=0.5)(first, z0, COND, KEY_B)
    b, _ = DenoisingLoss(DiscreteLinear(), self_conditioning=0.5)(_denoiser(weights), z0, COND, KEY_B)
    DenoisingLoss(DiscreteLinear(), self_conditioning=0.0)(second, z0, COND, KEY_B)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.calls[0][0], second.calls[0][0])
    c, _ = DenoisingLoss(DiscreteLinear(), self_conditioning=0.5)(
        _denoiser(weights), z0, COND, row_keys(jax.random.key(9), len(z0))
    )
    assert (np.asarray(a) != np.asarray(c)).all()


def test_jit_agrees_with_eager(z0, weights):
    loss = DenoisingLoss(DiscreteLinear())
    jitted = jax.jit(lambda weights, key_B: loss(_denoiser(weights), z0, COND, key_B)[0])
    np.testing.assert_allclose(jitted(weights, KEY_B), loss(_denoiser(weights), z0, COND, KEY_B)[0], rtol=1e-5)


def test_latents_and_estimate_and_loss_are_float32_for_low_precision_models_and_latents(z0):
    denoise = Recorder(lambda z, t_B, cond: z.astype(jnp.bfloat16))
    loss_B, _ = DenoisingLoss(DiscreteLinear())(denoise, z0.astype(jnp.bfloat16), {}, KEY_B)
    seen = [loss_B, *(x for z, t_B, cond in denoise.calls for x in (z, t_B, cond['estimate']))]
    assert {x.dtype for x in seen} == {jnp.dtype('float32')}


def test_errors_name_the_values(z0):
    with pytest.raises(ValueError, match="'eps' does not go with DiscreteLinear"):
        DenoisingLoss(DiscreteLinear(), 'eps')
    with pytest.raises(ValueError, match='none of'):
        DenoisingLoss(DiscreteLinear(), 'velocity')
    with pytest.raises(ValueError, match=r'\[0, 1\], not 1\.5'):
        DenoisingLoss(DiscreteLinear(), self_conditioning=1.5)
    with pytest.raises(ValueError, match="'v' does not go with RectifiedFlow"):
        DenoisingLoss(RectifiedFlow())
    with pytest.raises(ValueError, match='min_snr_gamma is None or positive, not 0'):
        DenoisingLoss(DiscreteLinear(), min_snr_gamma=0)
    with pytest.raises(ValueError, match=r'\(6, 2, 3, 3, 1\) for latents of \(6, 2, 3, 3, 4\)'):
        DenoisingLoss(DiscreteLinear(), self_conditioning=0.0)(lambda z, t_B, cond: z[..., :1], z0, {}, KEY_B)
