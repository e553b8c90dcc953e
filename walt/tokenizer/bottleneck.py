"""What stands between encoder and decoder: nothing, a Gaussian, or the discrete codes of the tokenizer's relatives.

    none   z = h                           real-valued: W.A.L.T (section 4.1), the default
    kl     z = mean + std eps              term `kl`, against a unit Gaussian
    vq     z = e_k, k = argmin |h - e_k|   terms `codebook`, `commitment`, `coverage` (VQ-VAE, arXiv:1711.00937)
    lfq    z = sign(h)                     terms `commitment`, `entropy` (MAGVIT-v2, arXiv:2310.05737, section 3.1)
    fsq    z = round(bounded h)            no term (finite scalar quantisation, arXiv:2309.15505)

Each acts at every position of the latent by itself, so it changes nothing about causality. The discrete ones have the
gradient of the identity: z = h + stop_gradient(z - h).

A bottleneck is a module with `terms`, the names of its losses; `features(c)`, how many channels it takes from the
encoder to make c latent channels; `size(c)`, how many codes there are (0: not discrete); and a call h, key_B ->
`Bottled`, with a key for every clip. Without keys nothing is drawn, as in encoding for the denoiser.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.nn import initializers
from jax.scipy.special import entr

from walt.precision import PARAM_DTYPE


@struct.dataclass
class Bottled:
    """`z_BTHWC` for the decoder; `terms`, scalar losses by name, not weighed; `codes_BTHW`, integers, or None."""

    z_BTHWC: jax.Array
    terms: dict[str, jax.Array]
    codes_BTHW: Any = None


def _straight_through(h, z):
    return h + jax.lax.stop_gradient(z - h)


class Continuous(nn.Module):
    """z = h."""

    terms: ClassVar[tuple[str, ...]] = ()

    def features(self, latent_channels: int) -> int:
        return latent_channels

    def size(self, latent_channels: int) -> int:
        return 0

    def __call__(self, h_BTHWC, key_B=None) -> Bottled:
        return Bottled(h_BTHWC, {})


class Kl(nn.Module):
    """A Gaussian for every number of the latent; its mean when nothing is drawn.

    `kl` is the mean over numbers of (mean^2 + std^2 - 1 - log std^2) / 2, in nats.
    """

    terms: ClassVar[tuple[str, ...]] = ('kl',)

    def features(self, latent_channels: int) -> int:
        return 2 * latent_channels

    def size(self, latent_channels: int) -> int:
        return 0

    def __call__(self, h_BTHWC, key_B=None) -> Bottled:
        mean, log_variance = jnp.split(h_BTHWC, 2, axis=-1)
        log_variance = jnp.clip(log_variance, -30, 20)
        kl = (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean() / 2
        if key_B is None:
            return Bottled(mean, {'kl': kl})
        eps = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(key_B)
        return Bottled(mean + jnp.exp(log_variance / 2) * eps, {'kl': kl})


# Of new codes before they are put on the sphere.
_CODE_STD = 0.1


class Vq(nn.Module):
    """The nearest of `codes` learned vectors on a sphere of radius sqrt(c); h is put on it too (cosine distance).

    codebook    |sg h - e|^2, which moves a code to what it stands for
    commitment  |h - sg e|^2
    coverage    |e - sg h|^2 for every code and the h nearest to it, so that a code that nothing chooses comes back to
                the data: a cure for dead codes that needs no state, in place of VideoGPT's random restarts

    Codes start short, so that Adam, whose steps have the same length whatever the gradient, turns them far: a code of
    length r turns by about (learning rate) sqrt(c) / r in a step, and those that start far from the data get there.
    """

    codes: int = 1024

    terms: ClassVar[tuple[str, ...]] = ('codebook', 'commitment', 'coverage')

    def features(self, latent_channels: int) -> int:
        return latent_channels

    def size(self, latent_channels: int) -> int:
        return self.codes

    @nn.compact
    def __call__(self, h_BTHWC, key_B=None) -> Bottled:
        width = h_BTHWC.shape[-1]
        init = nn.with_logical_partitioning(initializers.normal(_CODE_STD), ('codes', 'latent'))
        codebook_KC = self.param('codebook', init, (self.codes, width), PARAM_DTYPE)

        def on_sphere(x):
            return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)

        codebook_KC, h_BTHWC = on_sphere(codebook_KC), on_sphere(h_BTHWC)
        h_MC = h_BTHWC.reshape(-1, width)
        similarity_MK = jax.lax.stop_gradient(h_MC @ codebook_KC.T)
        chosen_M, nearest_K = similarity_MK.argmax(1), similarity_MK.argmax(0)
        z_BTHWC = codebook_KC[chosen_M].reshape(h_BTHWC.shape)
        sg = jax.lax.stop_gradient
        terms = {
            'codebook': jnp.square(sg(h_BTHWC) - z_BTHWC).mean(),
            'commitment': jnp.square(h_BTHWC - sg(z_BTHWC)).mean(),
            'coverage': jnp.square(codebook_KC - sg(h_MC[nearest_K])).mean(),
        }
        return Bottled(_straight_through(h_BTHWC, z_BTHWC), terms, chosen_M.reshape(h_BTHWC.shape[:-1]))


class Lfq(nn.Module):
    """One bit a channel: c channels are 2^c codes with no table to look them up in.

    With q(code | h) proportional to exp(-|h - code|^2 / temperature), which is a product over bits,

        entropy = E_h H(q) - H(E_h q)          each h sure of its code, all codes in use

    The first part is exact; the second is summed over groups of `group_bits` bits, an upper bound of the joint one.
    """

    temperature: float = 0.01
    group_bits: int = 9

    terms: ClassVar[tuple[str, ...]] = ('commitment', 'entropy')

    def features(self, latent_channels: int) -> int:
        return latent_channels

    def size(self, latent_channels: int) -> int:
        return 2**latent_channels

    def __call__(self, h_BTHWC, key_B=None) -> Bottled:
        bits_BTHWC = h_BTHWC > 0
        z_BTHWC = jnp.where(bits_BTHWC, 1.0, -1.0)
        codes_BTHW = (bits_BTHWC * 2 ** jnp.arange(h_BTHWC.shape[-1])).sum(-1)
        terms = {'commitment': jnp.square(h_BTHWC - z_BTHWC).mean(), 'entropy': self._entropy(h_BTHWC)}
        return Bottled(_straight_through(h_BTHWC, z_BTHWC), terms, codes_BTHW)

    def _entropy(self, h_BTHWC):
        h_MC = h_BTHWC.reshape(-1, h_BTHWC.shape[-1])
        logit_MC = 4 * h_MC / self.temperature  # |h + 1|^2 - |h - 1|^2 = 4 h
        one_MC = jax.nn.sigmoid(logit_MC)
        of_each = (jax.nn.softplus(logit_MC) - logit_MC * one_MC).sum(-1).mean()
        of_all = 0.0
        for first in range(0, h_MC.shape[-1], self.group_bits):
            q_MK = jnp.ones((h_MC.shape[0], 1))
            for one_M in one_MC[:, first : first + self.group_bits].T:
                q_MK = jnp.concatenate([q_MK * (1 - one_M[:, None]), q_MK * one_M[:, None]], axis=-1)
            of_all += entr(q_MK.mean(0) + 1e-9).sum()  # whose gradient at 0 is not finite
        return of_each - of_all


class Fsq(nn.Module):
    """Every channel rounded to one of `levels[i]` values between -1 and 1; a sigmoid keeps it in between."""

    levels: Sequence[int] = (8, 8, 8, 5, 5, 5)

    terms: ClassVar[tuple[str, ...]] = ()

    def features(self, latent_channels: int) -> int:
        if len(self.levels) != latent_channels or min(self.levels) < 2:
            raise ValueError(f'levels {tuple(self.levels)} must be 2 or more for each of {latent_channels} channels')
        return latent_channels

    def size(self, latent_channels: int) -> int:
        return math.prod(self.levels)

    def __call__(self, h_BTHWC, key_B=None) -> Bottled:
        top_C = jnp.array(self.levels) - 1
        bounded = top_C * jax.nn.sigmoid(h_BTHWC)
        steps = jnp.round(bounded)
        radix_C = jnp.array([math.prod(self.levels[:i]) for i in range(len(self.levels))])
        codes_BTHW = (steps.astype(jnp.int32) * radix_C).sum(-1)
        return Bottled(2 * _straight_through(bounded, steps) / top_C - 1, {}, codes_BTHW)


def code_counts(codes, size: int):
    """How often each of `size` codes occurs, int (size,)."""
    return jnp.bincount(codes.ravel(), length=size)


def code_metrics(counts_K) -> dict[str, jax.Array]:
    """`code_use`, the share of codes that occur at all, and `perplexity`, exp of the entropy of how often they do.

    Both are bounded by the number of positions counted, so compare them only at equal counts.
    """
    share_K = counts_K / counts_K.sum()
    return {'code_use': (counts_K > 0).mean(), 'perplexity': jnp.exp(entr(share_K).sum())}
