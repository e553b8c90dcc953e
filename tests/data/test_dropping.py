"""Shares of dropped tokens have the distributions that NaViT gives them, and follow their schedule."""

import numpy as np
import pytest

from walt.data.dropping import Beta, ByResolution, Constant, Keep, Sigmoid, kept

U = (np.arange(20_000) + 0.5) / 20_000
HALF, ZERO = np.full(len(U), 0.5), np.zeros(len(U))


def test_beta_has_the_mean_and_variance_of_the_paper():
    share = Beta(mean=0.3, most=0.8)(U, HALF, ZERO)
    m = 0.3 / 0.8
    assert share.min() >= 0 and share.max() <= 0.8
    np.testing.assert_allclose(share.mean(), 0.3, rtol=1e-3)
    np.testing.assert_allclose((share / 0.8).var(), 0.3 * m * (1 - m), rtol=1e-2)


def test_by_resolution_is_a_narrow_normal_around_a_line_in_the_tokens():
    drop = ByResolution(low=0.2, high=0.6, std=0.02)
    for tokens, mean in ((0.0, 0.2), (0.5, 0.4), (1.0, 0.6)):
        share = drop(U, np.full(len(U), tokens), ZERO)
        np.testing.assert_allclose(share.mean(), mean, atol=1e-4)
        assert 0.0195 < np.abs(share - mean).max() / 2 <= 0.02 + 1e-12


def test_nothing_or_a_constant_share_is_dropped():
    assert not Keep()(U, HALF, ZERO).any() and (Constant(0.4)(U, HALF, ZERO) == 0.4).all()


def test_the_schedule_goes_from_first_to_last_with_the_clips_trained_on():
    rho = Sigmoid(first=0.8, last=0.2, middle=1000, width=50)
    np.testing.assert_allclose(rho(np.array([0, 1000, 1050, 2000])), [0.8, 0.5, 0.8 - 0.6 / (1 + np.e**-1), 0.2], 1e-3)
    for drop in (Constant(1.0, rho), Beta(0.3, 0.8, rho), ByResolution(0.2, 0.6, schedule=rho)):
        early, late = (drop(U, HALF, np.full(len(U), number)).mean() for number in (0, 2000))
        np.testing.assert_allclose(late / early, 0.25, rtol=1e-3)


def test_one_token_stays_at_least():
    assert kept(np.array([1.0, 0.5, 0.0, 0.99]), np.array([10, 10, 10, 1])).tolist() == [1, 5, 10, 1]


@pytest.mark.parametrize(
    'wrong',
    [lambda: Constant(1.2), lambda: Beta(0.5, 0.4), lambda: ByResolution(0.6, 0.2), lambda: Sigmoid(0, 2, 1, 1)],
)
def test_fields_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r'shares rise|most <= 1|shares in'):
        wrong()
