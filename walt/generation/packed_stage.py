"""A trained denoiser of packed rows, ready to sample clips of any length and aspect ratio, several in a row.

    (label, frames, height, width) of every clip --> grids of tokens --first fit--> rows --sample--> rows --> clips

A clip is made by (seed, its place in the request) alone: its noise, that of steppers that draw, and what they start
from belong to its tokens, and the network lets no clip see another. So neither its neighbours nor the number of rows
change it. For guidance and stepper each token is an example of its own. A classifier is asked about clips: its gradient
in a token is that of log p of the clip that the token is of, at the time of that clip.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from walt import tokens
from walt.data.row_plan import RowPlan
from walt.denoiser.conditions import bound, without
from walt.denoiser.packed import PackedDenoiser, time_of_clips
from walt.diffusion.guidance import Scale, by_classifier, by_condition, check_classifier
from walt.diffusion.packed_loss import token_keys, token_noise
from walt.diffusion.prediction import Parametrisation
from walt.diffusion.sampler import sample
from walt.diffusion.schedules import Schedule
from walt.diffusion.steppers import Stepper
from walt.parallel.mesh import check_batch
from walt.parallel.rules import activate
from walt.parallel.shard import put_batch, put_filled
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer, Pixels

Shape = tuple[int, int, int]
"""(frames, height, width) of a clip, in pixels."""

RowsLogProb = Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]
"""(rows of `walt.tokens` with `label`, t_BE) -> (B, E), log p(label | z_t) of every clip, 0 where none is asked for."""

# Rows that may be open at a time while clips are given to them; there is no order to keep.
_OPEN_ROWS = 64


def read_shape(text: str) -> Shape:
    """'17x128x224' -> (17, 128, 224). Raises `ValueError` on another form."""
    parts = text.split('x')
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f'a shape is FRAMESxHEIGHTxWIDTH, such as 17x128x224, not {text!r}')
    return tuple(map(int, parts))


@dataclasses.dataclass(frozen=True)
class PackedStage:
    """Samples clips of any size.

    Attributes:
        denoiser, params: the network and its (averaged) parameters.
        frozen: the tokenizer whose latents it was trained on, or pixels.
        schedule, parametrisation, self_conditioning: as in training.
        stepper, steps, guidance: the sampler; guidance 1 is none.
        mesh: the devices that share the rows.
        last_time: of the last pass, as `walt.diffusion.sampler.sample` takes it.
        classifier, classifier_guidance: towards the labels, by the gradient of a classifier of noised rows
            (`walt.diffusion.guidance.by_classifier`), added to `guidance`, which is 0 to guide by it alone; 0 is none.
            A pytree (`jax.tree_util.Partial`): its parameters are an argument of what is compiled.

    Raises:
        ValueError: if there is a classifier and no guidance by it, or guidance by none.
    """

    denoiser: PackedDenoiser
    params: Any
    frozen: FrozenTokenizer | Pixels
    schedule: Schedule
    parametrisation: Parametrisation
    self_conditioning: bool
    stepper: Stepper
    steps: int
    guidance: Scale
    mesh: Mesh
    last_time: float | None = None
    classifier: RowsLogProb | None = None
    classifier_guidance: Scale = 0.0

    def __post_init__(self):
        check_classifier(self.classifier, self.classifier_guidance)

    def grid(self, shape: Shape) -> Shape:
        """A clip in pixels -> its grid in tokens.

        Raises:
            ValueError: if the tokenizer's strides and the patch do not divide it, or it does not fit a row.
        """
        latents = shape if isinstance(self.frozen, Pixels) else self.frozen.module.latent_shape(*shape)[:3]
        grid = tokens.grid_of(latents, self.denoiser.tile)
        self.denoiser.check_sizes([grid])
        return grid

    def clips(
        self,
        shapes: Sequence[Shape],
        labels: Sequence[int] | None,
        seed: int,
        rows: int,
        progress: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        """Clips, uint8 (frames, height, width, 3), in the order of the request.

        Args:
            shapes: of every clip.
            labels: its class, -1 being none in particular; None for all of them.
            rows: sampled together; one compiled program.
            progress: called after so many rows.

        Raises:
            ValueError: as `grid`; where labels and shapes are not as many; on a label that is no class, or labels that
                the denoiser was trained without; on rows that the devices do not divide.
        """
        labels = [-1] * len(shapes) if labels is None else list(labels)
        self._check(shapes, labels)
        check_batch(self.mesh, rows)
        grids = [self.grid(shape) for shape in shapes]
        numbers = self.rows(grids)
        made = [None] * len(shapes)
        for start in range(0, len(numbers), rows):
            some = numbers[start : start + rows]
            packed = [self._row(row, grids, labels) for row in some]
            batch = {name: np.stack([row[name] for row in packed]) for name in packed[0]}
            # The last batch is filled up, so that everything runs in one compiled shape.
            filled = {name: np.resize(value, (rows, *value.shape[1:])) for name, value in batch.items()}
            z_BLC = self.latents(filled, seed)[: len(some)]
            for row, own in zip(tokens.rows_of(batch | {'tokens': z_BLC}), some, strict=True):
                for number, clip in zip(own, tokens.unpack(row), strict=True):
                    made[number] = tokens.to_clip(clip, self.denoiser.tile)
            progress()
        return self._decoded(made)

    def rows(self, grids: Sequence[Shape]) -> list[list[int]]:
        """Which clips share a row."""
        counts = np.array([t * h * w for t, h, w in grids])
        sizes = self.denoiser.length, self.denoiser.most
        plan = RowPlan(lambda epoch: counts, len(grids), *sizes, _OPEN_ROWS, epochs=1)
        return [plan.row(number) for number in range(len(plan))]

    def latents(self, rows: dict[str, np.ndarray], seed: int) -> np.ndarray:
        """Samples the tokens of packed rows, (B, L, C); `index` says the clips' numbers."""
        with activate(self.mesh):
            key = jax.random.key(seed)
            return np.asarray(self._sample(self.params, put_batch(self.mesh, rows), key, self.classifier))

    @functools.cached_property
    def _sample(self):
        return jax.jit(self.sample_latents)

    def sample_latents(
        self, params, rows: dict[str, jax.Array], key: jax.Array, classifier: RowsLogProb | None = None
    ) -> jax.Array:
        """What `latents` compiles."""
        denoiser, (length, channels) = self.denoiser, self.denoiser.latent_shape
        cond = {name: rows[name] for name in denoiser.conditions if name != 'estimate'}
        key_BE = stream(key, 'clip', rows['index'])
        key_BL = token_keys(key_BE, rows['segment'], rows['place'], rows['size'])
        network = bound(denoiser, params)

        def denoise(z_XC, t_X, cond):
            """Of X = B L tokens, or twice as many under guidance, which are rows to the network."""
            of_rows = cond | {'estimate': cond['estimate'].reshape(-1, length, channels)}
            return network(z_XC.reshape(-1, length, channels), t_X.reshape(-1, length), of_rows).reshape(len(z_XC), -1)

        def log_prob(z_XC, t_X, cond):
            t_BE = time_of_clips(t_X.reshape(-1, length), cond['segment'], denoiser.most)
            return classifier(cond | {'tokens': z_XC.reshape(-1, length, channels)}, t_BE)

        null = functools.partial(without, parts=('label',), classes=denoiser.classes)
        guided = by_condition(denoise, [(self.guidance, null)])
        told = {'schedule': self.schedule, 'parametrisation': self.parametrisation}
        guided = by_classifier(guided, log_prob, self.classifier_guidance, **told)
        noise = token_noise(key_BL, rows['segment'], channels)
        z_XC = sample(
            guided,
            noise.reshape(-1, channels),
            cond,
            stepper=self.stepper,
            steps=self.steps,
            key_B=key_BL.reshape(-1),
            self_conditioning=self.self_conditioning,
            last_time=self.last_time,
            **told,
        )
        return jnp.where(rows['segment'][..., None] > 0, z_XC.reshape(noise.shape), 0)

    def abstract_rows(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The rows of `sample_latents`, in shapes."""
        shapes = {name: shape for name, shape in self.denoiser.conditions.items() if name != 'estimate'}
        shapes |= {'index': (self.denoiser.most,)}
        return {name: jax.ShapeDtypeStruct((count, *shape), jnp.int32) for name, shape in shapes.items()}

    def _row(self, row: Sequence[int], grids: Sequence[Shape], labels: Sequence[int]) -> dict[str, np.ndarray]:
        """What the denoiser is told of a row of clips."""
        clips = []
        for number in row:
            label = labels[number] if labels[number] >= 0 else self.denoiser.classes
            place = tokens.places(grids[number])
            clip = {'tokens': np.zeros((len(place), 0), np.float32), 'place': place}
            clip |= {'size': np.array(grids[number], np.int32), 'label': np.int32(label), 'index': np.int32(number)}
            clips.append(clip)
        packed = tokens.pack(clips, self.denoiser.length, self.denoiser.most)
        return {name: value for name, value in packed.items() if name != 'tokens'}

    def _decoded(self, z: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Latents of clips -> their pixels, those of one size together."""
        made = [None] * len(z)
        for shape in dict.fromkeys(clip.shape for clip in z):
            alike = [number for number, clip in enumerate(z) if clip.shape == shape]
            with activate(self.mesh):
                videos = self._decode(self.frozen, put_filled(self.mesh, np.stack([z[number] for number in alike])))
            for number, video in zip(alike, np.asarray(videos)):
                made[number] = video
        return made

    @functools.cached_property
    def _decode(self):
        return jax.jit(lambda frozen, z_BTHWC: frozen.decode(z_BTHWC))

    def _check(self, shapes: Sequence[Shape], labels: Sequence[int]) -> None:
        if not len(shapes) or len(shapes) != len(labels):
            raise ValueError(f'a request has a shape and a label for every clip, not {len(shapes)} and {len(labels)}')
        if set(labels) - {-1} and not self.denoiser.classes:
            raise ValueError('labels are asked for, but the denoiser was trained without')
        wrong = sorted(label for label in set(labels) if not -1 <= label < self.denoiser.classes)
        if wrong:
            raise ValueError(f'labels {wrong} are not in 0 .. {self.denoiser.classes - 1}')
