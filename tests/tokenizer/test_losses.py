"""Losses of the tokenizer."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt.tokenizer.losses import check_weights, reconstruction, tokenizer_loss


def test_reconstruction_is_the_mean_squared_error_of_pixels():
    video = jnp.zeros((1, 2, 2, 2, 3))
    np.testing.assert_allclose(reconstruction(video.at[0, 1].set(0.5), video), 0.125, rtol=1e-6)


def test_total_is_weighed_and_terms_are_not():
    video = jnp.zeros((1, 1, 2, 2, 3))
    total, terms = tokenizer_loss({'reconstruction': 5.0}, video + 1, video)
    np.testing.assert_allclose(total, 5, rtol=1e-6)
    np.testing.assert_allclose(terms['reconstruction'], 1, rtol=1e-6)
    assert set(terms) == {'reconstruction'}


def test_unknown_terms_and_no_terms_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"\['gan'\].*choices: .*'reconstruction'"):
        check_weights({'reconstruction': 1.0, 'gan': 0.1})
    with pytest.raises(ValueError, match=r'choices'):
        check_weights({})
    check_weights({'reconstruction': 1.0})
