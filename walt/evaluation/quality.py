"""How close a reconstruction is to its original: PSNR and SSIM, on uint8 clips."""

import numpy as np
from skimage.metrics import structural_similarity


def psnr(video_NTHWC: np.ndarray, reference_NTHWC: np.ndarray) -> np.ndarray:
    """10 log10(255^2 / MSE) in dB over each whole clip: uint8 (N, T, H, W, C) twice -> (N,).

    Raises:
        ValueError: if the shapes differ or a clip is not uint8.
    """
    _check(video_NTHWC, reference_NTHWC)
    error = video_NTHWC.astype(np.float64) - reference_NTHWC
    mse_N = np.square(error).mean(axis=(1, 2, 3, 4))
    return 10 * np.log10(255**2 / np.maximum(mse_N, 1e-10))


def ssim(video_NTHWC: np.ndarray, reference_NTHWC: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), mean over frames: -> (N,).

    Raises:
        ValueError: if the shapes differ or a clip is not uint8.
    """
    _check(video_NTHWC, reference_NTHWC)

    def frame_ssim(frame_HWC, reference_HWC):
        return structural_similarity(
            frame_HWC, reference_HWC, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )

    return np.array(
        [np.mean([frame_ssim(*pair) for pair in zip(*clips)]) for clips in zip(video_NTHWC, reference_NTHWC)]
    )


def _check(video: np.ndarray, reference: np.ndarray) -> None:
    if video.shape != reference.shape or video.dtype != np.uint8 or reference.dtype != np.uint8:
        got = f'{video.dtype} {video.shape} and {reference.dtype} {reference.shape}'
        raise ValueError(f'expected two uint8 arrays of one shape, got {got}')
