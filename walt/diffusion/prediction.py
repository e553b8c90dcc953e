"""What a denoiser predicts, and the way from one prediction to another.

The noisy latents and the velocity are the pair (z0, eps) in a rotated frame (arXiv:2202.00512, appendix D),

    z_t = alpha z0 + sigma eps          z0  = alpha z_t - sigma v                                                   (1)
    v   = alpha eps - sigma z0          eps = sigma z_t + alpha v                                                   (2)

so any one of v, eps and z0, together with z_t, gives the other two. W.A.L.T predicts v in every experiment; its paper
prints v with the two factors swapped, we take the definition of the works that it cites.

The right column inverts the left one only where alpha^2 + sigma^2 = 1, and elsewhere v is refused. The velocity of
rectified flow (arXiv:2209.03003), which is dz_t / dt under its schedule, serves under every schedule:

    u = eps - z0      z0 = (z_t - sigma u) / (alpha + sigma)      eps = (z_t + alpha u) / (alpha + sigma)           (3)

Two of these ways end at the ends of the schedule: eps says nothing about z0 where alpha = 0, z0 nothing about eps where
sigma = 0. The first is where sampling under zero terminal SNR starts, so that pair is refused; the second is the clean
end, which nothing steps away from.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from walt.diffusion.schedules import Schedule, over_trailing

Parametrisation = Literal['v', 'eps', 'z0', 'flow']

Cond = dict[str, Any]
"""Conditioning: a tree of arrays, each with a leading axis B, for example `label` (B,) int32.

`estimate`, in the shape of z, is the self-conditioning estimate of z0, zeros when there is none. The loss and the
sampler set it; their callers leave it out.
"""

Denoise = Callable[[jax.Array, jax.Array, Cond], jax.Array]
"""denoise(z_BTHWC, t_B, cond) -> prediction_BTHWC: the one interface between models and diffusion. z is of any rank.

A denoiser that learns its variance returns twice as many channels: the prediction, and after it what says where the
variance lies (`walt.diffusion.variance`)."""


def _from_v(v, z_t, alpha, sigma):
    return alpha * z_t - sigma * v, sigma * z_t + alpha * v


def _from_eps(eps, z_t, alpha, sigma):
    return (z_t - sigma * eps) / alpha, eps


def _from_z0(z0, z_t, alpha, sigma):
    return z0, (z_t - alpha * z0) / sigma


def _from_flow(u, z_t, alpha, sigma):
    return (z_t - sigma * u) / (alpha + sigma), (z_t + alpha * u) / (alpha + sigma)


_TO_Z0_EPS = {'v': _from_v, 'eps': _from_eps, 'z0': _from_z0, 'flow': _from_flow}

_TARGET = {
    'v': lambda z0, eps, alpha, sigma: alpha * eps - sigma * z0,
    'eps': lambda z0, eps, alpha, sigma: eps,
    'z0': lambda z0, eps, alpha, sigma: z0,
    'flow': lambda z0, eps, alpha, sigma: eps - z0,
}


def to_z0_eps(
    parametrisation: Parametrisation, prediction: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the z0 and the eps that a prediction at z_t implies.

    `prediction` and `z_t` are (B, ...), `alpha` and `sigma` (B,) or scalars. The results have the dtype of `z_t`.
    """
    prediction = prediction.astype(z_t.dtype)
    return _TO_Z0_EPS[parametrisation](prediction, z_t, over_trailing(alpha, z_t), over_trailing(sigma, z_t))


def target(
    parametrisation: Parametrisation, z0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Returns what a perfect denoiser predicts. `z0` and `eps` are (B, ...), `alpha` and `sigma` (B,) or scalars."""
    return _TARGET[parametrisation](z0, eps, over_trailing(alpha, z0), over_trailing(sigma, z0))


def check(parametrisation: Parametrisation, schedule: Schedule):
    """Raises ValueError if there is no such parametrisation, or if it cannot be sampled under this schedule."""
    if parametrisation not in _TARGET:
        raise ValueError(f'parametrisation {parametrisation!r} is none of {sorted(_TARGET)}')
    if parametrisation == 'eps' and schedule.zero_terminal_snr:
        raise ValueError(
            f"parametrisation 'eps' does not go with {schedule}: under zero terminal SNR alpha is 0 at t = 1, where "
            'z_t is eps and says nothing about z0; choose another one, or a schedule without zero terminal SNR'
        )
    if parametrisation == 'v' and not schedule.variance_preserving:
        raise ValueError(
            f"parametrisation 'v' does not go with {schedule}: v gives back z0 and eps where alpha^2 + sigma^2 = 1, "
            "which is not so there; choose 'flow' or 'z0'"
        )
