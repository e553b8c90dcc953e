"""The variance of the reverse process, learned (IDDPM, arXiv:2102.09672, sections 3.1 and 4; so in ADM and DiT).

From t to an earlier s a share 1 - SNR_t / SNR_s of the noise is new, SNR = alpha^2 / sigma^2. With it

    q(z_t | z_s)      has the variance  beta  = sigma_t^2 new                                                       (1)
    q(z_s | z_t, z0)  has the variance  beta~ = sigma_s^2 new,                                                      (2)
                      and the mean      mu(z0, eps) = alpha_s z0 + sigma_s sqrt(1 - new) eps                        (3)

where z_t = alpha_t z0 + sigma_t eps. Of a chain of many steps these are the upper and the lower bound of the variance
that p(z_s | z_t) should have, so C more channels of the prediction, o, say where between them it lies, by logarithms:

    var = beta^share beta~^(1 - share),     share = (o + 1) / 2                                                     (4)

That is any number, though a trained o is hardly outside [-1, 1]. The mean of p is (3) with the predicted z0 and eps.
For neighbours of the schedule's own K steps, (1) is the beta of the schedule. Between steps that are further apart, as
in a sampler of fewer, it is the beta of a schedule of those steps alone, which is what IDDPM calls respacing; the
network is told t all the same, the time that it was trained with.

Nothing in a plain loss has to do with o. It learns from the variational bound, a sum over the K steps

    L_vlb = L_1 + ... + L_K        L_k = KL(q(z_{k-1} | z_k, z0) || p(z_{k-1} | z_k))        L_1 = -log p(z0 | z_1)  (5)

of which a random step gives an unbiased estimate, K L_k. All is in bits for each number of z0. The constant at the
noisy end, KL(q(z_K | z0) || N(0, 1)), is left out. The training loss is

    L_hybrid = L_simple + w L_vlb,     w = 0.001                                                                    (6)

in which L_vlb has no gradient to the mean: the predicted z0 and eps are constants in it.

Two conventions of the published code at the first step, where s = 0 and beta~ = 0. Its logarithm in (4) is that of the
second step. And L_1 is the probability of an 8-bit level of a picture in [-1, 1]: of the interval z0 +- 1 / 255 under
p(z0 | z_1), open where |z0| > 0.999. DiT takes it over to latents, which have neither levels nor bounds, and so do we.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from walt.diffusion.schedules import Discrete, Level, corrupt, over_trailing

HALF_LEVEL = 1 / 255
INSIDE = 0.999
LEAST_PROBABILITY = 1e-12


def split_prediction(prediction: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """What a denoiser returned at z -> (prediction in the shape of z, share of equation (4) or None), float32.

    Raises:
        ValueError: if it has neither the channels of z nor twice as many, naming both shapes.
    """
    channels, expected = z.shape[-1], [z.shape, (*z.shape[:-1], 2 * z.shape[-1])]
    if prediction.shape not in expected:
        raise ValueError(f'the denoiser predicts {prediction.shape} for latents of {z.shape}')
    prediction = prediction.astype(jnp.float32)
    if prediction.shape == z.shape:
        return prediction, None
    return prediction[..., :channels], (prediction[..., channels:] + 1) / 2


def new_noise(at_t: Level, at_s: Level) -> jax.Array:
    """1 - SNR_t / SNR_s, in [0, 1]: in a form that keeps its digits at both ends of a schedule."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t, at_s
    return jnp.maximum(1 - jnp.square(alpha_t * sigma_s / (alpha_s * sigma_t)), 0)


def posterior_mean(z0: jax.Array, eps: jax.Array, at_t: Level, at_s: Level) -> jax.Array:
    """Equation (3), in the shape of `z0`."""
    alpha_s, sigma_s = at_s
    return corrupt(z0, eps, alpha_s, sigma_s * jnp.sqrt(1 - new_noise(at_t, at_s)))


def log_variance(share: jax.Array, at_t: Level, at_s: Level) -> jax.Array:
    """The logarithm of equation (4), in the shape of `share`; s is not the clean end, where beta~ has none."""
    log_new, log_t, log_s = (over_trailing(jnp.log(x), share) for x in (new_noise(at_t, at_s), at_t[1], at_s[1]))
    return log_new + 2 * (share * log_t + (1 - share) * log_s)


def bound_bits(
    schedule: Discrete,
    t_B: jax.Array,
    z0: jax.Array,
    eps: jax.Array,
    predicted_z0: jax.Array,
    predicted_eps: jax.Array,
    share: jax.Array,
) -> jax.Array:
    """An estimate of L_vlb from a step of every example: K L_k, (B,) float32, in bits for each number of z0.

    Args:
        t_B: k / K, the step of every example.
        z0, eps: (B, ...) of which z_t is made.
        predicted_z0, predicted_eps: (B, ...), of the same z_t.
        share: (B, ...) of equation (4).
    """
    step = 1 / schedule.steps
    first_B = t_B < 1.5 * step
    at_t, at_s = schedule.alpha_sigma(t_B), schedule.alpha_sigma(t_B - step)
    # Where the logarithm of beta~ is taken: at the second step for the first.
    floor_t, floor_s = (schedule.alpha_sigma(jnp.maximum(t_B, 2 * step) - back) for back in (0, step))
    log_floor = log_variance(jnp.zeros_like(share), floor_t, floor_s)
    log_beta = over_trailing(jnp.log(new_noise(at_t, at_s)) + 2 * jnp.log(at_t[1]), share)
    found = share * log_beta + (1 - share) * log_floor

    mean, predicted = (posterior_mean(*of, at_t, at_s) for of in ((z0, eps), (predicted_z0, predicted_eps)))
    nats = jnp.where(
        over_trailing(first_B, z0), -_log_level(z0, predicted, found), _kl(mean, log_floor, predicted, found)
    )
    return schedule.steps * nats.mean(tuple(range(1, z0.ndim))) / math.log(2)


def _kl(mean, log_var, other_mean, other_log_var):
    """KL(N(mean, var) || N(other mean, other var)), number by number."""
    ratio = jnp.exp(log_var - other_log_var) + jnp.square(mean - other_mean) * jnp.exp(-other_log_var)
    return (ratio - 1 + other_log_var - log_var) / 2


def _log_level(z0, mean, log_var):
    """The logarithm of the probability of the interval around z0, number by number.

    An interval that is open on neither side is taken on the left of the mean, where the difference keeps its digits.
    """
    scale = jnp.exp(-log_var / 2)
    off, half = (z0 - mean) * scale, HALF_LEVEL * scale
    closed = norm.cdf(half - jnp.abs(off)) - norm.cdf(-half - jnp.abs(off))
    closed = jnp.log(jnp.maximum(closed, LEAST_PROBABILITY))
    return jnp.where(z0 < -INSIDE, norm.logcdf(off + half), jnp.where(z0 > INSIDE, norm.logcdf(half - off), closed))
