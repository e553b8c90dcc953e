"""Clips resized to whole patches before they are encoded."""

import numpy as np
import pytest

from walt.data.fitted import Fitted
from walt.data.mixed_digits import MixedDigits
from walt.data.resolution import Uniform

SOURCE = MixedDigits('train', pictures=40)


def test_every_clip_has_the_size_that_is_said_which_patches_tile_and_its_aspect_ratio():
    fitted = Fitted(SOURCE, (4, 4), 64, Uniform(20, 30))
    assert len(fitted) == 40 and fitted.num_classes == 10
    assert len(np.unique(fitted.sizes_N3, axis=0)) > 10
    for index in range(40):
        element, (_, height, width) = fitted[index], SOURCE.sizes_N3[index]
        assert element['video'].shape == (*fitted.sizes_N3[index], 3) and element['video'].dtype == np.uint8
        assert element['label'] == SOURCE[index]['label']
        _, h, w = fitted.sizes_N3[index] // 4
        assert (fitted.sizes_N3[index][1:] % 4 == 0).all() and h * w <= 64
        assert abs(np.log((h / w) / (height / width))) < 0.7  # to whole patches
    sides_N = np.sqrt(fitted.sizes_N3[:, 1:].prod(1))
    assert sides_N.min() > 16 and sides_N.max() < 34
    with pytest.raises(IndexError, match='index 40 of 40'):
        fitted[40]


def test_sizes_are_those_of_seed_and_split():
    sizes = [Fitted(SOURCE, (4, 4), 64, Uniform(16, 48), seed=seed).sizes_N3 for seed in (0, 0, 1)]
    np.testing.assert_array_equal(sizes[0], sizes[1])
    assert (sizes[0] != sizes[2]).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='two extents of 1 or more'):
        Fitted(SOURCE, (1, 4, 4), 64)
    with pytest.raises(ValueError, match='list does not say its sizes_N3'):
        Fitted([], (4, 4), 64)
