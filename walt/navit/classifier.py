"""A trained NaViT inside another program: what it reads in packed rows, and log p(class | noised clip) for guidance."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct

from walt import tokens
from walt.navit.navit import Navit
from walt.nn.conv import Triple


def centred(tokens_BLC):
    """What the network sees: uint8 pixels as float32 in [-1, 1], latents as they are."""
    return tokens_BLC.astype(jnp.float32) / 127.5 - 1 if tokens_BLC.dtype == jnp.uint8 else tokens_BLC


@struct.dataclass
class Classifier:
    """Module and parameters; a pytree, so that it travels into `jit` as an argument."""

    module: Navit = struct.field(pytree_node=False)
    params: dict

    def logits(self, rows, t_BE=None):
        """Packed rows (`walt.tokens`) of pixels or latents -> logits_BEC of every clip.

        Args:
            t_BE: diffusion times of classifiers that know one; clean, 0, by default.
        """
        if t_BE is None and self.module.timed:
            t_BE = jnp.zeros(rows['size'].shape[:2])
        names = ('segment', 'place', 'size')
        return self.module.apply(
            {'params': self.params}, centred(rows['tokens']), *(rows[name] for name in names), t_BE
        )

    def log_prob(self, z_BTHWC, t_B, cond):
        """log p(label | z_t, t), (B,): what classifier guidance takes the gradient of by z_t (`LogProb`).

        Args:
            z_BTHWC: noised clips: normalised latents, or pixels in [-1, 1], as the classifier was trained on.
            t_B: their diffusion times.
            cond: with `label`, (B,). Of the null class, `classes`, nothing is known: 0.

        Raises:
            ValueError: if the classifier was not trained on noised inputs, or patches do not tile the clips.
        """
        return self.log_prob_of_rows(self._rows(z_BTHWC, cond), t_B[:, None])[:, 0]

    def log_prob_of_rows(self, rows, t_BE):
        """log p(label | z_t, t) of every clip of packed rows, (B, E), 0 where there is none (`RowsLogProb`).

        Args:
            rows: of `walt.tokens`, `tokens` being noised, with `label`, (B, E), as `cond` of `log_prob`.
            t_BE: the diffusion times of the clips.

        Raises:
            ValueError: as `log_prob`.
        """
        if not self.module.timed:
            raise ValueError('a classifier of clean clips does not know noised ones: train one with `noising`')
        return self._log_prob(rows, t_BE)

    def log_prob_of_clean(self, z_BTHWC, cond):
        """log p(label | z_0), (B,), of clean clips; what `diffusion.guidance.of_estimate` asks for. Arguments as
        `log_prob`."""
        return self._log_prob(self._rows(z_BTHWC, cond), None)[:, 0]

    def _rows(self, z_BTHWC, cond):
        return rows_of_clips(z_BTHWC, self.module.patch) | {'label': cond['label'][:, None]}

    def _log_prob(self, rows, t_BE):
        log_BEC = jax.nn.log_softmax(self.logits(rows, t_BE))
        known_BE = rows['size'].all(-1) & (rows['label'] < self.module.classes)
        label_BE1 = jnp.where(known_BE, rows['label'], 0)[..., None]
        return jnp.where(known_BE, jnp.take_along_axis(log_BEC, label_BE1, axis=-1)[..., 0], 0)


def rows_of_clips(z_BTHWC, patch: Triple) -> dict[str, jax.Array]:
    """Clips of one size -> packed rows, each clip in a row of its own. Raises as `tokens.grid_of`."""
    grid, (pt, ph, pw) = tokens.grid_of(z_BTHWC.shape[1:4], patch), patch
    z_BLC = rearrange(z_BTHWC, 'B (t pt) (h ph) (w pw) C -> B (t h w) (pt ph pw C)', pt=pt, ph=ph, pw=pw)
    batch, length, _ = z_BLC.shape
    return {
        'tokens': z_BLC,
        'segment': jnp.ones((batch, length), jnp.int32),
        'place': jnp.broadcast_to(tokens.places(grid), (batch, length, 3)),
        'size': jnp.broadcast_to(jnp.array(grid), (batch, 1, 3)),
    }
