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
attention is a reshape to (B windows) P D and dense attention.
"""

from einops import rearrange

from walt.nn.conv import Triple


def partition(x_BTHWD, window: Triple):
    """(B, T, H, W, D) -> (B windows, P, D), tokens of a window in (t, h, w) order."""
    pt, ph, pw = window
    return rearrange(x_BTHWD, 'B (T pt) (H ph) (W pw) D -> (B T H W) (pt ph pw) D', pt=pt, ph=ph, pw=pw)


def merge(x_BPD, window: Triple, grid: Triple):
    """The inverse of `partition`; `grid` is (T, H, W) of the whole latent."""
    (pt, ph, pw), (frames, height, width) = window, grid
    return rearrange(
        x_BPD,
        '(B T H W) (pt ph pw) D -> B (T pt) (H ph) (W pw) D',
        T=frames // pt,
        H=height // ph,
        W=width // pw,
        pt=pt,
        ph=ph,
        pw=pw,
    )


def check_window(window: Triple, grid: Triple) -> None:
    """Raises `ValueError` if the window does not tile the grid."""
    if any(extent < 1 or size % extent for extent, size in zip(window, grid)):
        raise ValueError(f'a window of {tuple(window)} tokens does not tile a grid of {tuple(grid)} tokens')
