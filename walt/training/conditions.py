"""From a batch of data to the rows that a denoiser trains on: clean latents, and what it is told about them.

    batch                                                   rows
    video  uint8 (B, 1 + T, H, W, 3), or z, its latents     z        (R, t, h, w, C)
    label  (B,)                                             label    (R,), or (R, t) where rows may be pictures
    text   (B, S, E), text_mask (B, S)                      text     (R, S, E), or (R, t, S, E); text_mask
    low    latents at low resolution, else made of video    low      (R, t, h / u, w / u, C)
    images        uint8 (B, k, t, H, W, 3), or images_z     image    (R,), which rows are stacks of t pictures
    images_label  (B, k, t), images_text, images_text_mask
    images_low    as low, else made of images

R = B, or B (1 + k) in joint training, where each clip comes with k stacks of pictures (W.A.L.T, section 4.1). What a
denoiser has no use for is passed over; what it needs and the batch does not have is an error.
"""

import dataclasses

import jax
import jax.numpy as jnp

from walt.denoiser.conditions import Denoiser, NullText, given_frames, upsampling, without
from walt.diffusion.schedules import Schedule, corrupt
from walt.randomness import bernoulli, normal, stream, uniform
from walt.tokenizer.frozen import FrozenTokenizer
from walt.tokenizer.pixels import shrink

Rows = dict[str, jax.Array]

_ROW_WISE = ('label', 'text', 'text_mask')
# The pixels that latents can be made of.
_PIXELS = {'z': 'video', 'low': 'video', 'images_z': 'images', 'images_low': 'images'}


def to_latents(frozen: FrozenTokenizer, batch, denoiser: Denoiser) -> Rows:
    """The latents that a denoiser needs and a batch has as pixels only, under the names that they have in a batch."""

    def make(name: str):
        pixels = batch[_PIXELS[name]]
        pixels = shrink(pixels, upsampling(denoiser)) if name.endswith('low') else pixels
        return frozen.encode_each(pixels) if name.startswith('images') else frozen.encode(pixels)

    return {
        name: make(name)
        for name in _needed(denoiser)
        if name in _PIXELS and name not in batch and _PIXELS[name] in batch
    }


def latent_rows(frozen: FrozenTokenizer, batch, denoiser: Denoiser) -> Rows:
    """The rows of a batch; the tokenizer is asked for what is not latents yet.

    Raises:
        ValueError: if the batch lacks something that the denoiser is built for.
    """
    either = [(name, *([_PIXELS[name]] if name in _PIXELS else [])) for name in _needed(denoiser)]
    if missing := [' or '.join(names) for names in either if not set(names) & set(batch)]:
        raise ValueError(f'the denoiser needs {missing} of a batch, which has {sorted(batch)}')
    there = dict(batch) | to_latents(frozen, batch, denoiser)
    rows = {name: there[name] for name in _of_clips(denoiser)}
    if 'image' not in denoiser.conditions:
        return rows
    return _with_images(rows, {name: there[f'images_{name}'] for name in rows})


def keys_of_rows(key_B: jax.Array, rows: int) -> jax.Array:
    """The key of every row, (R,), in the order of `latent_rows`: each clip's, and after it those of its stacks."""
    stacks = jnp.arange(rows // len(key_B) - 1)
    return jnp.concatenate([key_B[:, None], stream(key_B[:, None], 'stack', stacks)], axis=1).reshape(-1)


def _of_clips(denoiser: Denoiser) -> list[str]:
    """What a row is made of."""
    rest = [name for name in _ROW_WISE if name in denoiser.conditions]
    return ['z', *rest, *(['low'] if 'low' in denoiser.conditions else [])]


def _needed(denoiser: Denoiser) -> list[str]:
    """What a batch has of clips, and of stacks of pictures."""
    names = _of_clips(denoiser)
    return names + [f'images_{name}' for name in names] * ('image' in denoiser.conditions)


def _with_images(rows: Rows, stacks: Rows) -> Rows:
    """Stacks of pictures as further rows; clips repeat label and text for each of their latent frames.

    The stacks of a clip follow it, so that all rows stay on the devices that the batch lies on.
    """
    frames = rows['z'].shape[1]
    if stacks['z'].shape[2] != frames:
        raise ValueError(f'stacks of {stacks["z"].shape[2]} pictures beside clips of {frames} latent frames')
    clips = {name: jnp.repeat(row[:, None], frames, axis=1) if name in _ROW_WISE else row for name, row in rows.items()}
    joined = {name: jnp.concatenate([clips[name][:, None], stacks[name]], axis=1) for name in clips}
    clip_and_stacks = joined['z'].shape[1]
    rows = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in joined.items()}
    return rows | {'image': jnp.arange(len(rows['z'])) % clip_and_stacks > 0}


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What of the conditions is shown in training; called with rows, it returns the denoiser's `cond`.

    The paper leaves all of these numbers open; the defaults are ours.

    Attributes:
        schedule: of the noise that is added to conditions.
        dropout: probability that nothing stands in place of label and text, of both at once, for guidance.
        given_frames: how many of the first latent frames are given, one of these numbers at random.
        given_probability: p_fp, the probability that frames are given at all.
        given_noise: given frames have the noise of a time drawn from U(0, this), against drift in long videos.
        low_noise: the same for low-resolution latents; the paper's t_max_noise.

    Raises:
        ValueError: on a probability or time outside [0, 1], or less than one given frame.
    """

    schedule: Schedule
    dropout: float = 0.1
    given_frames: tuple[int, ...] = (1, 2)
    given_probability: float = 0.5
    given_noise: float = 0.0
    low_noise: float = 0.25

    def __post_init__(self):
        for name in ('dropout', 'given_probability', 'given_noise', 'low_noise'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} is in [0, 1], not {getattr(self, name)}')
        if not self.given_frames or min(self.given_frames) < 1:
            raise ValueError(f'given_frames are numbers of 1 or more, not {self.given_frames}')

    def __call__(self, denoiser: Denoiser, rows: Rows, null_text: NullText | None, key_R: jax.Array) -> Rows:
        """
        Args:
            rows: of `latent_rows`.
            null_text: of a denoiser with text; None will do where nothing is dropped.
            key_R: of every row, which draws all that is drawn for it.
        """
        z, cond = rows['z'], {name: rows[name] for name in denoiser.conditions if name in rows}
        if 'frames' in denoiser.conditions:
            cond |= self._given(z, rows.get('image'), stream(key_R, 'given'))
        if 'low' in denoiser.conditions:
            low_t = self.low_noise * uniform(stream(key_R, 'low_time'))
            cond |= {'low': noisy(self.schedule, rows['low'], low_t, stream(key_R, 'low_noise')), 'low_t': low_t}
        if not self.dropout:
            return cond
        dropped_R = bernoulli(stream(key_R, 'dropout'), self.dropout)
        return without(cond, ('label', 'text'), classes=denoiser.classes, null_text=null_text, rows_B=dropped_R)

    def _given(self, z, image_R, key_R):
        """`frames` and `frames_mask`. Pictures of a stack are not given: one says nothing of another."""
        choices = jnp.array(self.given_frames)
        counts_R = jax.vmap(lambda key: jax.random.choice(key, choices))(stream(key_R, 'count'))
        shown_R = bernoulli(stream(key_R, 'shown'), self.given_probability)
        if image_R is not None:
            shown_R &= ~image_R
        given_RT = jnp.arange(z.shape[1]) < jnp.where(shown_R, counts_R, 0)[:, None]
        t_R = self.given_noise * uniform(stream(key_R, 'time'))
        alpha_R, _ = self.schedule.alpha_sigma(t_R)
        return given_frames(noisy(self.schedule, z, t_R, stream(key_R, 'noise')), given_RT, alpha_R)


def noisy(schedule: Schedule, z, t_B, key_B):
    """Latents with the noise of time `t_B`."""
    return corrupt(z, normal(key_B, z.shape[1:]), *schedule.alpha_sigma(t_B))
