"""Parameters for another picture format: positions are interpolated, and all the rest stays as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.denoiser.aspect import change_aspect, change_rows, resize
from walt.denoiser.packed import PackedDenoiser
from walt.denoiser.walt import Walt
from walt.nn.embeddings import places, relative_index

SQUARE = dict(latent_shape=(2, 4, 4, 3), spatiotemporal_window=(2, 2))
WIDE = dict(latent_shape=(2, 4, 6, 3), spatiotemporal_window=(2, 3))


def tables_of(params):
    return {name: layer['relative_position']['table'] for name, layer in params['blocks'].items()}


def with_tables(params, tables):
    blocks = {name: layer | {'relative_position': {'table': tables[name]}} for name, layer in params['blocks'].items()}
    return params | {'blocks': blocks}


def test_equal_extents_are_the_identity(tiny_denoiser):
    square = tiny_denoiser(**SQUARE)
    same = change_aspect(square.params, square.module, square.module)
    assert jax.tree.structure(same) == jax.tree.structure(square.params)
    jax.tree.map(np.testing.assert_array_equal, same, square.params)


def test_only_positions_change_and_the_original_stays_as_it_was(tiny_denoiser):
    square, wide = tiny_denoiser(**SQUARE), tiny_denoiser(**WIDE)
    before = jax.tree.map(np.array, square.params)
    after = change_aspect(square.params, square.module, wide.module)
    jax.tree.map(np.testing.assert_array_equal, square.params, before)
    other = []
    for (path, leaf), (_, old) in zip(*map(jax.tree_util.tree_leaves_with_path, (after, before))):
        if leaf.shape != old.shape or (leaf != old).any():
            other.append(jax.tree_util.keystr(path))
    assert other == [
        "['blocks']['spatial']['relative_position']['table']",
        "['blocks']['spatiotemporal']['relative_position']['table']",
        "['position']['space']",
    ]


def test_absolute_positions_are_a_picture_that_is_resized_with_its_corners_on_the_corners(tiny_denoiser):
    square, wide = tiny_denoiser(**SQUARE), tiny_denoiser(**WIDE)
    old = square.params['position']['space']
    new = change_aspect(square.params, square.module, wide.module)['position']['space']
    assert new.shape == (4, 6, 8)
    np.testing.assert_allclose(new[:, [0, -1]], old[:, [0, -1]], atol=1e-6)
    np.testing.assert_allclose(new[:, 1], 0.4 * old[:, 0] + 0.6 * old[:, 1], atol=1e-6)  # 1 of 5 steps is 0.6 of 3


def test_a_bias_that_is_linear_in_the_offset_is_the_same_line_over_the_larger_window(tiny_denoiser):
    """b + dt + 10 dh + 100 dw between tokens of 2x2x2; in 2x2x3 an offset of 2 columns is what 1 was."""
    square, wide = tiny_denoiser(**SQUARE), tiny_denoiser(**WIDE)

    def line(window, scale_W):
        offsets = np.stack(np.meshgrid(*[np.arange(1 - n, n) for n in window], indexing='ij'), -1).reshape(-1, 3)
        return jnp.asarray(0.5 + offsets @ np.array([1, 10, 100 * scale_W]), jnp.float32)

    flat = {name: jnp.full_like(table, 3.0) for name, table in tables_of(square.params).items()}
    flat['spatiotemporal'] = flat['spatiotemporal'].at[:, :, 1].set(line((2, 2, 2), 1.0))
    tables = tables_of(change_aspect(with_tables(square.params, flat), square.module, wide.module))
    np.testing.assert_allclose(tables['spatial'], 3.0, atol=1e-6)
    np.testing.assert_allclose(tables['spatiotemporal'][0, :, 0], 3.0, atol=1e-6)
    np.testing.assert_allclose(tables['spatiotemporal'][0, :, 1], line((2, 2, 3), 0.5), atol=1e-4)

    bias_PP = tables['spatiotemporal'][0, :, 1][relative_index((2, 2, 3))]
    offset_PP3 = places((2, 2, 3))[:, None] - places((2, 2, 3))[None]
    np.testing.assert_allclose(bias_PP, 0.5 + offset_PP3 @ np.array([1, 10, 50.0]), atol=1e-4)


def test_no_offset_and_the_largest_offsets_keep_their_bias(tiny_denoiser):
    square, wide = tiny_denoiser(**SQUARE), tiny_denoiser(**WIDE)
    old, new = (tables_of(p) for p in (square.params, change_aspect(square.params, square.module, wide.module)))
    for name in old:
        (_, before, _), (_, after, _) = old[name].shape, new[name].shape
        for there, here in [(0, 0), (before // 2, after // 2), (before - 1, after - 1)]:
            np.testing.assert_allclose(new[name][:, here], old[name][:, there], atol=1e-6)


@pytest.mark.parametrize('rope', [False, True], ids=['learned', 'rotary'])
def test_the_formats_of_the_paper_have_the_parameters_of_the_target(rope, random_inputs):
    """1x16x16 -> 1x16x28 and 5x8x8 -> 5x8x14."""
    square = Walt((5, 16, 16, 8), width=16, depth=2, heads=2, spatiotemporal_window=(8, 8), rope=rope)
    wide = dataclasses.replace(square, latent_shape=(5, 16, 28, 8), spatiotemporal_window=(8, 14), parent=None)

    def abstract(module):
        return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *random_inputs(module, rows=1)))['params']

    from_square = jax.eval_shape(lambda params: change_aspect(params, square, wide), abstract(square))
    assert jax.tree.map(str, from_square) == jax.tree.map(str, abstract(wide))
    if not rope:
        assert tables_of(from_square)['spatial'].shape == (1, 31 * 55, 2)
        assert tables_of(from_square)['spatiotemporal'].shape == (1, 9 * 15 * 27, 2)


def test_a_denoiser_of_the_other_format_runs_on_the_result(tiny_denoiser):
    square, wide = tiny_denoiser(**SQUARE), tiny_denoiser(**WIDE)
    params = change_aspect(square.params, square.module, wide.module)
    prediction = wide.apply(params, *wide.inputs)
    assert prediction.shape == (2, 2, 4, 6, 3) and np.isfinite(prediction).all()


def test_differences_that_no_interpolation_bridges_are_named_with_both_values(tiny_denoiser):
    square = tiny_denoiser(**SQUARE).module
    others = {
        r'^the denoiser to start from .*: heads: 2 there, 1 here$': {'heads': 1},
        r'hidden: 0 there, 24 here; rope: False there, True here': {'hidden': 24, 'rope': True, 'heads': 1},
        r'frames: 2 there, 3 here': {'latent_shape': (3, 4, 4, 3)},
        r'channels: 3 there, 5 here': {'latent_shape': (2, 4, 4, 5)},
        r'classes: 0 there, 7 here': {'classes': 7},
    }
    for message, fields in others.items():
        with pytest.raises(ValueError, match=message):
            change_aspect({}, square, dataclasses.replace(square, parent=None, **fields))


def test_what_no_parameter_depends_on_may_differ(tiny_denoiser):
    square = tiny_denoiser(**SQUARE)
    other = dataclasses.replace(square.module, remat='blocks', dtype=jnp.bfloat16, parent=None)
    jax.tree.map(np.testing.assert_array_equal, change_aspect(square.params, square.module, other), square.params)


def test_no_parameter_of_packed_rows_depends_on_their_length_or_on_the_windows():
    rows, params = PackedDenoiser(length=128, most=4, channels=3, extent=(1, 8, 8)), {'blocks': {}}
    longer = dataclasses.replace(rows, length=256, most=9, layers=((0, 0, 0), (1, 4, 4)), remat='blocks', parent=None)
    assert change_rows(params, rows, longer) is params
    whole = dataclasses.replace(rows, layers=((0, 0, 0),), parent=None)
    for other, message in {
        dataclasses.replace(rows, channels=4, parent=None): 'channels: 3 there, 4 here',
        whole: r'layers: \(\(1, 0, 0\), \(0, 8, 8\)\) there, \(\(0, 0, 0\),\) here',
    }.items():
        with pytest.raises(ValueError, match=message):
            change_rows(params, rows, other)
    with pytest.raises(ValueError, match='is a Walt, this one a PackedDenoiser'):
        change_rows(params, Walt((2, 8, 8, 3)), rows)


def test_resizing_keeps_lines_and_ends_and_repeats_an_axis_of_one():
    x = 3.0 + 2 * np.arange(4)[:, None] - np.arange(3)[None]
    new = resize(jnp.asarray(x), (7, 5))
    np.testing.assert_allclose(new, 3.0 + np.arange(7)[:, None] - 0.5 * np.arange(5)[None], atol=1e-6)
    np.testing.assert_allclose(resize(new, (4, 3)), x, atol=1e-6)
    np.testing.assert_array_equal(resize(jnp.asarray([[1.0, 5.0]]), (3, 2)), [[1.0, 5.0]] * 3)
    np.testing.assert_array_equal(resize(jnp.asarray([1.0, 2.0, 9.0]), (1,)), [2.0])
