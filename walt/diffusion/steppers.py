"""Steps of a sampler: from the latents at time t to those at an earlier time s.

DDIM (arXiv:2010.02502, equation 12) puts z0 back under noise, part of it the eps that was predicted and part new:

    z_s = alpha_s z0 + sqrt(sigma_s^2 - c^2) eps + c noise                                                          (1)
    c   = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2)                                                   (2)

With alpha^2 + sigma^2 = 1 and SNR = alpha^2 / sigma^2, equation (2) is

    c^2 = sigma_s^2 eta^2 (1 - SNR_t / SNR_s)                                                                       (3)

so eta^2 (1 - SNR_t / SNR_s) is the share of the noise that is new. This form keeps its digits at both ends: at zero
terminal SNR (alpha_t = 0) the share is eta^2, and at the last step (sigma_s = 0) c is 0. At eta = 1 it is the variance
of q(z_s | z_t, z0) for any alpha and sigma, on the circle or not; `LearnedAncestral` takes the denoiser's own. Under
rectified flow DDIM is Euler's method.

Without new noise every stepper follows the probability flow, on which z0 and eps are the denoiser's at every t. Two
ways to write it that stay finite at zero SNR, with n = sqrt(alpha^2 + sigma^2) and tan phi = sigma / alpha:

    d(z / n)     = v dphi,             v = (alpha eps - sigma z0) / n                                               (4)
    d(z / sigma) = z0 d(alpha / sigma)                                                                              (5)

Heun's method takes the mean of v at both ends of a step, the later one at what DDIM finds there:

    z_s / n_s = z_t / n_t + (phi_s - phi_t) (v_t + v_s) / 2                                                         (6)

DPM-Solver++ (2M) (arXiv:2211.01095, algorithm 2) solves (5) for a z0 that moves on in lambda = log(alpha / sigma) as it
did from the pass before (r) to this one (t):

    z_s = (sigma_s / sigma_t) z_t + (alpha_s - sigma_s alpha_t / sigma_t) (z0_t + k (z0_t - z0_r))                  (7)
    k   = (lambda_s - lambda_t) / (2 (lambda_t - lambda_r))                                                         (8)

where k = 0 if lambda is infinite anywhere: at the start of zero terminal SNR, -inf, and at the clean end, inf. Equation
(7) is then DDIM.

At s = 0 every stepper returns the z0 of its last pass: there (1), (6) and (7) are not needed or agree.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from walt.diffusion.schedules import Level, corrupt, over_trailing
from walt.diffusion.variance import log_variance, new_noise, posterior_mean
from walt.randomness import normal


class Pass(NamedTuple):
    """What a pass of the denoiser saw and said."""

    z: jax.Array
    """(B, ...) z_t: always `corrupt(z0, eps, *at)`."""
    z0: jax.Array
    """(B, ...) predicted."""
    eps: jax.Array
    """(B, ...) predicted."""
    at: Level
    """alpha and sigma of t, scalars or (B,)."""
    share: jax.Array | None = None
    """(B, ...), where the variance lies (`walt.diffusion.variance`); None of a denoiser that does not say, and of the
    pass before."""


class Stepper(Protocol):
    """A method: where it passes through the denoiser, and what it makes of a pass."""

    def visits(self, times: np.ndarray) -> np.ndarray:
        """Returns the time of every pass in its order, and after them the last of `times`, where sampling ends.

        Args:
            times: (steps + 1,) decreasing, those of the schedule. A time may be visited twice, one right after another.
        """

    def __call__(self, here: Pass, before: Pass, at_s: Level, key_B: jax.Array) -> jax.Array:
        """Returns z_s at the next visit, (B, ...) float32.

        Args:
            here: this pass.
            before: the pass before this one; before the first one, the noise itself: z0 = 0, alpha = 0, sigma = 1.
            at_s: alpha and sigma of the next visit, in the shape of `here.at`.
            key_B: the key of every example for this pass; a deterministic stepper draws nothing from it.
        """


@dataclasses.dataclass(frozen=True)
class Ddim:
    """Equation (1): eta = 0 is deterministic, eta = 1 draws from the posterior of DDPM."""

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f'eta is in [0, 1], not {self.eta}')

    def visits(self, times: np.ndarray) -> np.ndarray:
        """One pass a step."""
        return times

    def __call__(self, here: Pass, before: Pass, at_s: Level, key_B: jax.Array) -> jax.Array:
        """See `Stepper`."""
        eps = here.eps
        if self.eta > 0:
            new = over_trailing(self.eta**2 * new_noise(here.at, at_s), eps)
            eps = jnp.sqrt(1 - new) * eps + jnp.sqrt(new) * normal(key_B, eps.shape[1:])
        return corrupt(here.z0, eps, *at_s)


def ancestral() -> Ddim:
    """The sampler of DDPM (arXiv:2006.11239, algorithm 2) with the posterior's variance: `Ddim` at eta = 1."""
    return Ddim(eta=1.0)


@dataclasses.dataclass(frozen=True)
class LearnedAncestral:
    """The sampler of DDPM with the variance that the denoiser predicts (IDDPM): equations (3) and (4) of `variance`."""

    def visits(self, times: np.ndarray) -> np.ndarray:
        """One pass a step."""
        return times

    def __call__(self, here: Pass, before: Pass, at_s: Level, key_B: jax.Array) -> jax.Array:
        """See `Stepper`; raises `ValueError` if the denoiser says nothing about its variance."""
        if here.share is None:
            raise ValueError('ancestral sampling with a learned variance, but the denoiser predicts none')
        clean = over_trailing(at_s[1] == 0, here.z)
        away = at_s[0], jnp.where(at_s[1] == 0, here.at[1], at_s[1])  # nothing has a logarithm at the clean end
        std = jnp.exp(log_variance(here.share, here.at, away) / 2)
        noise = std * normal(key_B, here.z.shape[1:])
        return posterior_mean(here.z0, here.eps, here.at, at_s) + jnp.where(clean, 0, noise)


@dataclasses.dataclass(frozen=True)
class Heun:
    """Equation (6), of second order: 2 steps - 1 passes, since the last step, to s = 0, is one of DDIM.

    A step is two passes: at t, which goes to s by DDIM, and at s, which goes nowhere but does the step again with both.
    """

    def visits(self, times: np.ndarray) -> np.ndarray:
        """Every time twice, but for the first and the last."""
        return np.repeat(times, 2)[1:-1]

    def __call__(self, here: Pass, before: Pass, at_s: Level, key_B: jax.Array) -> jax.Array:
        """See `Stepper`."""
        stays = over_trailing((here.at[0] == at_s[0]) & (here.at[1] == at_s[1]), here.z)
        return jnp.where(stays, _trapezoid(before, here), corrupt(here.z0, here.eps, *at_s))


@dataclasses.dataclass(frozen=True)
class DpmSolverPlusPlus2M:
    """Equation (7), of second order at one pass a step."""

    def visits(self, times: np.ndarray) -> np.ndarray:
        """One pass a step."""
        return times

    def __call__(self, here: Pass, before: Pass, at_s: Level, key_B: jax.Array) -> jax.Array:
        """See `Stepper`."""
        lambda_r, lambda_t, lambda_s = (jnp.log(alpha) - jnp.log(sigma) for alpha, sigma in (before.at, here.at, at_s))
        finite = jnp.isfinite(lambda_r) & jnp.isfinite(lambda_t) & jnp.isfinite(lambda_s)
        k = jnp.where(finite, (lambda_s - lambda_t) / (2 * (lambda_t - lambda_r)), 0)
        z0 = here.z0 + over_trailing(k, here.z) * (here.z0 - before.z0)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = here.at, at_s
        kept = sigma_s / sigma_t
        return corrupt(z0, here.z, alpha_s - kept * alpha_t, kept)


def _trapezoid(start: Pass, end: Pass) -> jax.Array:
    """Equation (6): z at the end."""
    (norm_t, phi_t, v_t), (norm_s, phi_s, v_s) = (_circle(at_end) for at_end in (start, end))
    return norm_s * (start.z / norm_t + (phi_s - phi_t) * (v_t + v_s) / 2)


def _circle(here: Pass) -> tuple[jax.Array, jax.Array, jax.Array]:
    """n, phi and v of equation (4)."""
    alpha, sigma = (over_trailing(x, here.z) for x in here.at)
    norm = jnp.hypot(alpha, sigma)
    return norm, jnp.arctan2(sigma, alpha), (alpha * here.eps - sigma * here.z0) / norm
