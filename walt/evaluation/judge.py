"""A classifier of clips of digits, trained on real clips only, that says whether a generated clip shows its class.

Each frame is made grey, moved so that its bright mass is in the middle, halved in size and read by a support vector
machine with a Gaussian kernel (scikit-learn), which reads handwritten digits as well as small networks do and trains in
seconds. Clips are of one size; of any size and of other things, `evaluation/packed_judge.py` reads them.

The clip's class is what most of its frames are read as. How good the judge is must be measured on real clips of a
held-out split before its word on generated ones counts for anything.
"""

import numpy as np
from einops import rearrange, reduce
from scipy import ndimage
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC


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
