"""PSNR and SSIM against values that are known."""

import numpy as np
import pytest

from walt.evaluation.quality import psnr, ssim


@pytest.fixture
def clips(rng):
    """Two clips of smooth pictures: uint8 (2, 3, 16, 16, 3)."""
    ramp = np.linspace(40, 200, 16)
    return np.broadcast_to((ramp[:, None] + ramp[::-1]) / 2, (2, 3, 16, 16)).astype(np.uint8)[..., None].repeat(3, -1)


@pytest.mark.parametrize('error', [1, 5, -20])
def test_psnr_of_a_constant_error_is_its_definition(clips, error):
    off = (clips.astype(int) + error).astype(np.uint8)
    np.testing.assert_allclose(psnr(off, clips), 20 * np.log10(255 / abs(error)), rtol=1e-6)


def test_psnr_is_of_the_whole_clip_and_of_each_by_itself(clips):
    """An error of 30 in one frame of three has a mean square of 300."""
    off = clips.copy()
    off[1, 0] += 30
    values = psnr(off, clips)
    assert values.shape == (2,) and values[0] > 100
    np.testing.assert_allclose(values[1], 10 * np.log10(255**2 / 300), rtol=1e-6)


def test_ssim_is_1_for_equal_clips_and_falls_with_noise(clips, rng):
    noisy = [np.clip(clips + rng.normal(scale=scale, size=clips.shape), 0, 255).astype(np.uint8) for scale in (5, 40)]
    np.testing.assert_allclose(ssim(clips, clips), 1, atol=1e-6)
    little, much = (ssim(clip, clips) for clip in noisy)
    assert little.shape == (2,) and (much < 0.5).all() and (much < little).all() and (little < 0.99).all()


def test_ssim_forgives_a_shift_of_brightness_that_psnr_does_not(clips, rng):
    brighter = (clips + 10).astype(np.uint8)
    noisy = np.clip(clips + rng.choice([-10, 10], size=clips.shape), 0, 255).astype(np.uint8)
    np.testing.assert_allclose(psnr(brighter, clips), psnr(noisy, clips), rtol=1e-6)
    assert (ssim(brighter, clips) > ssim(noisy, clips) + 0.1).all()


@pytest.mark.parametrize('measure', [psnr, ssim])
def test_clips_of_other_shapes_or_types_are_refused_with_both(measure, clips):
    with pytest.raises(ValueError, match=r'uint8 \(2, 3, 16, 16, 3\) and uint8 \(1, 3, 16, 16, 3\)'):
        measure(clips, clips[:1])
    with pytest.raises(ValueError, match=r'float64 .* and uint8'):
        measure(clips / 255, clips)
