"""Whether clips made from captions can be told by which caption they were made from.

Clips become vectors: the last activations of a frozen network of pictures, averaged over positions and frames. Against
a gallery of real clips, one of each caption, the rank of a sample is the place of its own caption's clip in order of
likeness (cosine, after the gallery's mean is taken away): 1 is right, and (N + 1) / 2 what chance gives on average.
"""

import jax
import numpy as np

from walt.features.perceptual import PerceptualDistance


def embed(network: PerceptualDistance, videos_NTHWC: np.ndarray, frames: int = 5) -> np.ndarray:
    """uint8 clips (N, T, H, W, 3) -> float32 (N, C), from `frames` evenly spaced frames of each.

    Raises:
        ValueError: if frames are smaller than the network needs.
    """
    if min(videos_NTHWC.shape[2:4]) < network.smallest:
        raise ValueError(f'{network.name} needs {network.smallest} pixels a side, clips are {videos_NTHWC.shape}')
    picked = np.linspace(0, videos_NTHWC.shape[1] - 1, frames).round().astype(int)
    last = jax.jit(lambda weights, frames_NHWC: network.features(weights, frames_NHWC)[-1].mean((1, 2)))
    rows = [last(network.weights, np.float32(video[picked]) / 255) for video in videos_NTHWC]
    return np.stack(jax.device_get(rows)).mean(1)


def ranks(samples_NC: np.ndarray, gallery_NC: np.ndarray) -> np.ndarray:
    """The rank of row i of the gallery in order of likeness to sample i: int (N,), from 1.

    Raises:
        ValueError: if there are not as many of one as of the other.
    """
    if samples_NC.shape != gallery_NC.shape:
        raise ValueError(f'{samples_NC.shape} samples for a gallery of {gallery_NC.shape}')
    apart = [rows_NC - gallery_NC.mean(0) for rows_NC in (samples_NC, gallery_NC)]
    samples, gallery = (x_NC / np.maximum(np.linalg.norm(x_NC, axis=1, keepdims=True), 1e-12) for x_NC in apart)
    likeness_NN = samples @ gallery.T
    return 1 + (likeness_NN > np.diag(likeness_NN)[:, None]).sum(1)


def retrieval(rank_N: np.ndarray) -> dict[str, float]:
    """What ranks in a gallery of as many clips come to: the median, and shares of the first places."""
    return {
        'gallery': len(rank_N),
        'median_rank': float(np.median(rank_N)),
        'first': float((rank_N == 1).mean()),
        'first_ten': float((rank_N <= 10).mean()),
    }
