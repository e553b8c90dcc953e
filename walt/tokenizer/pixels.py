"""Pixels are uint8 on disk and on the wire, float32 in [0, 1] in the networks."""

import jax
import jax.numpy as jnp


def check_unit(video) -> None:
    """Raises `ValueError`, naming both ranges, unless the numbers of `video` are in [0, 1]."""
    low, high = float(video.min()), float(video.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f'expected pixels in 0..1, got {low:g}..{high:g}')


def check_brightness(video) -> None:
    """Raises `ValueError` on a uint8 video of nothing but 0 and 1: most likely [0, 1] that lost its fractions."""
    if video.size and video.max() <= 1:
        raise ValueError(f'expected a video of uint8 in 0..255, got one in {video.min()}..{video.max()}')


def from_uint8(video_BTHWC):
    """uint8 0..255 -> float32 in [0, 1]. Raises `ValueError` on another dtype: nobody has to guess the range."""
    if video_BTHWC.dtype != jnp.uint8:
        raise ValueError(f'expected a video of uint8 in 0..255, got {video_BTHWC.dtype}{_range(video_BTHWC)}')
    return video_BTHWC.astype(jnp.float32) / 255


def _range(x) -> str:
    return '' if isinstance(x, jax.core.Tracer) else f' in {x.min():g}..{x.max():g}'


def to_uint8(video_BTHWC):
    """float32 -> uint8, clipped to [0, 1] and rounded."""
    return jnp.round(jnp.clip(video_BTHWC, 0, 1) * 255).astype(jnp.uint8)


def shrink(pixels, factor: int):
    """uint8 (..., H, W, C) at 1 / `factor` of height and width, each pixel the mean of those it covers."""
    *leading, height, width, channels = pixels.shape
    cells = from_uint8(pixels).reshape(*leading, height // factor, factor, width // factor, factor, channels)
    return to_uint8(cells.mean((-4, -2)))
