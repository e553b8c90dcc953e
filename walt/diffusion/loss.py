"""The training loss: plain L2 between prediction and target at a random time, with self-conditioning.

    L = E || f(z_t; z~, c, t) - y ||^2,    t ~ U(0, 1)                                       (W.A.L.T, section 3)

where y is v, and z~ is the denoiser's own estimate of z_0 (section 4.3, arXiv:2208.04202): with probability p_sc

    z~ = stop_gradient(z0 of f(z_t; 0, c, t)),    otherwise z~ = 0

The paper says *estimate*, not of what; we read z_0, whatever the parametrisation. The first pass runs on the whole
batch and is masked by example, so that shapes do not depend on the draw.

The paper weights all times alike. Min-SNR (arXiv:2303.09556, section 3.4) weights the error of z0 by min(SNR, gamma),
SNR = alpha^2 / sigma^2. At a given z_t every prediction y is affine in z0, so for the error of y the weight is

    w = min(SNR, gamma) (dz0 / dy)^2        z0: min(SNR, gamma)            v: min(SNR, gamma) / (SNR + 1)
                                            eps: min(SNR, gamma) / SNR     flow: min(SNR, gamma) / (sqrt(SNR) + 1)^2

At zero SNR w is 0, except for eps: where sampling starts from it, its first pass is hardly trained. It is made for
schedules that end above.

A denoiser that learns its variance is trained on a variational bound beside this: L + w L_vlb (`variance`, equation 6).
"""

import dataclasses

import jax
import jax.numpy as jnp

from walt.diffusion.prediction import Cond, Denoise, Parametrisation, check, target, to_z0_eps
from walt.diffusion.schedules import Discrete, Schedule, corrupt, over_trailing
from walt.diffusion.variance import bound_bits, split_prediction
from walt.randomness import bernoulli, normal, stream


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
    """The loss of a denoiser, by example.

    Attributes:
        schedule: the noise schedule.
        parametrisation: what the denoiser predicts: 'v', 'eps', 'z0' or 'flow'.
        self_conditioning: p_sc. At 0 there is no first pass.
        min_snr_gamma: gamma of the min-SNR weights, 5 in their paper; None weights all times by 1.
        vlb_weight: w of the variational bound, by which the denoiser learns its variance, 0.001 in IDDPM and DiT; None
            for a denoiser that does not.
    """

    schedule: Schedule
    parametrisation: Parametrisation = 'v'
    self_conditioning: float = 0.9
    min_snr_gamma: float | None = None
    vlb_weight: float | None = None

    def __post_init__(self):
        check(self.parametrisation, self.schedule)
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f'self_conditioning is a probability in [0, 1], not {self.self_conditioning}')
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise ValueError(f'min_snr_gamma is None or positive, not {self.min_snr_gamma}')
        if self.vlb_weight is not None and self.vlb_weight <= 0:
            raise ValueError(f'vlb_weight is None or positive, not {self.vlb_weight}')
        if self.vlb_weight is not None and not isinstance(self.schedule, Discrete):
            raise ValueError(f'vlb_weight {self.vlb_weight} goes with a chain of steps, which {self.schedule} is not')

    def __call__(
        self, denoise: Denoise, z0: jax.Array, cond: Cond, key_B: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of every example, (B,) float32, and what was drawn for it.

        Args:
            denoise: the model.
            z0: (B, ...) clean latents.
            cond: the conditions of the examples, without `estimate`.
            key_B: a key for every example, which draws all that is drawn for it.

        Returns:
            loss_B, and a dict of `t_B`, the times in [0, 1], and `self_conditioned_B`, whether an example was given an
            estimate.
        """
        z0 = z0.astype(jnp.float32)
        t_B = self.schedule.draw_times(stream(key_B, 'time'))
        eps = normal(stream(key_B, 'noise'), z0.shape[1:])
        alpha_B, sigma_B = self.schedule.alpha_sigma(t_B)
        z_t = corrupt(z0, eps, alpha_B, sigma_B)

        estimate = jnp.zeros_like(z0)
        self_conditioned_B = bernoulli(stream(key_B, 'self_conditioning'), self.self_conditioning)
        if self.self_conditioning > 0:
            first, _ = split_prediction(denoise(z_t, t_B, cond | {'estimate': estimate}), z0)
            first_z0, _ = to_z0_eps(self.parametrisation, first, z_t, alpha_B, sigma_B)
            estimate = jnp.where(over_trailing(self_conditioned_B, z0), jax.lax.stop_gradient(first_z0), 0)

        prediction, share = split_prediction(denoise(z_t, t_B, cond | {'estimate': estimate}), z0)
        if (share is None) != (self.vlb_weight is None):
            does = 'says nothing' if share is None else 'says'
            raise ValueError(f'the denoiser {does} about its variance, and vlb_weight is {self.vlb_weight}')
        error = prediction - target(self.parametrisation, z0, eps, alpha_B, sigma_B)
        loss_B = jnp.mean(jnp.square(error), axis=tuple(range(1, z0.ndim)))
        if self.min_snr_gamma is not None:
            loss_B = loss_B * min_snr_weight(self.parametrisation, alpha_B, sigma_B, self.min_snr_gamma)
        if self.vlb_weight is not None:
            fixed = to_z0_eps(self.parametrisation, jax.lax.stop_gradient(prediction), z_t, alpha_B, sigma_B)
            loss_B = loss_B + self.vlb_weight * bound_bits(self.schedule, t_B, z0, eps, *fixed, share)
        return loss_B, {'t_B': t_B, 'self_conditioned_B': self_conditioned_B}


def min_snr_weight(parametrisation: Parametrisation, alpha_B: jax.Array, sigma_B: jax.Array, gamma: float) -> jax.Array:
    """Returns w, (B,) float32, of the squared error of a prediction."""
    one_B = jnp.ones_like(alpha_B)
    slope_B, _ = to_z0_eps(parametrisation, one_B, jnp.zeros_like(one_B), alpha_B, sigma_B)  # affine in the prediction
    return jnp.minimum(jnp.square(alpha_B / sigma_B), gamma) * jnp.square(slope_B)
