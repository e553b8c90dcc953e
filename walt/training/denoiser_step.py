"""A training step of the denoiser: clips or latents -> normalised latents -> denoising loss."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from walt.denoiser.walt import Walt
from walt.diffusion.loss import DenoisingLoss
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer
from walt.training.state import State


def normalised_latents(frozen: FrozenTokenizer, batch):
    """`batch` holds normalised latents `z`, encoded before, or uint8 `video`, encoded here."""
    return batch['z'] if 'z' in batch else frozen.encode(batch['video'])


def drop_labels(label_B, null: int, probability: float, key):
    """Replaces labels by the null class at random, which trains the unconditional half of guidance."""
    dropped_B = jax.random.bernoulli(key, probability, label_B.shape)
    return jnp.where(dropped_B, null, label_B)


def make_denoiser_step(
    denoiser: Walt,
    loss: DenoisingLoss,
    optimizer: optax.GradientTransformation,
    ema_decay: float | Sequence[float],
    label_dropout: float,
):
    """Returns step(state, frozen, batch, key) -> (state, metrics); the tokenizer `frozen` has no gradient.

    Raises:
        ValueError: if `label_dropout` is no probability.
    """
    if not 0 <= label_dropout <= 1:
        raise ValueError(f'label_dropout is a probability in [0, 1], not {label_dropout}')

    def step(state: State, frozen: FrozenTokenizer, batch, key):
        z0 = normalised_latents(frozen, batch)
        label_B = drop_labels(batch['label'], denoiser.classes, label_dropout, stream(key, 'label_dropout'))

        def mean_loss(params):
            def denoise(z, t_B, cond):
                return denoiser.apply({'params': params}, z, t_B, cond)

            loss_B, _ = loss(denoise, z0, {'label': label_B}, key)
            return loss_B.mean()

        value, gradients = jax.value_and_grad(mean_loss)(state.params)
        metrics = {'loss': value, 'gradient_norm': optax.global_norm(gradients)}
        return state.apply(gradients, optimizer, ema_decay), metrics

    return step


def make_validation_loss(denoiser: Walt, loss: DenoisingLoss):
    """Returns f(params, frozen, batch, key) -> mean loss, without label dropout."""

    def validation_loss(params, frozen: FrozenTokenizer, batch, key):
        def denoise(z, t_B, cond):
            return denoiser.apply({'params': params}, z, t_B, cond)

        loss_B, _ = loss(denoise, normalised_latents(frozen, batch), {'label': batch['label']}, key)
        return loss_B.mean()

    return validation_loss
