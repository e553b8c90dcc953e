"""Windows: a reshape that loses nothing, and attention that stays inside."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt.denoiser.windows import check_window, merge, partition, split
from walt.nn.attention import Attention

# (grid, window): the paper's models at 1:1 and at 9:16.
PAPER = [
    ((5, 16, 16), (1, 16, 16)),
    ((5, 16, 16), (5, 8, 8)),
    ((5, 16, 28), (1, 16, 28)),
    ((5, 16, 28), (5, 8, 14)),
    ((1, 32, 32), (1, 16, 16)),
]
# Windows of which there are several along every axis, which those of no model of the paper are.
ALL = [*PAPER, ((4, 6, 8), (2, 3, 2))]


def token_numbers(grid):
    """Each token its own number, counted in (t, h, w) order: (1, T, H, W, 1)."""
    return np.arange(np.prod(grid)).reshape(1, *grid, 1)


@pytest.mark.parametrize(('grid', 'window'), ALL, ids=str)
def test_partition_is_a_bijection_that_merge_undoes(grid, window):
    x = np.concatenate([token_numbers(grid), -1 - token_numbers(grid)])
    windows = partition(x, window)
    assert windows.shape == (2, np.prod(grid) // np.prod(window), np.prod(window), 1)
    assert len(np.unique(windows)) == x.size
    np.testing.assert_array_equal(merge(windows, window, grid), x)


@pytest.mark.parametrize(('grid', 'window'), ALL, ids=str)
def test_a_window_is_a_box_with_its_tokens_in_time_height_width_order(grid, window):
    for tokens_P in partition(token_numbers(grid), window)[0, ..., 0]:
        place_3P = np.stack(np.unravel_index(tokens_P, grid))
        inside_3P = place_3P - place_3P[:, :1]
        np.testing.assert_array_equal(np.ravel_multi_index(tuple(inside_3P), window), np.arange(np.prod(window)))
        assert (place_3P[:, 0] % window == 0).all()


@pytest.mark.parametrize('window', [(1, 4, 6), (2, 2, 3), (1, 2, 3)], ids=str)
def test_window_attention_is_full_attention_under_a_block_mask(window, rng, random_parameters):
    grid, heads = (2, 4, 6), 2
    x_BTHWD = jnp.asarray(rng.normal(size=(2, *grid, 8)), jnp.float32)
    x_BLD = x_BTHWD.reshape(2, -1, 8)
    layer = Attention(heads)
    params = random_parameters(layer, x_BLD[:, None])

    window_of_L = np.empty(np.prod(grid), int)
    for number, tokens_P in enumerate(partition(token_numbers(grid), window)[0, ..., 0]):
        window_of_L[tokens_P] = number
    mask_LL = np.where(window_of_L[:, None] == window_of_L, 0, -np.inf).astype(np.float32)
    full = layer.apply({'params': params}, x_BLD[:, None], jnp.broadcast_to(mask_LL, (heads, *mask_LL.shape)))[:, 0]

    windowed = merge(layer.apply({'params': params}, partition(x_BTHWD, window)), window, grid)
    np.testing.assert_allclose(windowed.reshape(x_BLD.shape), full, atol=1e-5)


@pytest.mark.parametrize('window', [(5, 7, 8), (2, 8, 8), (5, 8, 0), (5, 8, 32)], ids=str)
def test_a_window_that_does_not_tile_the_grid_is_refused_with_both(window):
    extents = ', '.join(map(str, window))
    with pytest.raises(ValueError, match=rf'\({extents}\) tokens .* \(5, 16, 16\) tokens'):
        check_window(window, (5, 16, 16))


@pytest.mark.parametrize(('grid', 'window'), PAPER, ids=str)
def test_the_windows_of_the_paper_tile(grid, window):
    check_window(window, grid)


@pytest.mark.parametrize(
    ('window', 'shards', 'expected'),
    [
        ((1, 16, 16), 1, ('windows', None)),  # one device has all
        ((5, 8, 8), 2, ('windows', None)),  # a row of windows each
        ((1, 16, 16), 5, None),  # frames could be shared, but not the rows of a frame between layers
        ((1, 16, 16), 4, (None, 'queries')),
        ((1, 8, 8), 2, ('windows', None)),
        ((1, 8, 8), 4, None),
        ((5, 8, 8), 4, None),
        ((5, 16, 16), 2, None),
    ],
    ids=str,
)
def test_devices_share_windows_or_frames_or_queries(window, shards, expected):
    if expected:
        assert split(window, (5, 16, 16), shards) == expected
    else:
        with pytest.raises(ValueError, match=rf'{shards} devices cannot share .* \(5, 16, 16\)'):
            split(window, (5, 16, 16), shards)


def test_windows_as_large_as_a_frame_move_whole_where_devices_divide_the_frames():
    assert split((1, 16, 16), (4, 16, 16), 4) == ('windows', None)


@pytest.mark.parametrize(('grid', 'window'), ALL, ids=str)
def test_windows_are_counted_by_rows_first_so_that_a_part_of_the_rows_is_a_part_of_the_windows(grid, window):
    rows = grid[1] // window[1]
    upper = partition(token_numbers(grid)[:, :, : grid[1] // rows], window)
    np.testing.assert_array_equal(partition(token_numbers(grid), window)[:, : upper.shape[1]], upper)
