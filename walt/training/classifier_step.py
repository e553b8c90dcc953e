"""A training step of the classifier: packed rows -> logits -> cross-entropy, a mean over the clips of the batch.

Of noised inputs every clip has a time and noise of its own:

    z_t = alpha(t_e) z_0 + sigma(t_e) eps        for all tokens of clip e, t_e = u^power, u drawn by the schedule

so that the classifier learns p(class | z_t, t), which guides the sampling of a diffusion model. At late times there is
next to nothing to be read, and what those clips add to a gradient is noise: a power above 1 has fewer of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from walt import tokens
from walt.denoiser.blocks import Packed
from walt.diffusion.schedules import Schedule
from walt.navit.classifier import Classifier, centred
from walt.navit.navit import Navit
from walt.randomness import normal, row_keys, stream
from walt.training.accumulation import mean_over_parts, rows_of
from walt.training.guard import keep_finite
from walt.training.state import State


@dataclasses.dataclass(frozen=True)
class Noising:
    """The noise on what a classifier is trained on: `schedule`, at times that it draws, taken to a `power`."""

    schedule: Schedule
    power: float = 1.0

    def __post_init__(self):
        if self.power <= 0:
            raise ValueError(f'power is positive, not {self.power}')

    def draw_times(self, key_B: jax.Array) -> jax.Array:
        """t_B, float32."""
        return self.schedule.draw_times(key_B) ** self.power


def make_classifier_step(
    module: Navit,
    noising: Noising | None,
    optimizer: optax.GradientTransformation,
    ema_decay: float | Sequence[float],
    accumulation: int = 1,
):
    """Returns step(state, None, batch, key) -> (state, metrics); `batch` is packed rows with `label` (B, E).

    Metrics are `loss`, `accuracy`, `gradient_norm` and those of `tokens.statistics`.

    Args:
        noising: of the inputs; None for clean ones.
        accumulation: the micro-batches that a step takes its gradient from.
    """

    def step(state: State, _, batch, key):
        clips_a_part = present(batch).sum() / accumulation

        def gradients_and_metrics(micro_batch):
            batch, key_B = micro_batch

            def mean_loss(params):
                sums = examine(Classifier(module, params), noising, batch, key_B)
                return sums['loss'] / clips_a_part, {
                    'loss': sums['loss'] / clips_a_part,
                    'accuracy': sums['right'] / clips_a_part,
                }

            return jax.grad(mean_loss, has_aux=True)(state.params)

        micro_batches = batch, row_keys(key, rows_of(batch))
        gradients, metrics = mean_over_parts(gradients_and_metrics, micro_batches, accumulation)
        metrics |= {'gradient_norm': optax.global_norm(gradients)} | tokens.statistics(batch)
        return keep_finite(state, state.apply(gradients, optimizer, ema_decay), metrics, gradients)

    return step


def make_classifier_validation(module: Navit, noising: Noising | None):
    """Returns f(params, batch, key) -> sums over the clips of a batch: `clips`, `loss`, `right`, and of a classifier of
    noised inputs also `right_clean`, at time 0."""

    def validation(params, batch, key):
        classifier = Classifier(module, params)
        sums = examine(classifier, noising, batch, row_keys(key, rows_of(batch)))
        if noising is not None:
            sums['right_clean'] = _sums(classifier.logits(batch), batch)['right']
        return sums | {'clips': present(batch).sum()}

    return validation


def present(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Which clips of the rows there are, bool (B, E)."""
    return batch['size'].all(-1)


def examine(classifier: Classifier, noising: Noising | None, batch, key_B) -> dict[str, jax.Array]:
    """Sums over clips of `loss` and `right`, of inputs with noise."""
    if noising is None:
        return _sums(classifier.logits(batch), batch)
    key_BE = stream(key_B[:, None], 'clip', jnp.arange(batch['size'].shape[1]))
    t_BE = noising.draw_times(stream(key_BE, 'time').ravel()).reshape(key_BE.shape)
    eps_BLC = normal(stream(key_B, 'noise'), batch['tokens'].shape[1:])
    row = Packed(batch['segment'], batch['place'], batch['size'])
    alpha_BL1, sigma_BL1 = (row.to_tokens(level_BE)[..., None] for level_BE in noising.schedule.alpha_sigma(t_BE))
    z_BLC = alpha_BL1 * centred(batch['tokens']) + sigma_BL1 * eps_BLC
    return _sums(classifier.logits(dict(batch) | {'tokens': z_BLC}, t_BE), batch)


def _sums(logits_BEC, batch) -> dict[str, jax.Array]:
    there_BE = present(batch)
    loss_BE = optax.softmax_cross_entropy_with_integer_labels(logits_BEC, batch['label'])
    right_BE = logits_BEC.argmax(-1) == batch['label']
    return {
        'loss': jnp.where(there_BE, loss_BE, 0).sum(),
        'right': (right_BE & there_BE).sum().astype(jnp.float32),
    }
