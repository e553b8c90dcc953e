"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.guidance import Interval, PowerCosine, autoguidance, by_condition, classifier_free

NULL = 10


def _null(cond):
    return {'label': jnp.full_like(cond['label'], NULL), 'estimate': jnp.full_like(cond['estimate'], jnp.nan)}


def _denoise(z, t_B, cond):
    return jnp.sin(z) + t_B[:, None] + cond['estimate'] + cond['label'][:, None]


@pytest.fixture
def inputs():
    z, estimate = jax.random.normal(jax.random.key(0), (2, 3, 4))
    return z, jnp.array([0.2, 0.5, 0.8]), {'label': jnp.array([1, 2, 3]), 'estimate': estimate}


def test_scale_one_is_the_denoiser_itself():
    assert classifier_free(_denoise, 1.0, _null) is _denoise


@pytest.mark.parametrize('scale', [0.0, 0.5, 3.0])
def test_guidance_is_linear_in_the_scale(scale, inputs):
    z, t_B, cond = inputs
    given, without = (_denoise(z, t_B, cond | {'label': label}) for label in (cond['label'], jnp.full(3, NULL)))
    guided = classifier_free(_denoise, scale, _null)(z, t_B, cond)
    np.testing.assert_allclose(guided, without + scale * (given - without), atol=1e-5)


def test_one_call_sees_the_conditional_half_first_and_the_same_estimate_twice(inputs):
    z, t_B, cond = inputs
    calls = []

    def denoise(*args):
        calls.append(args)
        return _denoise(*args)

    classifier_free(denoise, 2.0, _null)(z, t_B, cond)
    [(z_2, t_2, cond_2)] = calls
    np.testing.assert_array_equal(z_2, jnp.tile(z, (2, 1)))
    np.testing.assert_array_equal(t_2, jnp.tile(t_B, 2))
    np.testing.assert_array_equal(cond_2['label'], [1, 2, 3, NULL, NULL, NULL])
    np.testing.assert_array_equal(cond_2['estimate'], jnp.tile(cond['estimate'], (2, 1)))


def test_low_precision_predictions_are_guided_in_float32(inputs):
    guided = classifier_free(lambda *args: _denoise(*args).astype(jnp.bfloat16), 2.0, _null)(*inputs)
    assert guided.dtype == jnp.float32


def test_a_scale_may_depend_on_the_time_of_every_example(inputs):
    z, t_B, cond = inputs
    guided = classifier_free(_denoise, lambda t_B: 1 + 10 * t_B, _null)(z, t_B, cond)
    for i, scale in enumerate(1 + 10 * t_B):
        alone = classifier_free(_denoise, float(scale), _null)(z, t_B, cond)
        np.testing.assert_allclose(guided[i], alone[i], atol=1e-5)


def test_power_cosine_rises_from_no_guidance_at_noise_to_its_scale_when_clean():
    t = np.linspace(0, 1, 101, dtype=np.float32)
    w = PowerCosine(scale=3.8, power=4.0)(jnp.asarray(t))
    np.testing.assert_allclose([w[0], w[-1]], [3.8, 1], rtol=1e-6)
    assert (np.diff(w) <= 0).all()
    np.testing.assert_allclose(w, 1 + 2.8 * (1 - np.cos(np.pi * (1 - t) ** 4)) / 2, rtol=1e-5)


def test_a_larger_power_guides_later():
    t = jnp.linspace(0.1, 0.9, 9)
    assert (PowerCosine(4.0, power=4.0)(t) < PowerCosine(4.0, power=1.0)(t)).all()


def test_an_interval_guides_inside_and_nowhere_else(inputs):
    z, t_B, cond = inputs
    guided = classifier_free(_denoise, Interval(3.0, 0.3, 0.5), _null)(z, t_B, cond)
    inside, plain = classifier_free(_denoise, 3.0, _null)(z, t_B, cond), _denoise(z, t_B, cond)
    np.testing.assert_allclose(guided, jnp.where(t_B[:, None] == 0.5, inside, plain), atol=1e-5)


def _two_nulls():
    """cond has `text` and `frames`; each null takes one away."""
    return [lambda cond, name=name: cond | {name: jnp.zeros_like(cond[name])} for name in ('text', 'frames')]


def _of_two(z, t_B, cond):
    return jnp.sin(z + cond['text'][:, None] * cond['frames'][:, None]) + cond['frames'][:, None] + cond['estimate']


@pytest.fixture
def inputs_of_two(inputs):
    z, t_B, cond = inputs
    return z, t_B, {'text': jnp.array([1.0, 2, 3]), 'frames': jnp.array([4.0, 5, 6]), 'estimate': cond['estimate']}


@pytest.mark.parametrize('of_text, of_frames', [(3.0, 2.0), (3.0, 1.0), (1.0, 2.0), (0.5, 0.0)])
def test_two_conditions_are_guided_by_a_scale_each(of_text, of_frames, inputs_of_two):
    z, t_B, cond = inputs_of_two
    text, frames = _two_nulls()
    guided = by_condition(_of_two, [(of_text, text), (of_frames, frames)])(z, t_B, cond)
    both, only_frames, neither = (_of_two(z, t_B, c) for c in (cond, text(cond), frames(text(cond))))
    expected = neither + of_frames * (only_frames - neither) + of_text * (both - only_frames)
    np.testing.assert_allclose(guided, expected, atol=1e-5)


@pytest.mark.parametrize('of_text, of_frames, rows', [(3.0, 2.0, 9), (1.0, 2.0, 9), (3.0, 1.0, 6)])
def test_two_conditions_take_one_call_of_three_times_the_rows_or_two_if_the_last_has_scale_one(
    of_text, of_frames, rows, inputs_of_two
):
    text, frames = _two_nulls()
    calls = []

    def denoise(z, t_B, cond):
        calls.append(cond)
        return _of_two(z, t_B, cond)

    by_condition(denoise, [(of_text, text), (of_frames, frames)])(*inputs_of_two)
    [cond] = calls
    np.testing.assert_array_equal(cond['text'], [1, 2, 3, 0, 0, 0, 0, 0, 0][:rows])
    np.testing.assert_array_equal(cond['frames'], [4, 5, 6, 4, 5, 6, 0, 0, 0][:rows])
    np.testing.assert_array_equal(cond['estimate'], jnp.tile(inputs_of_two[2]['estimate'], (rows // 3, 1)))


def test_conditions_of_scale_one_are_the_denoiser_itself():
    assert by_condition(_of_two, [(1.0, null) for null in _two_nulls()]) is _of_two


@pytest.mark.parametrize('scale', [0.0, 2.0, lambda t_B: 1 + t_B])
def test_autoguidance_goes_away_from_the_weaker_model_under_the_same_conditions(scale, inputs):
    z, t_B, cond = inputs

    def weak(z, t_B, cond):
        return jnp.cos(z) + cond['label'][:, None] - cond['estimate']

    guided = autoguidance(_denoise, weak, scale)(z, t_B, cond)
    weight = scale(t_B)[:, None] if callable(scale) else scale
    worse = weak(z, t_B, cond)
    np.testing.assert_allclose(guided, worse + weight * (_denoise(z, t_B, cond) - worse), atol=1e-5)
    assert autoguidance(_denoise, weak, 1.0) is _denoise


def test_autoguidance_may_be_of_a_guided_denoiser(inputs):
    guided = classifier_free(_denoise, 2.0, _null)
    found = autoguidance(guided, _denoise, 3.0)(*inputs)
    worse = _denoise(*inputs)
    np.testing.assert_allclose(found, worse + 3 * (guided(*inputs) - worse), atol=1e-5)


def _spread(x):
    return np.asarray(x).reshape(len(x), -1).std(1)


@pytest.mark.parametrize('shape', [(3, 4), (3, 2, 5, 4)])
def test_rescaling_gives_back_the_standard_deviation_of_every_example(shape):
    z, worse = jax.random.normal(jax.random.key(1), (2, *shape))

    def denoise(z, t_B, cond):
        return z

    def weak(z, t_B, cond):
        return worse

    plain, half, whole = (autoguidance(denoise, weak, 4.0, phi)(z, jnp.ones(3), {}) for phi in (0.0, 0.5, 1.0))
    assert (_spread(plain) > 2 * _spread(z)).all()
    np.testing.assert_allclose(_spread(whole), _spread(z), rtol=1e-5)
    np.testing.assert_allclose(half, (plain + whole) / 2, rtol=1e-5)
    ratio = (whole / plain).reshape(3, -1)
    np.testing.assert_allclose(ratio, np.tile(ratio[:, :1], ratio.shape[1]), rtol=1e-5)


def test_classifier_free_guidance_is_rescaled_to_the_conditional_prediction(inputs):
    guided = classifier_free(_denoise, 4.0, _null, rescale=1.0)(*inputs)
    np.testing.assert_allclose(_spread(guided), _spread(_denoise(*inputs)), rtol=1e-5)


def test_rescaling_a_prediction_of_zeros_gives_zeros(inputs):
    """That of a network whose last layer starts at zero."""
    guided = classifier_free(lambda z, t_B, cond: jnp.zeros_like(z), 4.0, _null, rescale=0.7)(*inputs)
    np.testing.assert_array_equal(guided, 0)


def test_errors_name_the_values():
    with pytest.raises(ValueError, match=r'\[0, 1\], not 1\.5'):
        classifier_free(_denoise, 2.0, _null, rescale=1.5)
    with pytest.raises(ValueError, match=r'\[0, 1\], not -1'):
        autoguidance(_denoise, _denoise, 2.0, rescale=-1)
    with pytest.raises(ValueError, match=r'does not hold for 0\.6 and 0\.4'):
        Interval(2.0, 0.6, 0.4)
    with pytest.raises(ValueError, match='power is positive, not 0'):
        PowerCosine(power=0)


def _of_more(z, t_B, cond):
    """Twice the channels of z: what a denoiser that learns its variance returns."""
    return jnp.concatenate([_denoise(z, t_B, cond), 7.0 * cond['label'][:, None] + z], axis=-1)


@pytest.mark.parametrize(('channels', 'guided'), [(None, 4), (3, 3), (4, 4)])
def test_channels_that_are_not_guided_are_those_of_the_conditional_rows(channels, guided, inputs):
    """What a denoiser says about its variance always; of the latents all but the first so many."""
    found = classifier_free(_of_more, 3.0, _null, channels=channels)(*inputs)
    all_guided, conditional = classifier_free(_denoise, 3.0, _null)(*inputs), _of_more(*inputs)
    np.testing.assert_allclose(found[:, :guided], all_guided[:, :guided], atol=1e-5)
    np.testing.assert_array_equal(found[:, guided:], conditional[:, guided:])
    away = autoguidance(_of_more, _denoise, 3.0, channels=channels)(*inputs)
    np.testing.assert_array_equal(away[:, guided:], conditional[:, guided:])


def test_rescaling_looks_at_the_guided_channels_alone(inputs):
    plain, more = (classifier_free(model, 4.0, _null, rescale=1.0)(*inputs) for model in (_denoise, _of_more))
    np.testing.assert_allclose(more[:, :4], plain, atol=1e-5)


@pytest.mark.parametrize('channels', [0, 5])
def test_more_channels_than_there_are_cannot_be_guided(channels, inputs):
    with pytest.raises(ValueError, match=f'1 to 4 channels, those of the latents, not of {channels}'):
        classifier_free(_of_more, 3.0, _null, channels=channels)(*inputs)
