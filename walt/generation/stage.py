"""A trained denoiser and its tokenizer, ready to sample: conditions -> noise -> latents -> pixels.

A stage makes one chunk, as many frames as it was trained on; `walt.generation.cascade` makes more of them and chains
stages. Each clip has a key of its own, so what else is in its batch does not change it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from walt.denoiser.conditions import (
    Denoiser,
    NullText,
    abstract,
    bound,
    check_self_conditioning,
    given_frames,
    without,
)
from walt.diffusion.guidance import LogProb, Scale, autoguidance, by_classifier, by_condition, check_classifier
from walt.diffusion.prediction import Denoise, Parametrisation
from walt.diffusion.sampler import draw_noise, sample
from walt.diffusion.schedules import Schedule, corrupt
from walt.diffusion.steppers import Stepper
from walt.generation.request import Request
from walt.parallel.rules import activate
from walt.parallel.shard import put_batch, put_filled
from walt.randomness import normal, stream
from walt.tokenizer.frozen import FrozenTokenizer

EncodeText = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Texts -> (embeddings float32 (B, S, E), mask bool (B, S))."""


@dataclasses.dataclass(frozen=True)
class Weak:
    """A smaller or less trained denoiser of the same latents and conditions, and its parameters."""

    denoiser: Denoiser
    params: Any


@dataclasses.dataclass(frozen=True)
class Stage:
    """Samples clips of one resolution.

    Attributes:
        denoiser, params: the network and its (averaged) parameters.
        frozen: the tokenizer whose latents it was trained on.
        schedule, parametrisation, self_conditioning: as in training.
        stepper, steps, guidance, rescale: the sampler; guidance 1 is none, and rescale 0.
        mesh: the devices that share a batch.
        encode_text, null_text: of a denoiser with text.
        most_given: latent frames that are given to go on from, at most; as in training.
        frames_guidance: guidance towards the given frames, which `guidance` towards label and text adds to; 1 is none.
        weak, weak_guidance: autoguidance, away from another denoiser, after all other guidance; 1 is none.
        guidance_channels: of the latents that all this guidance is of, the first so many; None: all.
        classifier, classifier_guidance: towards a class, by the gradient of a classifier of noisy latents
            (`walt.diffusion.guidance.by_classifier`), added to all other guidance; 0 is none. It is told what the
            denoiser is told. To guide by it alone, `guidance` is 0.
        last_time: of the last pass, as `walt.diffusion.sampler.sample` takes it.
        frames_noise: given frames have the noise of this time, against drift in long videos.
        low_noise: low-resolution latents have the noise of this time.
    """

    denoiser: Denoiser
    params: Any
    frozen: FrozenTokenizer
    schedule: Schedule
    parametrisation: Parametrisation
    self_conditioning: bool
    stepper: Stepper
    steps: int
    guidance: Scale
    mesh: Mesh
    encode_text: EncodeText | None = None
    null_text: NullText | None = None
    most_given: int = 2
    rescale: float = 0.0
    frames_guidance: Scale = 1.0
    weak: Weak | None = None
    weak_guidance: Scale = 1.0
    guidance_channels: int | None = None
    classifier: LogProb | None = None
    classifier_guidance: Scale = 0.0
    last_time: float | None = None
    frames_noise: float = 0.0
    low_noise: float = 0.0

    def __post_init__(self):
        check_self_conditioning(self.denoiser, self.self_conditioning)
        check_classifier(self.classifier, self.classifier_guidance)

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(frames, height, width, 3) of the clips it makes."""
        return self.frozen.module.clip_shape(*self.denoiser.latent_shape[:3])

    def check(self, request: Request) -> None:
        """
        Raises:
            ValueError: on labels, prompts, frames or pictures that the denoiser was not trained with; on a label that
                is no class, naming the range.
        """
        denoiser, labels = self.denoiser, set(request.labels or ())
        asked_and_trained = {
            'labels': (labels - {-1}, denoiser.classes),
            'prompts': (any(request.prompts or ()), 'text' in denoiser.conditions),
            'frames': (request.frames_NTHWC is not None, 'frames' in denoiser.conditions),
            'pictures': (request.pictures, 'image' in denoiser.conditions),
        }
        for name, (asked, trained) in asked_and_trained.items():
            if asked and not trained:
                raise ValueError(f'{name} are asked for, but the denoiser was trained without')
        wrong = sorted(label for label in labels if not -1 <= label < denoiser.classes)
        if wrong:
            raise ValueError(f'labels {wrong} are not in 0 .. {self.denoiser.classes - 1}')

    def conditions(self, request: Request, low: jax.Array | None = None) -> dict[str, np.ndarray]:
        """What the denoiser is told about the clips of a request; `given_BT` says which latent frames are given.

        Args:
            low: latents of the same clips from the stage before.

        Raises:
            ValueError: as `check`; on frames of another size or number than it takes, naming both; where `low` is
                missing.
        """
        self.check(request)
        denoiser, count = self.denoiser, len(request)
        stack = (denoiser.latent_shape[0],) if 'image' in denoiser.conditions else ()
        rows = {'image': np.full(count, request.pictures)} if stack else {}
        if denoiser.classes:
            labels = np.asarray(request.labels or [-1] * count, np.int32)
            labels = np.where(labels < 0, denoiser.classes, labels).astype(np.int32)
            rows['label'] = labels[:, None].repeat(stack[0], axis=1) if stack else labels
        if 'text' in denoiser.conditions:
            text, mask = self.encode_text(list(request.prompts or [''] * count))
            for name, value in {'text': text, 'text_mask': mask}.items():
                expected = denoiser.conditions[name][len(stack) :]
                if value.shape[1:] != expected:
                    raise ValueError(f'the encoder gives a {name} of {value.shape[1:]}, the denoiser takes {expected}')
                rows[name] = np.broadcast_to(np.expand_dims(value, 1), (count, *stack, *expected)) if stack else value
        if 'frames' in denoiser.conditions:
            rows |= self._given(request)
        if 'low' in denoiser.conditions:
            expected = denoiser.conditions['low']
            if low is None or low.shape[1:] != expected:
                got = 'none are given' if low is None else f'not {low.shape[1:]}'
                raise ValueError(f'the denoiser takes low-resolution latents of {expected}, {got}')
            rows['low'] = low
        return rows

    def _given(self, request: Request) -> dict[str, np.ndarray]:
        """Clean latents of the given frames, filled up with zeros, and which of them there are."""
        frames = self.denoiser.latent_shape[0]
        z = np.zeros((len(request), *self.denoiser.latent_shape), np.float32)
        given_BT = np.zeros((len(request), frames), bool)
        if request.frames_NTHWC is not None:
            _, height, width, _ = self.clip_shape
            count, *size = request.frames_NTHWC.shape[1:4]
            if size != [height, width]:
                raise ValueError(f'given frames are {size[0]}x{size[1]}, the clips {height}x{width}')
            latents, *_ = self.frozen.module.latent_shape(count, *size)
            if latents > self.most_given:
                most, *_ = self.frozen.module.clip_shape(self.most_given, 1, 1)
                raise ValueError(f'{count} frames are given, the denoiser was trained with {most} at the most')
            z[:, :latents] = self.encode(request.frames_NTHWC)
            given_BT[:, :latents] = True
        return {'frames': z, 'given_BT': given_BT}

    @functools.cached_property
    def _encode(self):
        def encode(frozen: FrozenTokenizer, video_BTHWC, pictures: bool):
            return frozen.encode_each(video_BTHWC) if pictures else frozen.encode(video_BTHWC)

        return jax.jit(encode, static_argnums=2)

    @functools.cached_property
    def _decode(self):
        def decode(frozen: FrozenTokenizer, z_BTHWC, pictures: bool):
            return frozen.decode_each(z_BTHWC) if pictures else frozen.decode(z_BTHWC)

        return jax.jit(decode, static_argnums=2)

    @functools.cached_property
    def _sample(self):
        return jax.jit(self.sample_latents)

    def sample_latents(
        self, params, null_text: NullText | None, rows: Mapping[str, jax.Array], weak_params=None
    ) -> jax.Array:
        """What `latents` compiles: rows of `conditions` with a `key` each -> normalised latents."""
        rows = dict(rows)
        key_B = rows.pop('key')
        cond, given_BT, given = self._noised(rows, key_B)
        z = sample(
            self._guided(params, null_text, weak_params),
            draw_noise(key_B, self.denoiser.latent_shape),
            cond,
            schedule=self.schedule,
            stepper=self.stepper,
            steps=self.steps,
            key_B=key_B,
            self_conditioning=self.self_conditioning,
            parametrisation=self.parametrisation,
            last_time=self.last_time,
        )
        return z if given_BT is None else jnp.where(given_BT[..., None, None, None], given, z)

    def _guided(self, params, null_text: NullText | None, weak_params) -> Denoise:
        def null(*parts: str):
            return functools.partial(without, parts=parts, classes=self.denoiser.classes, null_text=null_text)

        guides = [(self.guidance, null('label', 'text')), (self.frames_guidance, null('frames'))]
        how = self.rescale, self.guidance_channels
        denoise = by_condition(bound(self.denoiser, params), guides, *how)
        if self.weak is not None:
            denoise = autoguidance(denoise, bound(self.weak.denoiser, weak_params), self.weak_guidance, *how)
        if self.classifier is None:
            return denoise
        told = {'schedule': self.schedule, 'parametrisation': self.parametrisation}
        return by_classifier(denoise, self.classifier, self.classifier_guidance, **told)

    def abstract_rows(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The rows of `sample_latents`, in shapes."""
        rows = abstract(self.denoiser.conditions, count)
        for made in ('estimate', 'frames_mask', 'low_t'):
            rows.pop(made, None)
        if 'frames' in rows:
            rows['given_BT'] = jax.ShapeDtypeStruct((count, self.denoiser.latent_shape[0]), jnp.bool_)
        return rows | {'key': jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))}

    def _noised(self, rows, key_B):
        """(cond, which latent frames are given, their clean latents), from what `conditions` returns."""
        cond, given_BT, given = dict(rows), rows.get('given_BT'), rows.get('frames')

        def noisy(z, t: float, name: str):
            alpha, sigma = self.schedule.alpha_sigma(t)
            return corrupt(z, normal(stream(key_B, name), z.shape[1:]), alpha, sigma), alpha

        if given_BT is not None:
            del cond['given_BT']
            frames, alpha = noisy(given, self.frames_noise, 'frames')
            cond |= given_frames(frames, given_BT, alpha)
        if 'low' in cond:
            cond['low'], _ = noisy(cond['low'], self.low_noise, 'low')
            cond['low_t'] = jnp.full(len(key_B), self.low_noise)
        return cond, given_BT, given

    def latents(self, rows: dict[str, np.ndarray], key_B: jax.Array) -> jax.Array:
        """Samples normalised latents; one compiled program for every number of rows.

        Args:
            rows: of `conditions`.
            key_B: a key for every row.
        """
        with activate(self.mesh):
            rows = put_batch(self.mesh, rows) | {'key': key_B}
            return self._sample(self.params, self.null_text, rows, self.weak and self.weak.params)

    def encode(self, video_BTHWC: np.ndarray, pictures: bool = False) -> np.ndarray:
        """uint8 clips -> normalised latents; `pictures`: every frame is one by itself."""
        return self._code(self._encode, video_BTHWC, pictures)

    def decode(self, z_BTHWC, pictures: bool = False) -> np.ndarray:
        """Normalised latents -> uint8 clips (B, T, H, W, 3); `pictures`: every latent frame is one by itself."""
        return self._code(self._decode, z_BTHWC, pictures)

    def _code(self, coder: Callable, x, pictures: bool) -> np.ndarray:
        with activate(self.mesh):
            return np.asarray(coder(self.frozen, put_filled(self.mesh, x), pictures))[: len(x)]
