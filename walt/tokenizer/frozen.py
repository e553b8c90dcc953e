"""A trained tokenizer inside another program: uint8 video <-> normalised latents.

The denoiser wants inputs of mean 0 and standard deviation 1 (without, FVD rises from 60.7 to 67.9: W.A.L.T, table 3e).
How the paper normalises is not said; we take mean and standard deviation by channel over training latents, measured
once, frozen, and kept in the tokenizer's checkpoint.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from flax import struct

from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.pixels import from_uint8, to_uint8


@struct.dataclass
class LatentNorm:
    """The affine map between latents and normalised latents, by channel."""

    mean_C: jax.Array
    std_C: jax.Array

    @classmethod
    def identity(cls, channels: int) -> 'LatentNorm':
        """What a tokenizer has before its latents were measured."""
        return cls(jnp.zeros(channels), jnp.ones(channels))

    @classmethod
    def measure(cls, latents: Iterable[jax.Array]) -> 'LatentNorm':
        """From equally large batches of latents (B, T, H, W, C), by mean and mean square."""
        moments = [jnp.stack([z.mean((0, 1, 2, 3)), jnp.square(z).mean((0, 1, 2, 3))]) for z in latents]
        mean_C, square_C = jnp.stack(moments).mean(0)
        return cls(mean_C, jnp.sqrt(jnp.maximum(square_C - jnp.square(mean_C), 1e-12)))

    def normalise(self, z_BTHWC):
        return (z_BTHWC - self.mean_C) / self.std_C

    def denormalise(self, z_BTHWC):
        return z_BTHWC * self.std_C + self.mean_C


@struct.dataclass
class FrozenTokenizer:
    """Module, parameters and normalisation; a pytree, so that it travels into `jit` as an argument."""

    module: Tokenizer = struct.field(pytree_node=False)
    params: dict
    norm: LatentNorm

    def encode(self, video_BTHWC):
        """uint8 pixels -> normalised latents."""
        z_BTHWC = self.module.apply({'params': self.params}, from_uint8(video_BTHWC), method='encode')
        return self.norm.normalise(z_BTHWC)

    def decode(self, z_BTHWC):
        """Normalised latents -> uint8 pixels."""
        return to_uint8(self.module.apply({'params': self.params}, self.norm.denormalise(z_BTHWC), method='decode'))

    def encode_each(self, pictures):
        """uint8 pictures (..., H, W, 3) -> normalised latents (..., h, w, c), each a clip of its own."""
        return _one_by_one(self.encode, pictures)

    def decode_each(self, z):
        """Normalised latents (..., h, w, c) -> uint8 pictures (..., H, W, 3), each a clip of its own."""
        return _one_by_one(self.decode, z)


NO_TOKENIZER = 'none'
"""The `tokenizer_dir` of a denoiser of pixels."""


@struct.dataclass
class Pixels:
    """In the place of a tokenizer where there is none: the latents are the pixels themselves, in [-1, 1]."""

    def encode(self, video):
        """uint8 pixels, or patches of them, -> the same as float32."""
        return 2 * from_uint8(video) - 1

    def decode(self, z):
        """The inverse of `encode`, rounded; beyond [-1, 1] is cut off."""
        return to_uint8((z + 1) / 2)


def _one_by_one(coder: Callable[[jax.Array], jax.Array], x):
    coded_N1HWC = coder(x.reshape(-1, 1, *x.shape[-3:]))
    return coded_N1HWC.reshape(*x.shape[:-3], *coded_N1HWC.shape[2:])
