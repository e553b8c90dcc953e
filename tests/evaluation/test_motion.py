"""Centres of brightness and headings, on blocks that move as told and on real clips."""

import numpy as np
import pytest

from walt.data.moving_digits import DIRECTIONS, MovingDigits
from walt.evaluation.motion import centres, headings

WAYS = np.array([way for _, *way in DIRECTIONS])


def block_at(*places) -> np.ndarray:
    """A clip of a 2x2 block whose upper left corner is at `places`, frame by frame."""
    video_THWC = np.zeros((len(places), 16, 16, 3), np.uint8)
    for frame, (row, column) in zip(video_THWC, places):
        frame[row : row + 2, column : column + 2] = 200
    return video_THWC


def test_the_centre_of_a_block_is_its_middle_in_rows_and_columns():
    np.testing.assert_allclose(centres(block_at((3, 9), (0, 14))[None])[0], [[3.5, 9.5], [0.5, 14.5]], atol=1e-5)


def test_the_centre_of_a_black_frame_is_the_middle_of_the_picture():
    np.testing.assert_allclose(centres(np.zeros((1, 1, 4, 6, 3), np.uint8))[0, 0], [1.5, 2.5])


@pytest.mark.parametrize('number', range(len(DIRECTIONS)))
def test_a_block_heads_where_it_moves(number):
    """By unequal steps, too: 22.5 degrees to either side are still the same heading."""
    row, column = WAYS[number]
    video = block_at((7, 7), (0, 0), (7 + 4 * row, 7 + 4 * column), (0, 0))
    assert headings(video[None], 2, WAYS)[0] == number


def test_real_clips_head_where_their_captions_say():
    source = MovingDigits('validation', speed=(0.5, 1.0), clips=60)
    elements = [source[i] for i in range(60)]
    asked = [[element['caption'].endswith(f' moving {words}') for words, *_ in DIRECTIONS] for element in elements]
    found = headings(np.stack([element['video'] for element in elements]), 4, WAYS)
    assert (found == np.argmax(asked, 1)).mean() > 0.98


def test_short_clips_and_floats_are_refused():
    with pytest.raises(ValueError, match='frame 5 of clips of 5 frames'):
        headings(np.zeros((1, 5, 4, 4, 3), np.uint8), 5, WAYS)
    with pytest.raises(ValueError, match=r'uint8 clips, got float32 \(1, 1, 4, 4, 3\)'):
        centres(np.zeros((1, 1, 4, 4, 3), np.float32))
