"""Clips of any length and resolution from stages that make one chunk each.

    resolution   base -> super-resolution -> ...: a stage is given the latents of the one before (section 4.5)
    length       chunk -> chunk -> ...: a stage is given the last frames of its own chunk before (section 4.4)

A chunk of 17 frames whose first 5 are the last 5 of the chunk before adds 12. The causal encoder makes two latent
frames of 5 frames, the same two that begin the latents of a whole clip, which is what denoisers are trained with. At
each resolution the given frames are those that this resolution made.

    frame     0         16
    chunk 0   |----------|
    chunk 1        |·····-----------|          · given, made anew by the decoder and not shown
    chunk 2                    |·····-----------|
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.parallel.mesh import check_batch
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer
from walt.tokenizer.pixels import shrink


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Stages in their order, the base first.

    What is asked for is what the base was trained with; a later stage is told as much of it as it was.

    Raises:
        ValueError: if there is none; if the resolutions do not follow one another, or a later stage goes on from fewer
            frames than the base, naming both.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self):
        if not self.stages:
            raise ValueError('a cascade has one stage or more')
        needed = self.stages[0].denoiser.conditions.get('low')
        if needed:
            raise ValueError(f'the first stage of a cascade is no base: it takes low-resolution latents of {needed}')
        for number, (before, stage) in enumerate(itertools.pairwise(self.stages), start=2):
            needed = stage.denoiser.conditions.get('low')
            made = stage.frozen.module.latent_shape(*before.clip_shape[:3])
            if needed != made:
                raise ValueError(
                    f'stage {number} takes low-resolution latents of {needed}, stage {number - 1} makes {made}'
                )
            most = self.stages[0].most_given
            if 'frames' in stage.denoiser.conditions and stage.most_given < most:
                raise ValueError(
                    f'stage {number} goes on from {stage.most_given} latent frames at the most, the base from {most}'
                )

    @property
    def last(self) -> Stage:
        """Its clips are the cascade's."""
        return self.stages[-1]

    def chunks(self, frames: int | None) -> int:
        """How many chunks make a clip of `frames` frames; None is one chunk.

        Raises:
            ValueError: if more than a chunk is asked for and the base predicts no frames, or if all frames of a chunk
                are given; if `frames` is less than 1.
        """
        length, given = self.last.clip_shape[0], self.given
        if frames is not None and frames < 1:
            raise ValueError(f'a clip has 1 frame or more, not {frames}')
        if frames is None or frames <= length:
            return 1
        if 'frames' not in self.stages[0].denoiser.conditions:
            raise ValueError(f'{frames} frames are asked for, a chunk has {length}, and the base predicts no frames')
        if given >= length:
            raise ValueError(f'a chunk has {length} frames and goes on from {given}: none is new')
        return 1 + -(-(frames - length) // (length - given))

    @property
    def given(self) -> int:
        """The last frames of a chunk that the next one is given."""
        return self.last.frozen.module.clip_shape(self.stages[0].most_given, 1, 1)[0]

    def clips(
        self,
        request: Request,
        seed: int,
        batch_size: int,
        frames: int | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """Yields batches of clips, uint8 (n, frames, H, W, 3), n <= batch_size, in the order of the request.

        A clip is addressed by (seed, its place in the request): the batch that it is made in does not change it.

        Args:
            frames: of every clip; as many as a chunk has by default.
            progress: called after every chunk of every stage.

        Raises:
            ValueError: as `Stage.conditions` and `chunks`; on given frames of another size than the clips, naming both;
                if pictures are to have a number of frames; on a batch that the devices do not divide.
        """
        self._check(request, frames)
        check_batch(self.last.mesh, batch_size)
        count = self.chunks(frames)
        for start in range(0, len(request), batch_size):
            some = request[start : start + batch_size]
            key_B = stream(jax.random.key(seed), 'clip', jnp.arange(start, start + batch_size))
            # The last batch is filled up, so that everything runs in one compiled shape.
            made = self._chunks(some.filled(batch_size), key_B, count, progress)
            yield np.concatenate(list(made), axis=1)[: len(some), :frames]

    def _check(self, request: Request, frames: int | None) -> None:
        self.stages[0].check(request)
        for stage in self.stages[1:]:
            stage.check(self._asked(request, stage, None))
        if request.pictures and frames is not None:
            raise ValueError(f'pictures have no length, and {frames} frames are asked for')
        if request.frames_NTHWC is not None:
            size, (_, *expected, _) = list(request.frames_NTHWC.shape[2:4]), self.last.clip_shape
            if size != expected:
                raise ValueError(f'given frames are {size[0]}x{size[1]}, the clips {expected[0]}x{expected[1]}')

    @staticmethod
    def _asked(request: Request, stage: Stage, frames_NTHWC: np.ndarray | None) -> Request:
        """What of a request a stage was trained with, and the frames that it goes on from."""
        labels = (request.labels if stage.denoiser.classes else None) or [-1] * len(request)
        prompts = request.prompts if 'text' in stage.denoiser.conditions else None
        return Request(labels, prompts, frames_NTHWC, request.pictures)

    def _chunks(self, request: Request, key_B, count: int, progress) -> Iterator[np.ndarray]:
        """The new frames of every chunk."""
        given = [self._resized(request.frames_NTHWC, stage) for stage in self.stages]
        for chunk in range(count):
            z = None
            for number, stage in enumerate(self.stages):
                asked = self._asked(request, stage, given[number])
                low = self._handed_on(z, number, request.pictures) if number else None
                z = stage.latents(stage.conditions(asked, low), _key(key_B, number, chunk))
                # Frames are decoded where someone looks at them: a user, or the next chunk.
                if stage is self.last or (chunk + 1 < count and 'frames' in stage.denoiser.conditions):
                    video = stage.decode(z, request.pictures)
                    given[number] = video[:, -self.given :] if 'frames' in stage.denoiser.conditions else None
                progress()
            yield video[:, self.given if chunk else 0 :]

    @functools.cached_property
    def _one_tokenizer(self) -> tuple[bool, ...]:
        """Which stages have the tokenizer of the stage before, the same number for number."""
        frozen = [stage.frozen for stage in self.stages]
        return (False, *(_same(before, after) for before, after in itertools.pairwise(frozen)))

    def _handed_on(self, z, number: int, pictures: bool):
        """Latents of stage `number` - 1 as the next one's tokenizer encodes them, by way of pixels if it is another."""
        if self._one_tokenizer[number]:
            return z
        return self.stages[number].encode(self.stages[number - 1].decode(z, pictures), pictures)

    def _resized(self, frames_NTHWC: np.ndarray | None, stage: Stage) -> np.ndarray | None:
        """Frames at the last resolution -> those of a stage, each pixel the mean of those it covers; None where the
        stage is given no frames."""
        if frames_NTHWC is None or 'frames' not in stage.denoiser.conditions:
            return frames_NTHWC if stage is self.stages[0] else None
        factor = self.last.clip_shape[1] // stage.clip_shape[1]
        return np.asarray(shrink(jnp.asarray(frames_NTHWC), factor))


def _same(before: FrozenTokenizer, after: FrozenTokenizer) -> bool:
    """Equal networks have trees of equal shapes."""
    if before.module != after.module:
        return False
    pairs = zip(*(jax.tree.leaves((frozen.params, frozen.norm)) for frozen in (before, after)), strict=True)
    return all(bool((x == y).all()) for x, y in pairs)


def _key(key_B, stage: int, chunk: int):
    """The keys of the clips for one chunk of one stage; those of the first chunk of the base are the clips' own."""
    key_B = stream(key_B, 'stage', stage) if stage else key_B
    return stream(key_B, 'chunk', chunk) if chunk else key_B


def border_jump(video_THWC: np.ndarray, chunk: int, given: int) -> float:
    """How much more a video changes from one chunk to the next than within chunks: 1 is no seam.

    The mean absolute difference of the two frames at a border, over the mean of that of all other neighbours.

    Args:
        video_THWC: uint8, made in chunks.
        chunk: frames of a chunk.
        given: how many of them were given.

    Raises:
        ValueError: if the video has no border.
    """
    change_T = np.abs(np.diff(video_THWC.astype(np.float32), axis=0)).mean((1, 2, 3))
    borders = np.arange(chunk - 1, len(change_T), chunk - given)
    if not len(borders):
        raise ValueError(f'a video of {len(video_THWC)} frames in chunks of {chunk} has no border')
    within = np.delete(change_T, borders)
    return float(change_T[borders].mean() / max(within.mean(), 1e-6))
