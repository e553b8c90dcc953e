"""Classifiers of clips, trained on real clips only, that say whether a generated clip shows its class.

`Judge` is for digits, all of one size: each frame is made grey, moved so that its bright mass is in the middle, halved
in size and read by a support vector machine with a Gaussian kernel (scikit-learn), which reads handwritten digits as
well as small networks do and trains in seconds. `PackedJudge` is a trained NaViT (`walt.train_classifier`), for
pictures of any size and aspect ratio, and of whatever it was trained on.

The clip's class is what most of its frames are read as. How good the judge is must be measured on real clips of a
held-out split before its word on generated ones counts for anything.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from einops import rearrange, reduce
from scipy import ndimage
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from walt import tokens
from walt.data.packing import resized
from walt.data.resolution import Resolution, grids
from walt.data.row_plan import RowPlan
from walt.navit.classifier import Classifier


def centred_features(video_NTHWC: np.ndarray) -> np.ndarray:
    """uint8 (N, T, H, W, C) -> float32 (N, T, features): each frame grey, centred by its mass, 2x2 means.

    Raises:
        ValueError: if the clips are not uint8 or a side is odd.
    """
    if video_NTHWC.dtype != np.uint8 or video_NTHWC.shape[2] % 2 or video_NTHWC.shape[3] % 2:
        raise ValueError(f'expected uint8 clips with even sides, got {video_NTHWC.dtype} {video_NTHWC.shape}')
    clips, frames, height, width, _ = video_NTHWC.shape
    grey_FHW = rearrange(video_NTHWC.mean(-1) / 255, 'N T H W -> (N T) H W')
    features = []
    for frame_HW in grey_FHW:
        centre = ndimage.center_of_mass(frame_HW) if frame_HW.any() else (height / 2, width / 2)
        to_middle = ((height - 1) / 2 - centre[0], (width - 1) / 2 - centre[1])
        middle_HW = ndimage.shift(frame_HW, to_middle, order=1)
        features.append(reduce(middle_HW, '(H h) (W w) -> (H W)', 'mean', h=2, w=2))
    return rearrange(np.float32(features), '(N T) F -> N T F', N=clips, T=frames)


class Judge:
    """Reads clips; `fit` first."""

    def __init__(self, classes: int):
        self.classes = classes
        self._classifier: Pipeline = make_pipeline(StandardScaler(with_std=False), SVC(C=10.0, gamma='scale'))

    def fit(self, videos_NTHWC: np.ndarray, label_N: np.ndarray, frames_per_clip: int = 2) -> 'Judge':
        """Trains on `frames_per_clip` evenly spaced frames of every real clip."""
        picked = np.linspace(0, videos_NTHWC.shape[1] - 1, frames_per_clip).round().astype(int)
        features = centred_features(videos_NTHWC[:, picked])
        self._classifier.fit(rearrange(features, 'N T F -> (N T) F'), np.repeat(label_N, frames_per_clip))
        return self

    def read(self, videos_NTHWC: np.ndarray) -> np.ndarray:
        """uint8 (N, T, H, W, C) -> the class of every frame, int (N, T)."""
        features = centred_features(videos_NTHWC)
        read = self._classifier.predict(rearrange(features, 'N T F -> (N T) F'))
        return rearrange(read, '(N T) -> N T', T=videos_NTHWC.shape[1])


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


def agreement(read_NT: np.ndarray, label_N: np.ndarray, classes: int) -> dict[str, float]:
    """How much of what was read is the label.

    Returns:
        `clips`: share of clips whose most frequent class over frames is the label (a tie goes to the smaller class);
        `frames`: share of all frames;
        `whole_clips`: share of clips all of whose frames are read as the label.
    """
    majority_N = np.array([np.bincount(read_T, minlength=classes).argmax() for read_T in read_NT])
    right_NT = read_NT == np.asarray(label_N)[:, None]
    return {
        'clips': float((majority_N == label_N).mean()),
        'frames': float(right_NT.mean()),
        'whole_clips': float(right_NT.all(1).mean()),
    }
