"""Losses of the tokenizer against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.tokenizer import losses


def softplus(x):
    return np.log1p(np.exp(x))


def test_reconstruction_is_the_mean_squared_error_of_pixels():
    video = jnp.zeros((1, 2, 2, 2, 3))
    np.testing.assert_allclose(losses.reconstruction(video.at[0, 1].set(0.5), video), 0.125, rtol=1e-6)


def test_the_two_sides_pull_a_logit_in_opposite_directions():
    real, fake = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    np.testing.assert_allclose(losses.adversarial(fake), softplus(-np.array(fake)).mean(), rtol=1e-5)
    expected = softplus(-np.array(real)).mean() + softplus(np.array(fake)).mean()
    np.testing.assert_allclose(losses.discriminator(real, fake), expected, rtol=1e-5)
    assert (jax.grad(losses.adversarial)(fake) < 0).all()
    assert (jax.grad(losses.discriminator, 1)(real, fake) > 0).all()
    assert (jax.grad(losses.discriminator, 0)(real, fake) < 0).all()


def test_r1_is_the_squared_length_of_the_logits_gradient(rng):
    video = jnp.asarray(rng.normal(size=(3, 2, 2, 2, 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, 2, 2, 3)), jnp.float32)

    def discriminate(video):
        return jnp.einsum('bthwc,thwc->b', jnp.square(video), weights)

    logits, r1 = losses.logits_and_r1(discriminate, video)
    np.testing.assert_allclose(logits, discriminate(video), rtol=1e-6)
    np.testing.assert_allclose(r1, np.square(2 * video * weights).sum((1, 2, 3, 4)).mean(), rtol=1e-5)
    of_scale = jax.grad(lambda scale: losses.logits_and_r1(lambda video: scale * discriminate(video), video)[1])(1.0)
    np.testing.assert_allclose(of_scale, 2 * r1, rtol=1e-5)  # the penalty is quadratic in the discriminator


def test_lecam_holds_each_side_against_the_others_average():
    zero = jnp.zeros(1)
    assert losses.lecam(zero, zero, 0.0, 0.0) == 0
    np.testing.assert_allclose(losses.lecam(jnp.array([3.0]), zero, 1.0, 0.0), 3**2 + 1**2)
    assert losses.lecam(jnp.array([-3.0]), jnp.array([5.0]), 1.0, 0.0) == 0
    np.testing.assert_allclose(losses.lecam(zero, jnp.array([-2.0]), 1.0, 0.5), 3**2)


def test_halving_takes_means_and_refuses_odd_sides():
    x = jnp.arange(16.0).reshape(1, 1, 4, 4, 1)
    np.testing.assert_allclose(losses.halve(x)[0, 0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    with pytest.raises(ValueError, match='3x4 positions'):
        losses.halve(jnp.zeros((1, 1, 3, 4, 1)))
