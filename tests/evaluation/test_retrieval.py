"""Ranks of samples in a gallery of real clips."""

import numpy as np
import pytest

from walt.data.moving_digits import MovingDigits
from walt.evaluation.retrieval import embed, ranks, retrieval
from walt.features.perceptual import squeezenet_distance


@pytest.fixture(scope='module')
def network():
    return squeezenet_distance()


@pytest.fixture(scope='module')
def videos():
    source = MovingDigits('validation', frames=5, crisp=True)
    return np.stack([source[i]['video'] for i in range(12)])


def test_ranks_count_those_that_are_more_alike(rng):
    gallery_NC = np.eye(4)[:, [0, 1, 2, 3]] * 5
    likes = {0: [0.9, 0.5, 0.1, 0.0], 1: [0.9, 0.5, 0.1, 0.0], 2: [0.9, 0.5, 0.1, 0.0], 3: [0.0, 0.5, 0.1, 0.9]}
    assert ranks(np.array(list(likes.values())), gallery_NC).tolist() == [1, 2, 3, 1]


def test_neither_length_nor_what_all_clips_share_counts(rng):
    samples, gallery = rng.normal(size=(2, 20, 6))
    shared = 100 * rng.normal(size=6)
    centred = gallery - gallery.mean(0)
    np.testing.assert_array_equal(ranks(samples, centred), ranks(samples + shared, centred + shared))
    np.testing.assert_array_equal(ranks(samples, centred), ranks(7 * samples, centred))


def test_figures_of_ranks():
    figures = retrieval(np.array([1, 1, 4, 10, 11, 50]))
    assert figures == {'gallery': 6, 'median_rank': 7.0, 'first': 2 / 6, 'first_ten': 4 / 6}


def test_chance_is_the_middle(rng):
    samples, gallery = rng.normal(size=(2, 400, 32))
    assert abs(retrieval(ranks(samples, gallery))['median_rank'] - 200.5) < 30


def test_a_clip_is_first_in_its_own_gallery_also_when_it_is_blurred(network, videos):
    gallery_NC = embed(network, videos)
    assert (ranks(gallery_NC, gallery_NC) == 1).all()
    blurred = np.uint8((videos // 2) + (np.roll(videos, 1, axis=3) // 2))
    figures = retrieval(ranks(embed(network, blurred), gallery_NC))
    assert figures['gallery'] == 12 and figures['median_rank'] <= 2
    others = retrieval(ranks(gallery_NC[::-1], gallery_NC))
    assert others['first'] == 0 and others['median_rank'] > 3


def test_what_does_not_fit_is_named(network, videos):
    with pytest.raises(ValueError, match=r'17 pixels .*\(12, 5, 8, 8, 3\)'):
        embed(network, videos[:, :, :8, :8])
    with pytest.raises(ValueError, match=r'\(2, 3\).*\(4, 3\)'):
        ranks(np.zeros((2, 3)), np.zeros((4, 3)))
