"""Pixels are uint8 on disk and on the wire, float32 in [0, 1] in the networks."""

import jax.numpy as jnp


def from_uint8(video_BTHWC):
    """uint8 0..255 -> float32 in [0, 1]. Raises `ValueError` on another dtype: nobody has to guess the range."""
    if video_BTHWC.dtype != jnp.uint8:
        raise ValueError(f'expected a video of uint8 in 0..255, got {video_BTHWC.dtype}')
    return video_BTHWC.astype(jnp.float32) / 255


def to_uint8(video_BTHWC):
    """float32 -> uint8, clipped to [0, 1] and rounded."""
    return jnp.round(jnp.clip(video_BTHWC, 0, 1) * 255).astype(jnp.uint8)
