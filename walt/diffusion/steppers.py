"""Steps of a sampler: from the latents at time t to those at an earlier time s.

DDIM (arXiv:2010.02502, equation 12) puts z0 back under noise, part of it the eps that was predicted and part new:

    z_s = alpha_s z0 + sqrt(sigma_s^2 - c^2) eps + c noise                                                          (1)
    c   = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2)                                                   (2)

With alpha^2 + sigma^2 = 1 and SNR = alpha^2 / sigma^2, equation (2) is

    c^2 = sigma_s^2 eta^2 (1 - SNR_t / SNR_s)                                                                       (3)

so eta^2 (1 - SNR_t / SNR_s) is the share of the noise that is new. This form keeps its digits at both ends: at zero
terminal SNR (alpha_t = 0) the share is eta^2, and at the last step (sigma_s = 0) c is 0.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from walt.diffusion.schedules import Level, corrupt, over_trailing
from walt.randomness import normal


class Stepper(Protocol):
    """One step of a sampler."""

    def __call__(self, z0: jax.Array, eps: jax.Array, at_t: Level, at_s: Level, key_B: jax.Array) -> jax.Array:
        """Returns z_s, (B, ...) float32.

        Args:
            z0, eps: (B, ...) what the denoiser predicts at time t; z_t is `corrupt(z0, eps, *at_t)`.
            at_t, at_s: alpha and sigma at the two times, scalars or (B,); s < t.
            key_B: the key of every example for this step; a deterministic stepper draws nothing from it.
        """


@dataclasses.dataclass(frozen=True)
class Ddim:
    """Equation (1): eta = 0 is deterministic, eta = 1 draws from the posterior of DDPM."""

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f'eta is in [0, 1], not {self.eta}')

    def __call__(self, z0: jax.Array, eps: jax.Array, at_t: Level, at_s: Level, key_B: jax.Array) -> jax.Array:
        """See `Stepper`."""
        if self.eta > 0:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t, at_s
            snr_ratio = jnp.square(alpha_t * sigma_s / (alpha_s * sigma_t))
            new = over_trailing(self.eta**2 * jnp.maximum(1 - snr_ratio, 0), eps)
            eps = jnp.sqrt(1 - new) * eps + jnp.sqrt(new) * normal(key_B, eps.shape[1:])
        return corrupt(z0, eps, *at_s)
