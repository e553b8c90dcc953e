"""The judge of digits: how well it reads real ones, and how readings are counted."""

import numpy as np
import pytest

from walt.data.moving_digits import MovingDigits
from walt.evaluation.judge import Judge, agreement, centred_features


def clips(split: str, count: int, frames: int):
    source = MovingDigits(split, frames=frames, clips=count)
    elements = [source[index] for index in range(count)]
    return np.stack([element['video'] for element in elements]), np.array([element['label'] for element in elements])


@pytest.fixture(scope='module')
def judge():
    return Judge(10).fit(*clips('train', 700, 2))


def test_held_out_real_digits_are_read_right(judge):
    videos, labels = clips('validation', 100, 3)
    read_NT = judge.read(videos)
    assert read_NT.shape == (100, 3)
    assert agreement(read_NT, labels, 10)['clips'] >= 0.95


@pytest.mark.filterwarnings('error')
def test_blank_frames_have_no_middle_and_are_read_as_something(judge):
    blank = np.zeros((2, 3, 32, 32, 3), np.uint8)
    assert (centred_features(blank) == 0).all()
    read_NT = judge.read(blank)
    assert read_NT.shape == (2, 3) and ((read_NT >= 0) & (read_NT < 10)).all()


def test_a_digit_is_the_same_wherever_it_is():
    video = np.zeros((2, 1, 16, 16, 3), np.uint8)
    video[0, 0, 2:7, 3:6] = video[1, 0, 8:13, 9:12] = 200
    here, there = centred_features(video)
    assert here.shape == (1, 64) and here.max() > 0.5
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_agreement_is_counted_by_clip_by_frame_and_by_whole_clip():
    read_NT = np.array([[1, 1, 1], [2, 2, 5], [3, 0, 0], [4, 5, 6]])
    counted = agreement(read_NT, np.array([1, 2, 3, 4]), classes=10)
    # Majorities are 1, 2, 0 and, of three that tie, the smallest, 4.
    assert counted == {'clips': 3 / 4, 'frames': 7 / 12, 'whole_clips': 1 / 4}
    assert agreement(np.array([[5, 4]]), np.array([5]), classes=10)['clips'] == 0


@pytest.mark.parametrize('clip', [np.zeros((1, 1, 4, 4, 3)), np.zeros((1, 1, 5, 4, 3), np.uint8)])
def test_clips_that_cannot_be_halved_or_are_not_uint8_are_refused(clip):
    with pytest.raises(ValueError, match=rf'uint8 clips with even sides, got {clip.dtype} \(1, 1, '):
        centred_features(clip)
