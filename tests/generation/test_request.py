"""Requests: as many clips in every field, cut and filled alike."""

import numpy as np
import pytest

from walt.generation.request import Request

FRAMES = np.arange(3 * 5 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 5, 2, 2, 3)
WHOLE = Request([4, -1, 6], ['a', '', 'c'], FRAMES)


def same(request, labels, prompts, places):
    assert (request.labels, request.prompts) == (labels, prompts)
    np.testing.assert_array_equal(request.frames_NTHWC, FRAMES[places])


def test_a_slice_is_the_request_of_some_clips():
    assert len(WHOLE) == 3 and len(WHOLE[1:]) == 2
    same(WHOLE[1:], [-1, 6], ['', 'c'], [1, 2])
    same(WHOLE[:1], [4], ['a'], [0])


def test_a_filled_request_begins_with_its_clips_and_repeats_them():
    same(WHOLE.filled(5), [4, -1, 6, 4, -1], ['a', '', 'c', 'a', ''], [0, 1, 2, 0, 1])
    same(WHOLE.filled(3), WHOLE.labels, WHOLE.prompts, [0, 1, 2])


def test_fields_that_are_not_asked_for_stay_so_and_pictures_stay_pictures():
    for request in (Request(prompts=['a', 'b'], pictures=True)[1:], Request(prompts=['b'], pictures=True).filled(2)):
        assert request.labels is None and request.frames_NTHWC is None and request.pictures
        assert set(request.prompts) == {'b'}
    assert not WHOLE.filled(4).pictures


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ({'labels': [1, 2], 'prompts': ['a']}, "'labels': 2, 'prompts': 1"),
        ({'labels': [1], 'frames_NTHWC': FRAMES}, "'labels': 1, 'frames': 3"),
        ({}, '{}'),
        ({'prompts': []}, "'prompts': 0"),
        ({'pictures': True}, '{}'),
    ],
    ids=str,
)
def test_fields_of_different_lengths_and_empty_requests_are_refused_with_the_lengths(fields, told):
    with pytest.raises(ValueError, match=f'one element for every clip.*{told}'):
        Request(**fields)


def test_pictures_do_not_go_on_from_frames():
    with pytest.raises(ValueError, match='pictures go on from nothing, and 5 frames are given'):
        Request(frames_NTHWC=FRAMES, pictures=True)
