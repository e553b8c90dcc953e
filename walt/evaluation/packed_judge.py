"""A trained NaViT (`walt.train_classifier`) as the judge of generated pictures and clips of whatever it was trained on.

It stands where `evaluation/judge.py` does: the clip's class is what most of its frames are read as, and how good it is
must be measured on real clips first.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from einops import rearrange

from walt import tokens
from walt.data.packing import resized
from walt.data.resolution import Resolution, grids
from walt.data.row_plan import RowPlan
from walt.navit.classifier import Classifier


class PackedJudge:
    """Reads pictures and clips of any size, packed in rows.

    They are read as large as they are, but no smaller and no larger than those that the classifier was trained on.

    Args:
        classifier: trained on pixels.
        resolution: of its training.
        length, most: tokens and clips of a row.
        rows: read together.
    """

    def __init__(self, classifier: Classifier, resolution: Resolution, length: int, most: int, rows: int = 16):
        self.classes = classifier.module.classes
        self._classifier, self._resolution = classifier, resolution
        self._length, self._most, self._rows = length, most, rows
        self._read_batch = jax.jit(lambda classifier, batch: jax.nn.log_softmax(classifier.logits(batch)))

    def read(self, videos_NTHWC: np.ndarray) -> np.ndarray:
        """uint8 (N, T, H, W, C) -> the class of every frame, each a picture of its own: int (N, T)."""
        frames = rearrange(videos_NTHWC, 'N T H W C -> (N T) 1 H W C')
        return rearrange(self.read_clips(frames), '(N T) -> N T', T=videos_NTHWC.shape[1])

    def read_clips(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Clips uint8 (T, H, W, C), of any sizes -> the class of each, int (N,)."""
        return self.log_probabilities(clips).argmax(-1)

    def log_probabilities(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Clips uint8 (T, H, W, C), of any sizes -> log p(class), float32 (N, classes)."""
        if wrong := [clip.dtype for clip in clips if clip.dtype != np.uint8]:
            raise ValueError(f'expected clips of uint8, got {wrong[0]}')
        sizes_N3, patch = np.array([clip.shape[:3] for clip in clips]), self._classifier.module.patch
        grid_N3 = grids(self._sides(sizes_N3), sizes_N3, patch, self._length)
        plan = RowPlan(lambda epoch: grid_N3.prod(1), len(clips), self._length, self._most, open_rows=16, epochs=1)
        numbers = [plan.row(row) for row in range(len(plan))]
        found = np.zeros((len(clips), self.classes), np.float32)
        for own, log_EC in zip(numbers, self._read_rows([self._packed(clips, grid_N3, own) for own in numbers])):
            found[own] = log_EC[: len(own)]
        return found

    def _sides(self, sizes_N3: np.ndarray) -> np.ndarray:
        native_N = np.sqrt(sizes_N3[:, 1] * sizes_N3[:, 2])
        low_N, high_N = (self._resolution(np.full(len(native_N), u), native_N) for u in (2.0**-53, 1 - 2.0**-53))
        return native_N.clip(low_N, high_N)

    def _packed(self, clips, grid_N3, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        patch, fitted = self._classifier.module.patch, []
        for number in numbers:
            frames, height, width = map(int, grid_N3[number] * patch)
            frames_THWC = [resized(frame_HWC, height, width) for frame_HWC in clips[number][:frames]]
            fitted.append(tokens.from_clip(np.stack(frames_THWC), patch))
        return tokens.pack(fitted, self._length, self._most)

    def _read_rows(self, rows: list[dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
        """log p of every row, (E, classes)."""
        for first in range(0, len(rows), self._rows):
            some = rows[first : first + self._rows]
            filled = some + some[:1] * (self._rows - len(some))  # All batches have one shape.
            batch = {name: np.stack([row[name] for row in filled]) for name in filled[0]}
            yield from np.asarray(self._read_batch(self._classifier, batch))[: len(some)]
