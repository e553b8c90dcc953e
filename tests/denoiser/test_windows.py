"""Windows: a reshape that loses nothing, and attention that stays inside."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt.denoiser.windows import check_window, merge, partition
from walt.nn.attention import Attention

# (grid, window): the paper's models at 1:1 and at 9:16.
PAPER = [
    ((5, 16, 16), (1, 16, 16)),
    ((5, 16, 16), (5, 8, 8)),
    ((5, 16, 28), (1, 16, 28)),
    ((5, 16, 28), (5, 8, 14)),
    ((1, 32, 32), (1, 16, 16)),
]


def token_numbers(grid):
    """Each token its own number, counted in (t, h, w) order: (1, T, H, W, 1)."""
    return np.arange(np.prod(grid)).reshape(1, *grid, 1)


@pytest.mark.parametrize(('grid', 'window'), PAPER, ids=str)
def test_partition_is_a_bijection_that_merge_undoes(grid, window):
    x = np.concatenate([token_numbers(grid), -1 - token_numbers(grid)])
    windows = partition(x, window)
    assert windows.shape == (2 * np.prod(grid) // np.prod(window), np.prod(window), 1)
    assert len(np.unique(windows)) == x.size
    np.testing.assert_array_equal(merge(windows, window, grid), x)


@pytest.mark.parametrize(('grid', 'window'), PAPER, ids=str)
def test_a_window_is_a_box_with_its_tokens_in_time_height_width_order(grid, window):
    for tokens_P in partition(token_numbers(grid), window)[..., 0]:
        place_3P = np.stack(np.unravel_index(tokens_P, grid))
        inside_3P = place_3P - place_3P[:, :1]
        np.testing.assert_array_equal(np.ravel_multi_index(tuple(inside_3P), window), np.arange(np.prod(window)))
        assert (place_3P[:, 0] % window == 0).all()


@pytest.mark.parametrize('window', [(1, 4, 6), (2, 2, 3)], ids=str)
def test_window_attention_is_full_attention_under_a_block_mask(window, rng, random_parameters):
    grid, heads = (2, 4, 6), 2
    x_BTHWD = jnp.asarray(rng.normal(size=(2, *grid, 8)), jnp.float32)
    x_BLD = x_BTHWD.reshape(2, -1, 8)
    layer = Attention(heads)
    params = random_parameters(layer, x_BLD)

    window_of_L = np.empty(np.prod(grid), int)
    for number, tokens_P in enumerate(partition(token_numbers(grid), window)[..., 0]):
        window_of_L[tokens_P] = number
    mask_LL = np.where(window_of_L[:, None] == window_of_L, 0, -np.inf).astype(np.float32)
    full = layer.apply({'params': params}, x_BLD, jnp.broadcast_to(mask_LL, (heads, *mask_LL.shape)))

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
