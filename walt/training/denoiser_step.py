"""A training step of the denoiser: clips or latents -> normalised latents and conditions -> denoising loss."""

import dataclasses
from collections.abc import Sequence

import jax
import optax

from walt.denoiser.conditions import Denoiser, bound, check_self_conditioning
from walt.diffusion.loss import DenoisingLoss
from walt.randomness import row_keys, stream
from walt.tokenizer.frozen import FrozenTokenizer
from walt.training.accumulation import mean_over_parts, rows_of
from walt.training.conditions import Conditioning, keys_of_rows, latent_rows
from walt.training.guard import keep_finite
from walt.training.metrics import by_bin
from walt.training.state import State

TIME_BINS = 10


def make_denoiser_step(
    denoiser: Denoiser,
    loss: DenoisingLoss,
    optimizer: optax.GradientTransformation,
    ema_decay: float | Sequence[float],
    conditioning: Conditioning,
    accumulation: int = 1,
):
    """Returns step(state, frozen, batch, key) -> (state, metrics); the tokenizer `frozen` has no gradient.

    `accumulation` is the number of micro-batches that a step takes its gradient from. The metric `loss_by_time` is the
    loss of the rows by their diffusion time, in `TIME_BINS` equal parts of [0, 1] (`metrics.by_bin`).

    Raises:
        ValueError: if the loss conditions on estimates that the denoiser does not take.
    """
    check_self_conditioning(denoiser, loss.self_conditioning)

    def step(state: State, frozen: FrozenTokenizer, batch, key):
        def gradients_and_metrics(micro_batch):
            batch, key_B = micro_batch
            rows = latent_rows(frozen, batch, denoiser)
            key_R = keys_of_rows(key_B, len(rows['z']))
            cond = conditioning(denoiser, rows, state.measured, stream(key_R, 'conditioning'))

            def mean_loss(params):
                loss_R, drawn = loss(bound(denoiser, params), rows['z'], cond, key_R)
                metrics = {'loss': loss_R.mean(), 'loss_by_time': by_bin(loss_R, drawn['t_B'], TIME_BINS)}
                if 'image' in rows:
                    image_R = rows['image']
                    metrics |= {'loss_images': loss_R.mean(where=image_R), 'loss_clips': loss_R.mean(where=~image_R)}
                return metrics['loss'], metrics

            return jax.grad(mean_loss, has_aux=True)(state.params)

        micro_batches = batch, row_keys(key, rows_of(batch))
        gradients, metrics = mean_over_parts(gradients_and_metrics, micro_batches, accumulation)
        metrics['gradient_norm'] = optax.global_norm(gradients)
        return keep_finite(state, state.apply(gradients, optimizer, ema_decay), metrics, gradients)

    return step


def make_validation_loss(denoiser: Denoiser, loss: DenoisingLoss, conditioning: Conditioning):
    """Returns f(params, frozen, batch, key) -> mean loss, in which no label and no text is dropped."""
    conditioning = dataclasses.replace(conditioning, dropout=0.0)

    def validation_loss(params, frozen: FrozenTokenizer, batch, key):
        rows = latent_rows(frozen, batch, denoiser)
        key_R = keys_of_rows(row_keys(key, rows_of(batch)), len(rows['z']))
        cond = conditioning(denoiser, rows, None, stream(key_R, 'conditioning'))
        loss_R, _ = loss(bound(denoiser, params), rows['z'], cond, key_R)
        return loss_R.mean()

    return validation_loss
