"""Losses of the tokenizer, each a function of arrays; `objective` weighs and sums them (MAGVIT-v2, appendix A.2).

With D the discriminator's logit, x a clip and y its reconstruction, means over the batch:

    reconstruction       mean (y - x)^2 over pixels in [0, 1]
    perceptual           distance of frames in a feature network (`walt.features`)
    scale_equivariance   mean (Dec(z halved) - x halved)^2        (arXiv:2502.14831)
    adversarial          softplus(-D(y))                          non-saturating: the tokenizer's side
    discriminator        softplus(-D(x)) + softplus(D(y))         the discriminator's side
    r1                   |dD(x)/dx|^2, summed over pixels         (arXiv:1801.04406)
    lecam                relu(D(x) - d_y)^2 + relu(d_x - D(y))^2  with d the moving averages of D (arXiv:2104.03310)

and those of the bottleneck (`tokenizer/bottleneck.py`).
"""

import jax
import jax.numpy as jnp


def reconstruction(reconstruction_BTHWC, video_BTHWC):
    """Mean squared error of pixels, a scalar."""
    return jnp.mean(jnp.square(reconstruction_BTHWC - video_BTHWC))


def adversarial(fake_B):
    return jax.nn.softplus(-fake_B).mean()


def discriminator(real_B, fake_B):
    return (jax.nn.softplus(-real_B) + jax.nn.softplus(fake_B)).mean()


def logits_and_r1(discriminate, video_BTHWC):
    """Logits of real clips, and the penalty on their gradient by the pixels, from one pass."""
    logit_B, pull_back = jax.vjp(discriminate, video_BTHWC)
    (gradient_BTHWC,) = pull_back(jnp.ones_like(logit_B))
    return logit_B, jnp.square(gradient_BTHWC).sum((1, 2, 3, 4)).mean()


def lecam(real_B, fake_B, average_real, average_fake):
    return jnp.mean(jnp.square(jax.nn.relu(real_B - average_fake)) + jnp.square(jax.nn.relu(average_real - fake_B)))


def halve(x_BTHWC):
    """Half the height and width, by the mean of 2x2 positions. Raises `ValueError` on odd sides."""
    batch, frames, height, width, channels = x_BTHWC.shape
    if height % 2 or width % 2:
        raise ValueError(f'{height}x{width} positions do not halve')
    return x_BTHWC.reshape(batch, frames, height // 2, 2, width // 2, 2, channels).mean((3, 5))
