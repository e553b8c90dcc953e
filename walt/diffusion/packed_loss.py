"""The training loss on packed rows: every clip of a row is noised to a time of its own.

    L = mean over clips e of mean over its tokens i of || f(z_t; z~, c, t_e)_i - y_i ||^2

as if each clip were alone in its batch: its time, its noise and whether it is given its own estimate are drawn from the
key of the clip, the noise of a token from that key and from its place in the clip. So a clip has the same loss in every
row, beside whatever neighbours. Padding is in no mean.

A mean over clips says that a picture of 16 tokens counts as much as a video of 1000, which is what a mean over examples
has always meant; a mean over tokens that each token counts the same, so that long clips count for more.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.prediction import Cond, Denoise
from walt.diffusion.sampler import draw_noise
from walt.randomness import stream
from walt.tokens import counts, members

# The time of padding, where no prediction is a division by zero.
_PADDING = 0.5


@dataclasses.dataclass(frozen=True)
class PackedLoss(DenoisingLoss):
    """`DenoisingLoss` by clip of packed rows (`walt.tokens`).

    Attributes:
        average: what the mean over a batch gives equal weight: 'clips', or 'tokens'.
    """

    average: Literal['clips', 'tokens'] = 'clips'

    def __post_init__(self):
        super().__post_init__()
        if self.average not in ('clips', 'tokens'):
            raise ValueError(f"average is over 'clips' or 'tokens', not {self.average!r}")

    def __call__(
        self, denoise: Denoise, z0: jax.Array, cond: Cond, key_B: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of every clip, (B, E) float32, 0 where there is none, and what was drawn for it.

        Args:
            denoise: the model, (z_BLC, t_BL, cond) -> prediction_BLC.
            z0: (B, L, C) clean tokens.
            cond: of the clips, with `segment`, `place` and `size`; without `estimate`.
            key_B: (B, E), a key for every clip.
        """
        segment_BL, place_BL3, size_BE3 = (cond[name] for name in ('segment', 'place', 'size'))
        drawn = {name: x.reshape(key_B.shape) for name, x in self.draw(key_B.reshape(-1)).items()}
        there_BL = segment_BL > 0
        of_tokens = {name: to_tokens(x_BE, segment_BL) for name, x_BE in drawn.items()}
        of_tokens['t_B'] = jnp.where(there_BL, of_tokens['t_B'], _PADDING)
        eps = token_noise(token_keys(key_B, segment_BL, place_BL3, size_BE3), segment_BL, z0.shape[-1])
        loss_BL = self.at(denoise, z0, cond, eps, **of_tokens)
        member_BLE = members(segment_BL, size_BE3.shape[1])
        total_BE = jnp.where(member_BLE, loss_BL[..., None], 0).sum(1)
        return total_BE / jnp.maximum(member_BLE.sum(1), 1), drawn

    def weights(self, cond: Cond) -> jax.Array:
        """(B, E) float32: what a clip counts in the mean over a batch; 0 where there is none."""
        tokens_BE = counts(cond['segment'], cond['size'].shape[1])
        return (tokens_BE if self.average == 'tokens' else tokens_BE > 0).astype(jnp.float32)


def to_tokens(x_BE: jax.Array, segment_BL: jax.Array) -> jax.Array:
    """(B, E) of clips, numbers or keys, -> (B, L) of their tokens; padding has what the first clip has.

    A gather, as no product can be made of keys, and without a gradient; layers have `denoiser.blocks.Packed.to_tokens`.
    """
    return x_BE[jnp.arange(len(x_BE))[:, None], jnp.maximum(segment_BL - 1, 0)]


def token_keys(key_BE: jax.Array, segment_BL, place_BL3, size_BE3) -> jax.Array:
    """(B, L): the key of every token, from its clip's key and its place in the clip, whatever row it is in."""
    height_BL, width_BL = (to_tokens(size_BE3[..., axis], segment_BL) for axis in (1, 2))
    t, h, w = (place_BL3[..., axis] for axis in range(3))
    return stream(to_tokens(key_BE, segment_BL), 'token', (t * height_BL + h) * width_BL + w)


def token_noise(key_BL: jax.Array, segment_BL, channels: int) -> jax.Array:
    """(B, L, channels) standard normal numbers, a token's from its key; zeros at padding."""
    eps_BLC = draw_noise(key_BL.reshape(-1), (channels,)).reshape(*segment_BL.shape, channels)
    return jnp.where(segment_BL[..., None] > 0, eps_BLC, 0)
