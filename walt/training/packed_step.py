"""A training step on packed rows: tokens of clips, each with a time, a noise and a label of its own.

What is drawn for a clip follows from the step and from the clip's `index`, not from the row and the place that packing
gave it. Micro-batches need not have as many clips each: all are weighed by those of the whole batch,

    loss = sum over clips of w_e L_e / sum over clips of w_e,    w_e of `PackedLoss.weights`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from walt.denoiser.conditions import bound, check_self_conditioning, without
from walt.denoiser.packed import PackedDenoiser
from walt.diffusion.packed_loss import PackedLoss
from walt.randomness import bernoulli, stream
from walt.tokenizer.frozen import FrozenTokenizer, Pixels
from walt.training.accumulation import mean_over_parts
from walt.training.conditions import Conditioning
from walt.training.denoiser_step import TIME_BINS
from walt.training.guard import keep_finite
from walt.training.metrics import by_bin
from walt.training.state import State


def make_packed_step(
    denoiser: PackedDenoiser,
    loss: PackedLoss,
    optimizer: optax.GradientTransformation,
    ema_decay: float | Sequence[float],
    conditioning: Conditioning,
    accumulation: int = 1,
):
    """Returns step(state, frozen, batch, key) -> (state, metrics); `batch` has the names of `walt.tokens`, with `label`
    and `index`. Of `conditioning` only `dropout` has a meaning here.

    The metric `loss_by_time` is as that of `make_denoiser_step`; `filled` is the share of the tokens that are of clips,
    `clips` is their number.

    Raises:
        ValueError: if the loss is not one of packed rows, or conditions on estimates that the denoiser does not take.
    """
    if not isinstance(loss, PackedLoss):
        raise ValueError(f"the loss of packed rows is named 'packed', this is a {type(loss).__name__}")
    check_self_conditioning(denoiser, loss.self_conditioning)

    def step(state: State, frozen, batch, key):
        whole = loss.weights(batch).sum()

        def gradients_and_metrics(micro_batch):
            cond = _conditions(denoiser, micro_batch)
            key_BE = stream(key, 'clip', micro_batch['index'])
            if conditioning.dropout:
                dropped_BE = bernoulli(stream(key_BE, 'dropout').reshape(-1), conditioning.dropout)
                dropped_BE = dropped_BE.reshape(key_BE.shape)
                cond = without(cond, ('label',), classes=denoiser.classes, rows_B=dropped_BE)
            z = to_latents(frozen, micro_batch['tokens'])
            weight_BE = loss.weights(micro_batch)

            def mean_loss(params):
                loss_BE, drawn = loss(bound(denoiser, params), z, cond, key_BE)
                mean = (loss_BE * weight_BE).sum() / whole * accumulation
                binned = by_bin(loss_BE.reshape(-1), drawn['t_B'].reshape(-1), TIME_BINS, weight_BE.reshape(-1) > 0)
                return mean, {'loss': mean, 'loss_by_time': binned}

            return jax.grad(mean_loss, has_aux=True)(state.params)

        gradients, metrics = mean_over_parts(gradients_and_metrics, batch, accumulation)
        metrics['gradient_norm'] = optax.global_norm(gradients)
        metrics['filled'] = (batch['segment'] > 0).mean()
        metrics['clips'] = (batch['size'][..., 0] > 0).sum().astype(jnp.float32)
        return keep_finite(state, state.apply(gradients, optimizer, ema_decay), metrics, gradients)

    return step


def make_packed_validation_loss(denoiser: PackedDenoiser, loss: PackedLoss, conditioning: Conditioning):
    """Returns f(params, frozen, batch, key) -> mean loss, in which no label is dropped."""

    def validation_loss(params, frozen, batch, key):
        key_BE = stream(key, 'clip', batch['index'])
        z = to_latents(frozen, batch['tokens'])
        loss_BE, _ = loss(bound(denoiser, params), z, _conditions(denoiser, batch), key_BE)
        weight_BE = loss.weights(batch)
        return (loss_BE * weight_BE).sum() / weight_BE.sum()

    return validation_loss


def to_latents(frozen: FrozenTokenizer | Pixels, tokens_BLC):
    """Tokens of a batch as the denoiser sees them: normalised latents as they are, pixels (uint8) as numbers."""
    return frozen.encode(tokens_BLC) if tokens_BLC.dtype == jnp.uint8 else tokens_BLC


def _conditions(denoiser: PackedDenoiser, batch):
    return {name: batch[name] for name in denoiser.conditions if name in batch}
