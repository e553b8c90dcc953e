"""The frozen tokenizer: normalised latents, and pixels as uint8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.tokenizer.pixels import from_uint8, to_uint8


@pytest.fixture
def latents(rng):
    """Three batches with means and scales of their own by channel."""
    return np.float32(rng.normal([3, 0, -1], [0.1, 1, 5], size=(3, 4, 2, 3, 3, 3)))


@pytest.fixture(scope='module')
def frozen(small_tokenizer):
    norm = LatentNorm(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.0, 2.0]))
    return FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, norm)


@pytest.fixture
def video_BTHWC(rng):
    return rng.integers(256, size=(2, 5, 16, 16, 3), dtype=np.uint8)


def test_measured_latents_are_normalised_to_mean_0_and_standard_deviation_1_in_every_channel(latents):
    z = LatentNorm.measure(latents).normalise(latents)
    np.testing.assert_allclose(z.mean((0, 1, 2, 3, 4)), 0, atol=1e-4)
    np.testing.assert_allclose(z.std((0, 1, 2, 3, 4)), 1, atol=1e-3)


def test_denormalise_undoes_normalise(latents):
    norm = LatentNorm.measure(latents)
    np.testing.assert_allclose(norm.denormalise(norm.normalise(latents)), latents, atol=1e-5)


def test_a_channel_that_never_varies_stays_finite():
    norm = LatentNorm.measure(np.full((1, 2, 1, 2, 2, 3), 4.0, np.float32))
    assert np.isfinite(norm.normalise(np.full((1, 1, 1, 1, 3), 4.0, np.float32))).all()


def test_the_identity_changes_nothing(latents):
    np.testing.assert_array_equal(LatentNorm.identity(3).normalise(latents), latents)


def test_frozen_tokenizer_is_encoder_and_decoder_around_normalised_latents(frozen, small_tokenizer, video_BTHWC):
    z = jax.jit(FrozenTokenizer.encode)(frozen, video_BTHWC)
    raw = small_tokenizer.encode(small_tokenizer.params, np.float32(video_BTHWC) / 255)
    np.testing.assert_allclose(z, (raw - frozen.norm.mean_C) / frozen.norm.std_C, atol=1e-5)

    decoded = jax.jit(FrozenTokenizer.decode)(frozen, z)
    assert decoded.dtype == jnp.uint8 and decoded.shape == video_BTHWC.shape
    pixels = small_tokenizer.decode(small_tokenizer.params, raw)
    np.testing.assert_allclose(decoded, 255 * np.clip(pixels, 0, 1), atol=0.51)  # rounded


def test_every_grey_level_survives_the_way_to_float_and_back():
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 1, 16, 16, 1)
    assert from_uint8(levels).dtype == jnp.float32 and from_uint8(levels).max() == 1
    np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)


def test_pixels_are_clipped_and_rounded():
    pixels = jnp.array([-1.0, 0.0, 0.6 / 255, 1.4 / 255, 1.0, 7.0])
    np.testing.assert_array_equal(to_uint8(pixels), [0, 0, 1, 1, 255, 255])


@pytest.mark.parametrize('dtype', ['float32', 'int32'])
def test_pixels_that_are_not_uint8_are_refused(dtype):
    with pytest.raises(ValueError, match=f'uint8 in 0..255, got {dtype}'):
        from_uint8(jnp.zeros((1, 1, 2, 2, 3), dtype))
