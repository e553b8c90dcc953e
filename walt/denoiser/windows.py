"""Windows: boxes of latent tokens that attend to each other and to nothing else (W.A.L.T, section 4.2).

    spatial          1 x H x W        all tokens of one latent frame
    spatiotemporal   T x h x w        a patch of the frame through all latent frames

         spatial, T = 2                  spatiotemporal, 2 x 2 windows
     a a a a    b b b b                 a a b b    a a b b
     a a a a    b b b b                 a a b b    a a b b
     a a a a    b b b b                 c c d d    c c d d
     a a a a    b b b b                 c c d d    c c d d
     frame 0    frame 1                 frame 0    frame 1

Windows do not overlap and are not shifted: alternating the two shapes carries information everywhere. So window
attention is a reshape to B G P D, G windows of P tokens each, and dense attention.

Where `shards` devices share a clip, each has some of its rows of latents (`height`). Then either whole windows lie on a
device, with nothing to send; or windows as high as the frame are moved, frame by frame, so that whole frames do; or, if
there are not as many frames, devices share the queries of each frame, and all get its keys and values.

In packed rows clips have sizes of their own, which no window tiles. There a window is a number that its tokens share
(`window_ids`), those at the lower and right border have fewer tokens than others, and nothing is moved.
"""

import jax.numpy as jnp
from einops import rearrange

from walt.nn.attention import Split
from walt.nn.conv import Triple


def partition(x_BTHWD, window: Triple):
    """(B, T, H, W, D) -> (B, G, P, D): windows by row, column and frame; tokens of a window in (t, h, w) order."""
    pt, ph, pw = window
    return rearrange(x_BTHWD, 'B (T pt) (H ph) (W pw) D -> B (H W T) (pt ph pw) D', pt=pt, ph=ph, pw=pw)


def merge(x_BGPD, window: Triple, grid: Triple):
    """The inverse of `partition`; `grid` is (T, H, W) of the whole latent."""
    (pt, ph, pw), (frames, height, width) = window, grid
    return rearrange(
        x_BGPD,
        'B (H W T) (pt ph pw) D -> B (T pt) (H ph) (W pw) D',
        T=frames // pt,
        H=height // ph,
        W=width // pw,
        pt=pt,
        ph=ph,
        pw=pw,
    )


def window_ids(segment_BL, place_BL3, size_BE3, window: Triple):
    """int32 (B, L): which window of which clip a token is in, counted from 1 through its row; 0 at padding.

    `segment`, `place` and `size` are those of `walt.tokens`. An extent of 0 in `window` is all that a clip has.
    """
    extents = [
        jnp.full(size_BE3.shape[:2], 1) if not extent else -(-size_BE3[..., axis] // extent)
        for axis, extent in enumerate(window)
    ]
    windows_BE = extents[0] * extents[1] * extents[2]
    before_BE = jnp.cumsum(windows_BE, axis=1) - windows_BE
    clip_BL = jnp.maximum(segment_BL - 1, 0)

    def of_token(x_BE):
        return jnp.take_along_axis(x_BE, clip_BL, axis=1)

    t, h, w = (place_BL3[..., axis] // extent if extent else 0 for axis, extent in enumerate(window))
    number_BL = (t * of_token(extents[1]) + h) * of_token(extents[2]) + w
    return jnp.where(segment_BL > 0, 1 + of_token(before_BE) + number_BL, 0)


def check_window(window: Triple, grid: Triple) -> None:
    """Raises `ValueError` if the window does not tile the grid."""
    if any(extent < 1 or size % extent for extent, size in zip(window, grid)):
        raise ValueError(f'a window of {tuple(window)} tokens does not tile a grid of {tuple(grid)} tokens')


def split(window: Triple, grid: Triple, shards: int) -> Split:
    """How `shards` devices share the attention of the windows of a grid whose height they share.

    Raises:
        ValueError: if they cannot, naming the counts.
    """
    (frames, rows, columns), (of_time, height, _) = (g // w for g, w in zip(grid, window)), window
    if grid[1] % shards == 0:
        if rows % shards == 0 or (rows == columns == 1 and frames % shards == 0):
            return 'windows', None
        if rows == 1 and of_time == 1:
            return None, 'queries'
    raise ValueError(
        f'{shards} devices cannot share windows of {tuple(window)} tokens on a grid of {tuple(grid)}: they divide '
        f'neither {rows} rows of windows, nor {frames} frames of windows as large as a frame, nor {height} rows of one'
    )
