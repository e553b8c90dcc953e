"""The sampling loop: from noise at t = 1 to latents at t = 0, one pass of the denoiser a step.

    z, z~ = noise, 0
    for t, s in times 1, ..., 0:
        z0, eps = prediction at (z, t) given z~
        z, z~   = step from t to s, z0

z~ is the self-conditioning estimate (W.A.L.T, section 4.3): the z0 of the step before, zeros at first. The paper
samples with DDIM in 50 steps and does not say at which times; we take the trailing ones, since under zero terminal SNR
sampling has to start at t = 1 (arXiv:2305.08891, section 3.3).

Every example has a key of its own, so a clip is made by (seed, index) and not by the batch that it was made in:

    key_B = stream(seed, 'clip', index_B)
    z0 = sample(denoise, draw_noise(key_B, shape), cond, key_B=key_B, ...)
"""

import jax
import jax.numpy as jnp

from walt.diffusion.prediction import Cond, Denoise, Parametrisation, check, to_z0_eps
from walt.diffusion.schedules import Schedule
from walt.diffusion.steppers import Stepper
from walt.randomness import normal, stream


def draw_noise(key_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws the noise that sampling starts from: (B, *shape) float32, `shape` that of one example."""
    return normal(stream(key_B, 'noise'), shape)


def sample(
    denoise: Denoise,
    noise: jax.Array,
    cond: Cond,
    *,
    schedule: Schedule,
    stepper: Stepper,
    steps: int,
    key_B: jax.Array,
    self_conditioning: bool,
    parametrisation: Parametrisation = 'v',
) -> jax.Array:
    """Returns samples of z0, (B, ...) float32.

    Args:
        denoise: the model, or a guided one.
        noise: (B, ...) standard normal numbers.
        cond: the conditions of the examples, without `estimate`.
        schedule: the schedule that the model was trained with.
        stepper: the way from one time to the next.
        steps: network passes.
        key_B: the key of every example, for steppers that draw.
        self_conditioning: whether the model is given its last estimate; otherwise zeros at every step.
        parametrisation: what the model predicts.

    Raises:
        ValueError: for eps-prediction under zero terminal SNR, more steps than the schedule has, or a number of keys
            other than the number of examples.
    """
    check(parametrisation, schedule)
    if key_B.shape != noise.shape[:1]:
        raise ValueError(f'one key an example: keys are {key_B.shape}, noise is {noise.shape}')
    times = jnp.asarray(schedule.sampling_times(steps))
    alphas, sigmas = schedule.alpha_sigma(times)

    def step(carry, level):
        z, estimate = carry
        i, t, at_t, at_s = level
        prediction = denoise(z, jnp.full(len(z), t), cond | {'estimate': estimate})
        z0, eps = to_z0_eps(parametrisation, prediction, z, *at_t)
        z = stepper(z0, eps, at_t, at_s, stream(key_B, 'sampler', i))
        return (z, z0 if self_conditioning else estimate), None

    z = noise.astype(jnp.float32)
    levels = (jnp.arange(steps), times[:-1], (alphas[:-1], sigmas[:-1]), (alphas[1:], sigmas[1:]))
    (z, _), _ = jax.lax.scan(step, (z, jnp.zeros_like(z)), levels)
    return z
