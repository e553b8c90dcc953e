"""How large a picture is trained on: a side length is drawn, the aspect ratio stays (NaViT, arXiv:2307.06304, 3.2).

A clip of height H and width W, drawn the side length r, gets as many patches of ph x pw pixels as come next to

    h w ph pw = r^2,     h ph / (w pw) = H / W

so r is the side of the square with as many pixels, and sides are rounded to whole patches. NaViT finds it best to draw
side lengths from a normal distribution with mean -0.5 and standard deviation 1, cut off at -1 and 1, which are then
mapped to the least and the greatest side: small pictures come more often, and a few are large.

     N_t(-0.5, 1)  ..##########..            -1 -> low, 1 -> high
                 ################..
               -1  -0.5    0       1

A clip that would have more tokens than a row is made just so small that it has not.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

Resolution = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(u_N, native_N) -> side_N: numbers in (0, 1), and side lengths of the clips as they are -> those to train on."""


@dataclasses.dataclass(frozen=True)
class Native:
    """Every clip as large as it is. Latents, which cannot be resized, are packed with this one."""

    def __call__(self, u_N: np.ndarray, native_N: np.ndarray) -> np.ndarray:
        return native_N


NATIVE = Native()


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Every clip with as many pixels as a square with this side."""

    side: float

    def __post_init__(self):
        _check(self.side, self.side)

    def __call__(self, u_N: np.ndarray, native_N: np.ndarray) -> np.ndarray:
        return np.full(len(u_N), float(self.side))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Side lengths uniform between `low` and `high`."""

    low: float
    high: float

    def __post_init__(self):
        _check(self.low, self.high)

    def __call__(self, u_N: np.ndarray, native_N: np.ndarray) -> np.ndarray:
        return self.low + (self.high - self.low) * u_N


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """Side lengths from a normal distribution, cut off at -1 and 1, which stand for `low` and `high`."""

    low: float
    high: float
    mean: float = -0.5
    std: float = 1.0

    def __post_init__(self):
        _check(self.low, self.high)
        if self.std <= 0:
            raise ValueError(f'std is positive, not {self.std}')

    def __call__(self, u_N: np.ndarray, native_N: np.ndarray) -> np.ndarray:
        x_N = truncated_normal(u_N, self.mean, self.std, -1, 1)
        return self.low + (self.high - self.low) * (x_N + 1) / 2


def truncated_normal(u: np.ndarray, mean, std: float, low, high) -> np.ndarray:
    """Numbers in (0, 1) -> a normal distribution cut off at `low` and `high`, by its inverse distribution function."""
    from_u, to_u = (special.ndtr((bound - mean) / std) for bound in (low, high))
    return np.clip(mean + std * special.ndtri(from_u + (to_u - from_u) * u), low, high)


def grids(side_N: np.ndarray, sizes_N3: np.ndarray, patch: Sequence[int], length: int) -> np.ndarray:
    """int32 (N, 3): (t, h, w) in patches of (pt, ph, pw), for clips of (T, H, W) pixels and side lengths in pixels.

    At least one patch and at most `length` of them; frames that do not fill a patch are left off.

    Raises:
        ValueError: if a clip has fewer frames than a patch, or more patches of frames than `length`.
    """
    (pt, ph, pw), (frames_N, height_N, width_N) = patch, np.asarray(sizes_N3, np.int64).T
    t_N = frames_N // pt
    if len(t_N) and not 1 <= t_N.min() <= t_N.max() <= length:
        raise ValueError(
            f'clips of {frames_N.min()} to {frames_N.max()} frames do not fit patches of {pt} frames '
            f'in rows of {length} tokens'
        )
    most_N = length // t_N  # patches of a frame
    aspect_N = np.sqrt(height_N / width_N)

    def sides(side_N, whole):
        h_N, w_N = whole(side_N * aspect_N / ph), whole(side_N / aspect_N / pw)
        return np.maximum(h_N, 1).astype(np.int64), np.maximum(w_N, 1).astype(np.int64)

    h_N, w_N = sides(side_N, np.rint)
    # With its sides rounded down, a clip of this area has at most `most_N` patches, unless a side was less than one.
    small_h_N, small_w_N = sides(np.sqrt(most_N * (ph * pw)), np.floor)
    small_h_N = np.minimum(small_h_N, most_N)
    small_w_N = np.minimum(small_w_N, most_N // small_h_N)
    too_many_N = h_N * w_N > most_N
    h_N, w_N = np.where(too_many_N, small_h_N, h_N), np.where(too_many_N, small_w_N, w_N)
    return np.stack([t_N, h_N, w_N], axis=1).astype(np.int32)


def _check(low: float, high: float) -> None:
    if not 0 < low <= high:
        raise ValueError(f'side lengths rise from above 0, but are {low} to {high}')
