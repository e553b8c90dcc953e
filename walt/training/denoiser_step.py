"""A training step of the denoiser: clips or latents -> normalised latents and conditions -> denoising loss."""

import dataclasses
from collections.abc import Sequence

import jax
import optax

from walt.denoiser.walt import Walt
from walt.diffusion.loss import DenoisingLoss
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer
from walt.training.conditions import Conditioning, latent_rows
from walt.training.state import State


def make_denoiser_step(
    denoiser: Walt,
    loss: DenoisingLoss,
    optimizer: optax.GradientTransformation,
    ema_decay: float | Sequence[float],
    conditioning: Conditioning,
):
    """Returns step(state, frozen, batch, key) -> (state, metrics); the tokenizer `frozen` has no gradient."""

    def step(state: State, frozen: FrozenTokenizer, batch, key):
        rows = latent_rows(frozen, batch, denoiser)
        cond = conditioning(denoiser, rows, state.measured, stream(key, 'conditioning'))

        def mean_loss(params):
            def denoise(z, t_B, cond):
                return denoiser.apply({'params': params}, z, t_B, cond)

            loss_B, _ = loss(denoise, rows['z'], cond, key)
            return loss_B.mean(), loss_B

        (value, loss_B), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        metrics = {'loss': value, 'gradient_norm': optax.global_norm(gradients)}
        if 'image' in rows:
            image_B = rows['image']
            metrics |= {'loss_images': loss_B.mean(where=image_B), 'loss_clips': loss_B.mean(where=~image_B)}
        return state.apply(gradients, optimizer, ema_decay), metrics

    return step


def make_validation_loss(denoiser: Walt, loss: DenoisingLoss, conditioning: Conditioning):
    """Returns f(params, frozen, batch, key) -> mean loss, in which no label and no text is dropped."""
    conditioning = dataclasses.replace(conditioning, dropout=0.0)

    def validation_loss(params, frozen: FrozenTokenizer, batch, key):
        def denoise(z, t_B, cond):
            return denoiser.apply({'params': params}, z, t_B, cond)

        rows = latent_rows(frozen, batch, denoiser)
        cond = conditioning(denoiser, rows, None, stream(key, 'conditioning'))
        loss_B, _ = loss(denoise, rows['z'], cond, key)
        return loss_B.mean()

    return validation_loss
