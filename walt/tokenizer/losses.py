"""Losses of the tokenizer: a dict of named terms, summed by weight (MAGVIT-v2, appendix A.2).

    reconstruction   mean (x^ - x)^2 over all pixels

The perceptual and the adversarial terms become entries of `TERMS` when they are built.
"""

from collections.abc import Mapping

import jax.numpy as jnp


def reconstruction(reconstruction_BTHWC, video_BTHWC):
    """Mean squared error of pixels in [0, 1], a scalar."""
    return jnp.mean(jnp.square(reconstruction_BTHWC - video_BTHWC))


TERMS = {'reconstruction': reconstruction}


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises `ValueError` on a term that does not exist, or when there is none."""
    unknown = sorted(set(weights) - set(TERMS))
    if unknown or not weights:
        raise ValueError(f'unknown loss terms {unknown} in {dict(weights)}; choices: {sorted(TERMS)}')


def tokenizer_loss(weights: Mapping[str, float], reconstruction_BTHWC, video_BTHWC):
    """The weighted sum, and every term before weighting by its name."""
    terms = {name: TERMS[name](reconstruction_BTHWC, video_BTHWC) for name in weights}
    return sum(weights[name] * value for name, value in terms.items()), terms
