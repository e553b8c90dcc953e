"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.guidance import classifier_free

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
