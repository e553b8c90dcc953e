"""Digits at mixed aspect ratios."""

import numpy as np
import pytest

from walt.data.mixed_digits import MixedDigits
from walt.data.moving_digits import digit_scans


def test_sizes_are_known_without_making_a_picture_and_true():
    source = MixedDigits('train', pictures=60)
    assert source.sizes_N3.tolist() == [list(source[index]['video'].shape[:3]) for index in range(60)]


def test_aspect_ratios_go_from_tall_to_wide():
    aspect_N = np.divide(*MixedDigits('train', pictures=500).sizes_N3[:, 1:].T)
    assert (np.quantile(aspect_N, 0.1) < 0.5) and (np.quantile(aspect_N, 0.9) > 2)
    assert 0.2 < np.mean(abs(np.log(aspect_N)) < np.log(1.5)) < 0.6


def test_the_same_picture_every_time_and_another_for_another_seed_or_split():
    pictures = [
        MixedDigits(split, pictures=5, seed=seed)[3]['video']
        for split, seed in (('train', 0), ('train', 0), ('train', 1), ('validation', 0))
    ]
    np.testing.assert_array_equal(*pictures[:2])
    assert all(other.shape != pictures[0].shape or (other != pictures[0]).any() for other in pictures[2:])


def test_all_digits_of_a_picture_are_scans_of_its_class_and_of_its_split():
    for split in ('train', 'validation'):
        source = MixedDigits(split, pictures=30)
        _, labels_N = digit_scans(split)
        for index in range(30):
            label, chosen, boxes, _ = source._layout(index)
            assert label == source[index]['label'] and (labels_N[chosen] == label).all() and len(boxes) == len(chosen)


def test_a_scan_at_its_own_scale_is_in_the_picture_pixel_by_pixel():
    source = MixedDigits('train', digits=(1, 1), scale=1, stretch=1.0, pictures=3)
    scans_NHW, _ = digit_scans('train')
    for index in range(3):
        _, (scan,), _, _ = source._layout(index)
        picture = source[index]['video'][0, 1:-1, 1:-1, 0]
        scan_HW = scans_NHW[scan]
        rows, columns = (np.flatnonzero(scan_HW.any(axis)) for axis in (1, 0))
        np.testing.assert_array_equal(picture, scan_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@pytest.mark.parametrize('fields', [{'digits': (3, 1)}, {'scale': 0}, {'stretch': 0.5}, {'pictures': 0}])
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=r'digits rise|are 1 or more'):
        MixedDigits('train', **fields)
