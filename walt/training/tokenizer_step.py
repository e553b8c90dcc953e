"""A training step of the tokenizer: reconstruction of clips."""

from collections.abc import Mapping

import jax
import optax

from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.losses import tokenizer_loss
from walt.tokenizer.pixels import from_uint8
from walt.training.state import State


def make_tokenizer_step(
    tokenizer: Tokenizer, weights: Mapping[str, float], optimizer: optax.GradientTransformation, ema_decay: float
):
    """Returns step(state, batch, key) -> (state, metrics); `batch` holds `video`, uint8 (B, T, H, W, 3)."""

    def step(state: State, batch, key):
        del key  # Reconstruction draws nothing.
        video_BTHWC = from_uint8(batch['video'])

        def loss(params):
            reconstruction_BTHWC, z_BTHWC = tokenizer.apply({'params': params}, video_BTHWC)
            total, terms = tokenizer_loss(weights, reconstruction_BTHWC, video_BTHWC)
            return total, terms | {'latent_std': z_BTHWC.std()}

        (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        metrics = {'loss': total, 'gradient_norm': optax.global_norm(gradients), **terms}
        return state.apply(gradients, optimizer, ema_decay), metrics

    return step
