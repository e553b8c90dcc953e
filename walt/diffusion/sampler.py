"""The sampling loop: from noise at t = 1 to latents at t = 0, one pass of the denoiser a turn.

    z, z~ = noise, 0
    for t, s in visits 1, ..., 0:
        z0, eps = prediction at (z, t) given z~
        z, z~   = what the stepper makes of them at s, z0

The stepper says which times to visit: DDIM those of the schedule, once each, Heun most of them twice. A loop over
passes, not over steps, has the network once in the compiled program and runs it exactly as often as needed.

z~ is the self-conditioning estimate (W.A.L.T, section 4.3): the z0 of the pass before, zeros at first. With one pass a
step that is the step before; Heun's second pass is given the z0 of the first, and the next step the z0 of the second.

The paper samples with DDIM in 50 steps and does not say at which times; we take the trailing ones, since under zero
terminal SNR sampling has to start at t = 1 (arXiv:2305.08891, section 3.3).

Every example has a key of its own, so a clip is made by (seed, index) and not by the batch that it was made in:

    key_B = stream(seed, 'clip', index_B)
    z0 = sample(denoise, draw_noise(key_B, shape), cond, key_B=key_B, ...)

What is known of z0 beforehand, such as given frames, is put in its place in every prediction by `project`, and eps
follows from z_t, so that those latents run straight to what they are known to be. Steps and estimates see z0 projected.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from walt.diffusion.prediction import Cond, Denoise, Parametrisation, check, to_z0_eps
from walt.diffusion.schedules import Schedule
from walt.diffusion.steppers import Pass, Stepper
from walt.diffusion.variance import split_prediction
from walt.randomness import normal, stream


def draw_noise(key_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws the noise that sampling starts from: (B, *shape) float32, `shape` that of one example."""
    return normal(stream(key_B, 'noise'), shape)


def passes(schedule: Schedule, stepper: Stepper, steps: int, last_time: float | None = None) -> int:
    """How often `sample` runs the denoiser."""
    return len(stepper.visits(schedule.sampling_times(steps, last_time))) - 1


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
    project: Callable[[jax.Array], jax.Array] | None = None,
    last_time: float | None = None,
) -> jax.Array:
    """Returns samples of z0, (B, ...) float32.

    Args:
        denoise: the model, or a guided one.
        noise: (B, ...) standard normal numbers.
        cond: the conditions of the examples, without `estimate`.
        schedule: the schedule that the model was trained with.
        stepper: the way from one time to the next.
        steps: how many times the schedule is divided into; `passes` says how often the network runs.
        key_B: the key of every example, for steppers that draw.
        self_conditioning: whether the model is given its last estimate; otherwise zeros at every step.
        parametrisation: what the model predicts.
        project: z0 -> z0, both (B, ...) float32, applied to every prediction; the samples are the last one.
        last_time: the last time before 0, those before evenly spaced from 1; 1 / steps by default. 1 / K respaces a
            schedule of K steps as IDDPM and DiT do.

    Raises:
        ValueError: for a parametrisation that the schedule cannot have, more steps than the schedule has, or a number
            of keys other than the number of examples.
    """
    check(parametrisation, schedule)
    if key_B.shape != noise.shape[:1]:
        raise ValueError(f'one key an example: keys are {key_B.shape}, noise is {noise.shape}')
    times = jnp.asarray(stepper.visits(schedule.sampling_times(steps, last_time)))
    alphas, sigmas = schedule.alpha_sigma(times)

    def turn(carry: tuple[jax.Array, Pass], visit):
        z, before = carry
        i, t, at_t, at_s = visit
        estimate = before.z0 if self_conditioning else jnp.zeros_like(z)
        prediction, share = split_prediction(denoise(z, jnp.full(len(z), t), cond | {'estimate': estimate}), z)
        z0, eps = to_z0_eps(parametrisation, prediction, z, *at_t)
        if project:
            z0, eps = to_z0_eps('z0', project(z0), z, *at_t)
        here = Pass(z, z0, eps, at_t, share)
        return (stepper(here, before, at_s, stream(key_B, 'sampler', i)), here._replace(share=None)), None

    z = noise.astype(jnp.float32)
    start = Pass(z, jnp.zeros_like(z), z, (jnp.zeros(()), jnp.ones(())))
    visits = (jnp.arange(len(times) - 1), times[:-1], (alphas[:-1], sigmas[:-1]), (alphas[1:], sigmas[1:]))
    (z, _), _ = jax.lax.scan(turn, (z, start), visits)
    return z
