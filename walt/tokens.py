"""Packed rows: tokens of several pictures and clips of any size in one row of fixed length (NaViT, arXiv:2307.06304).

    clip (T, H, W, C) --patches--> tokens in (t, h, w) order --\
    clip (T, H, W, C) --patches--> tokens in (t, h, w) order ----> a row:  [1 1 1 1 1 2 2 2 2 2 2 2 2 3 3 3 0 0]
    clip (T, H, W, C) --patches--> tokens in (t, h, w) order --/            segment of every token; 0 is padding

A clip is made of pixels or of latents; a picture is a clip of one frame. A packed batch is a dict of arrays, of B rows
of L tokens, of at most E clips each:

    tokens   (B, L, C)         what is in a patch: (pt, ph, pw, channels), flattened in this order; zeros at padding
    segment  (B, L) int32      0 at padding, 1 .. E for the clips of a row, in their order
    place    (B, L, 3) int32   (t, h, w) of the token in the grid of its clip; zeros at padding
    size     (B, E, 3) int32   (t, h, w) extent of every clip's grid, in tokens, of the whole clip also where tokens of
                               it were dropped; zeros where a row has fewer clips than E, after all that it has

and whatever else a clip has, such as its `label`, as (B, E, ..): zeros where there is no clip, so a label of 0 counts
only where `size` is not zero. The functions here make and take apart single rows, which have the same names without B,
and single clips, which have `tokens` (n, C), `place` (n, 3), `size` (3,), and anything of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange

BY_TOKEN = ('tokens', 'segment', 'place')
"""Entries that have L; all others have E."""


def grid_of(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int]:
    """(t, h, w) extent in tokens of a clip of `shape` (T, H, W, ..) in patches of (pt, ph, pw).

    Raises:
        ValueError: if the patches do not tile the clip, naming both.
    """
    if any(extent < 1 or not size or size % extent for size, extent in zip(shape[:3], patch, strict=True)):
        raise ValueError(f'patches of {tuple(patch)} do not tile a clip of {tuple(shape[:3])}')
    return tuple(size // extent for size, extent in zip(shape, patch))


def places(size: Sequence[int]) -> np.ndarray:
    """int32 (n, 3): (t, h, w) of every token of a grid, in order."""
    return np.stack(np.meshgrid(*map(np.arange, size), indexing='ij'), axis=-1).reshape(-1, 3).astype(np.int32)


def from_clip(clip_THWC: np.ndarray, patch: Sequence[int]) -> dict[str, np.ndarray]:
    """A clip -> its `tokens`, `place` and `size`; the tokens keep the clip's dtype. Raises as `grid_of`."""
    size, (pt, ph, pw) = grid_of(clip_THWC.shape, patch), patch
    tokens_LC = rearrange(clip_THWC, '(t pt) (h ph) (w pw) C -> (t h w) (pt ph pw C)', pt=pt, ph=ph, pw=pw)
    return {'tokens': tokens_LC, 'place': places(size), 'size': np.array(size, np.int32)}


def to_clip(clip: Mapping[str, np.ndarray], patch: Sequence[int]) -> np.ndarray:
    """The inverse of `from_clip`: (T, H, W, C).

    Raises:
        ValueError: if tokens of the clip were dropped, naming the counts.
    """
    size, (pt, ph, pw) = tuple(map(int, clip['size'])), patch
    if not np.array_equal(clip['place'], places(size)):
        raise ValueError(f'a clip of {size} tokens is not whole, or not in order: {len(clip["place"])} tokens are left')
    names = dict(zip(('t', 'h', 'w'), size)) | {'pt': pt, 'ph': ph, 'pw': pw}
    return rearrange(clip['tokens'], '(t h w) (pt ph pw C) -> (t pt) (h ph) (w pw) C', **names)


def pack(clips: Sequence[Mapping[str, Any]], length: int, most: int) -> dict[str, np.ndarray]:
    """Clips, of the same entries, -> a row of `length` tokens (L) that has place for `most` clips (E).

    Raises:
        ValueError: if there are no clips, more than `most`, or more tokens than `length`; naming both numbers.
    """
    counts = [len(clip['tokens']) for clip in clips]
    if not 0 < len(clips) <= most or sum(counts) > length:
        raise ValueError(
            f'{len(clips)} clips of {sum(counts)} tokens for a row of {length} tokens of 1 to {most} clips'
        )
    row = {'segment': np.repeat(np.arange(1, len(clips) + 1, dtype=np.int32), counts)}
    for name in clips[0]:
        if name in BY_TOKEN:
            row[name] = np.concatenate([clip[name] for clip in clips])
        else:
            row[name] = np.stack([np.asarray(clip[name]) for clip in clips])
    return {name: _filled(value, length if name in BY_TOKEN else most) for name, value in row.items()}


def unpack(row: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The inverse of `pack`. Rows that a model made have the same names, so their clips come apart in the same way."""
    clips = []
    for number in range(np.count_nonzero(row['size'].all(-1))):
        own_L = row['segment'] == number + 1
        clips.append(
            {
                name: value[own_L] if name in BY_TOKEN else value[number]
                for name, value in row.items()
                if name != 'segment'
            }
        )
    return clips


def rows_of(batch: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """A batch -> its rows, for `unpack`."""
    return [{name: value[b] for name, value in batch.items()} for b in range(len(batch['segment']))]


def members(segment_BL, most: int):
    """(B, L, E) bool: which clip of its row a token is of; none at padding. Of NumPy's arrays or JAX's."""
    return segment_BL[..., None] == np.arange(1, most + 1)


def counts(segment_BL, most: int):
    """(B, E): how many tokens of every clip are in its row."""
    return members(segment_BL, most).sum(1)


def statistics(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How well rows are used, as scalars; `batch` may hold NumPy's arrays or JAX's.

    filled         share of the positions that hold a token
    clips_a_row    mean
    tokens_a_row   mean
    dropped        share of the clips' tokens that were dropped
    """
    rows, length = batch['segment'].shape
    tokens = (batch['segment'] > 0).sum()
    return {
        'filled': tokens / (rows * length),
        'clips_a_row': batch['size'].all(-1).sum() / rows,
        'tokens_a_row': tokens / rows,
        'dropped': 1 - tokens / batch['size'].prod(-1).sum(),
    }


def _filled(value: np.ndarray, length: int) -> np.ndarray:
    """With zeros behind it up to `length`."""
    return np.concatenate([value, np.zeros((length - len(value), *value.shape[1:]), value.dtype)])
