"""A training step of the tokenizer, and of the discriminator against it: both gradients from one forward pass."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from walt.randomness import row_keys, stream
from walt.tokenizer.frozen import LatentNorm
from walt.tokenizer.objective import Logits, Losses, Objective
from walt.tokenizer.pixels import from_uint8
from walt.training.accumulation import mean_over_parts
from walt.training.guard import keep_finite
from walt.training.optimizer import only
from walt.training.state import Adversary, State, create, moving_average

LOGIT_DECAY = 0.999
"""Of the averages that LeCam regularises against (MAGVIT-v2, appendix A.2)."""


def create_tokenizer_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    video_shape: Sequence[int],
    ema_decay: float | Sequence[float] = 0.0,
) -> tuple[State, State]:
    """A new state and its shardings, as `state.create`, for clips of `video_shape` (T, H, W, 3)."""
    clip = jnp.zeros((1, *video_shape))

    def adversary(key):
        params = objective.discriminator.init(key, clip)['params']
        return Adversary(params, optimizer.init(params), Logits.zero())

    return create(
        lambda key: objective.tokenizer.init(key, clip),
        _of_tokenizer(objective, optimizer),
        mesh,
        key,
        LatentNorm.identity(objective.tokenizer.latent_channels),
        adversary if objective.discriminator else None,
        ema_decay,
    )


def _of_tokenizer(objective: Objective, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    return only('decoder', optimizer) if objective.freeze_encoder else optimizer


def make_tokenizer_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decay: float | Sequence[float],
    accumulation: int = 1,
):
    """Returns step(state, perceptual, batch, key) -> (state, metrics).

    `perceptual` is the feature network's distance, or None; `batch` holds `video`, uint8 (B, T, H, W, 3). The optimizer
    is the same for both sides; `State.adversary` holds the discriminator's, and is None without one. `accumulation` is
    the number of micro-batches that a step takes its gradients from.
    """
    own_optimizer = _of_tokenizer(objective, optimizer)

    def step(state: State, perceptual, batch, key):
        opposed = state.adversary

        def gradients_and_metrics(micro_batch):
            """Gradients of both sides, the second None without a discriminator, and metrics."""
            batch, key_B = micro_batch
            video_BTHWC, bottleneck_B = from_uint8(batch['video']), stream(key_B, 'bottleneck')

            def losses(params, discriminator_params):
                averages = opposed and opposed.averages
                return objective(
                    params, discriminator_params, averages, perceptual, video_BTHWC, bottleneck_B, state.step
                )

            value, pull_back, metrics = jax.vjp(losses, state.params, opposed and opposed.params, has_aux=True)
            metrics |= {'loss': value.tokenizer}
            if opposed is None:
                return *pull_back(Losses(1.0)), metrics
            # Each side takes half of a pull-back, of which the compiler drops the other half.
            return pull_back(Losses(1.0, 0.0))[0], pull_back(Losses(0.0, 1.0))[1], metrics

        micro_batches = {'video': batch['video']}, row_keys(key, len(batch['video']))
        gradients, opposed_gradients, metrics = mean_over_parts(gradients_and_metrics, micro_batches, accumulation)
        metrics |= {'gradient_norm': optax.global_norm(gradients)}
        if opposed is not None:
            metrics |= {'gradient_norm_discriminator': optax.global_norm(opposed_gradients)}
            updates, opt_state = optimizer.update(opposed_gradients, opposed.opt_state, opposed.params)
            logits = Logits(metrics['logit_real'], metrics['logit_fake'])
            opposed = Adversary(
                params=optax.apply_updates(opposed.params, updates),
                opt_state=opt_state,
                averages=moving_average(opposed.averages, logits, LOGIT_DECAY, state.step),
            )
        after = state.apply(gradients, own_optimizer, ema_decay).replace(adversary=opposed)
        return keep_finite(state, after, metrics, gradients)

    return step
