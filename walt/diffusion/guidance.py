"""Classifier-free guidance (arXiv:2207.12598): away from the unconditional prediction, towards the conditional one.

    f~(z_t, c) = f(z_t, null) + scale (f(z_t, c) - f(z_t, null))

Every prediction of `walt.diffusion.prediction` is affine in z0, so guiding v, eps or z0 is the same thing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from walt.diffusion.prediction import Cond, Denoise


def classifier_free(denoise: Denoise, scale: float, null: Callable[[Cond], Cond]) -> Denoise:
    """Returns the guided denoiser: one call of `denoise` on the batch twice, conditional rows first.

    Both halves receive the same `estimate`, which the sampler takes from the guided prediction.

    Args:
        denoise: the model.
        scale: 1 is no guidance, and returns `denoise` itself.
        null: replaces the conditions to guide by by their null (label -> null class), in the same tree.
    """
    if scale == 1:
        return denoise

    def guided(z: jax.Array, t_B: jax.Array, cond: Cond) -> jax.Array:
        uncond = null(cond) | {'estimate': cond['estimate']}
        twice = jax.tree.map(lambda *halves: jnp.concatenate(halves), (z, t_B, cond), (z, t_B, uncond))
        given, without = jnp.split(denoise(*twice).astype(jnp.float32), 2)
        return without + scale * (given - without)

    return guided
