"""Side lengths as NaViT draws them, and grids that keep the aspect ratio and fit a row."""

import numpy as np
import pytest
from scipy import stats

from walt.data.resolution import Fixed, Native, TruncatedNormal, Uniform, grids

U = (np.arange(10_000) + 0.5) / 10_000
NATIVE = np.full(len(U), 40.0)


def test_side_lengths_follow_the_truncated_normal():
    sides = TruncatedNormal(64, 384)(U, NATIVE)
    of_paper = 64 + 160 * (stats.truncnorm(-0.5, 1.5, -0.5, 1).ppf(U) + 1)  # its bounds are in standard deviations
    np.testing.assert_allclose(sides, of_paper, rtol=1e-9)
    assert 64 < sides.min() < 65 and 383 < sides.max() < 384


def test_side_lengths_may_be_uniform_fixed_or_as_they_are():
    assert abs(Uniform(10, 30)(U, NATIVE).mean() - 20) < 1e-6
    assert (Fixed(12)(U, NATIVE) == 12).all() and (Native()(U, NATIVE) == 40).all()


def test_grids_keep_area_and_aspect_ratio_within_a_patch():
    rng = np.random.default_rng(0)
    sizes_N3 = np.stack([np.ones(2000), *rng.integers(40, 400, (2, 2000))], axis=1).astype(int)
    side_N = rng.uniform(60, 200, 2000)
    grid_N3 = grids(side_N, sizes_N3, (1, 4, 2), 10_000)
    ideal = side_N * np.sqrt(sizes_N3[:, 1] / sizes_N3[:, 2])
    assert (np.abs(grid_N3[:, 1] * 4 - ideal) <= 2 + 1e-9).all()
    assert (np.abs(grid_N3[:, 2] * 2 - side_N**2 / ideal) <= 1 + 1e-9).all()


@pytest.mark.parametrize('length', [7, 16, 100])
def test_no_clip_has_more_tokens_than_a_row_whatever_its_shape(length):
    rng = np.random.default_rng(0)
    sizes_N3 = np.stack([rng.integers(2, 15, 5000), *rng.integers(1, 5000, (2, 5000))], axis=1)
    grid_N3 = grids(rng.uniform(1, 3000, 5000), sizes_N3, (2, 3, 3), length)
    assert grid_N3.min() >= 1 and grid_N3.prod(1).max() <= length
    assert (grid_N3[:, 0] == sizes_N3[:, 0] // 2).all()


def test_a_clip_that_is_too_large_becomes_as_large_as_fits_in_its_own_shape():
    assert grids(np.array([1000.0]), np.array([[1, 400, 100]]), (1, 4, 4), 64).tolist() == [[1, 16, 4]]


def test_clips_with_too_few_or_too_many_frames_are_refused():
    with pytest.raises(ValueError, match='1 to 5 frames do not fit patches of 2 frames in rows of 9'):
        grids(np.ones(2), np.array([[5, 4, 4], [1, 4, 4]]), (2, 1, 1), 9)


@pytest.mark.parametrize('wrong', [lambda: Uniform(4, 2), lambda: Fixed(0), lambda: TruncatedNormal(1, 2, std=0)])
def test_fields_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r'side lengths rise|std is positive'):
        wrong()
