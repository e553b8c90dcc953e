"""Embeddings of time, class, place and offset."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.nn.embeddings import (
    LabelEmbedding,
    PooledText,
    RelativePositionBias,
    SpaceTimePosition,
    TimeEmbedding,
    relative_index,
    rotary_angles,
    rotate,
    sinusoid,
)

WINDOWS = [(1, 3, 4), (2, 3, 2), (5, 1, 1)]


def places(window):
    """The tokens of a window in (t, h, w) order."""
    return [np.array(place) for place in itertools.product(*map(range, window))]


@pytest.mark.parametrize('window', WINDOWS, ids=str)
def test_every_offset_has_one_row_of_its_own(window):
    index_PP = relative_index(window)
    rows = {}
    for (p, there), (q, here) in itertools.product(enumerate(places(window)), repeat=2):
        rows.setdefault(tuple(there - here), set()).add(int(index_PP[p, q]))
    assert all(len(row) == 1 for row in rows.values())
    spans = [2 * extent - 1 for extent in window]
    assert sorted(row for (row,) in rows.values()) == list(range(np.prod(spans)))


@pytest.mark.parametrize('window', WINDOWS, ids=str)
def test_the_opposite_offset_has_the_row_counted_from_the_other_end(window):
    index_PP = relative_index(window)
    last = np.prod([2 * extent - 1 for extent in window]) - 1
    np.testing.assert_array_equal(index_PP.T, last - index_PP)
    assert (np.diag(index_PP) == last // 2).all()


def test_bias_is_the_table_at_the_offset_for_every_head(random_parameters):
    layer = RelativePositionBias((2, 2, 3), heads=4)
    params = random_parameters(layer)
    assert params['table'].shape == (3 * 3 * 5, 4)
    bias_NPP = layer.apply({'params': params})
    assert bias_NPP.shape == (4, 12, 12)
    index_PP = relative_index((2, 2, 3))
    for head, p, q in [(0, 0, 0), (1, 3, 11), (3, 11, 3)]:
        assert bias_NPP[head, p, q] == params['table'][index_PP[p, q], head]


def test_sinusoid_is_cosines_and_sines_of_geometric_rates():
    t_B = jnp.array([0.0, 0.001, 0.37, 1.0])
    cos, sin = np.split(np.asarray(sinusoid(t_B, frequencies=8, max_period=100.0)), 2, axis=-1)
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-5)
    np.testing.assert_array_equal(cos[0], 1)
    np.testing.assert_array_equal(sin[0], 0)
    rates = 100.0 ** -(np.arange(4) / 4)  # from 1 down to just above 1 / max_period
    np.testing.assert_allclose(np.arctan2(sin[1], cos[1]), rates, atol=1e-5)
    np.testing.assert_allclose(cos[3], np.cos(1000 * rates), atol=1e-3)


def test_sinusoid_tells_all_1000_times_apart():
    embedded = np.asarray(sinusoid(jnp.arange(1, 1001) / 1000, frequencies=256))
    nearest = np.abs(np.diff(embedded, axis=0)).max(1)
    assert nearest.min() > 0.4


def test_sinusoid_is_float32_whatever_the_time_is():
    assert sinusoid(jnp.ones(1, jnp.bfloat16)).dtype == jnp.float32


def test_time_is_embedded_by_two_linear_layers_with_silu_between_them(random_parameters):
    layer, t_B = TimeEmbedding(width=4, frequencies=6), jnp.array([0.1, 0.8])
    params = random_parameters(layer, t_B)
    first, second = params['mlp']['first'], params['mlp']['second']
    hidden = jax.nn.silu(sinusoid(t_B, 6) @ first['kernel'] + first['bias'])
    expected = hidden @ second['kernel'] + second['bias']
    np.testing.assert_allclose(layer.apply({'params': params}, t_B), expected, atol=1e-5)


def test_a_pooled_text_is_the_mean_of_the_tokens_that_are_there(rng, random_parameters):
    layer, mask_BTS = PooledText(width=4), jnp.array([[[True, False, True]], [[False, True, False]]])
    text_BTSE = jnp.asarray(rng.normal(size=(2, 1, 3, 5)), jnp.float32)
    params = random_parameters(layer, text_BTSE, mask_BTS)

    def pooled(text, mask):
        return layer.apply({'params': params}, text, mask)

    means = jnp.stack([(text_BTSE[0, :, 0] + text_BTSE[0, :, 2]) / 2, text_BTSE[1, :, 1]])
    one_token = pooled(means[:, :, None], jnp.ones((2, 1, 1), bool))
    assert one_token.shape == (2, 1, 4) and np.abs(one_token[0] - one_token[1]).max() > 1e-3
    np.testing.assert_allclose(pooled(text_BTSE, mask_BTS), one_token, atol=1e-6)
    none = pooled(text_BTSE, jnp.zeros_like(mask_BTS))
    np.testing.assert_array_equal(none, pooled(jnp.zeros_like(text_BTSE), mask_BTS))


def test_the_null_class_has_a_row_after_the_classes(random_parameters):
    layer = LabelEmbedding(classes=3, width=4)
    params = random_parameters(layer, jnp.zeros(1, jnp.int32))
    assert params['table'].shape == (4, 4)
    rows = layer.apply({'params': params}, jnp.arange(4))
    np.testing.assert_array_equal(rows, params['table'])
    by_frame = layer.apply({'params': params}, jnp.array([[0, 3], [2, 2]]))
    np.testing.assert_array_equal(by_frame, params['table'][np.array([[0, 3], [2, 2]])])


def test_position_adds_a_vector_for_the_place_and_one_for_the_frame(rng, random_parameters):
    layer = SpaceTimePosition((2, 3, 4))
    x = jnp.asarray(rng.normal(size=(2, 2, 3, 4, 5)), jnp.float32)
    params = random_parameters(layer, x)
    y = layer.apply({'params': params}, x)
    for t, h, w in [(0, 0, 0), (1, 2, 0), (1, 0, 3)]:
        expected = x[:, t, h, w] + params['space'][h, w] + params['time'][t]
        np.testing.assert_allclose(y[:, t, h, w], expected, atol=1e-6)


def test_in_a_stack_of_pictures_every_frame_is_the_first(rng, random_parameters):
    layer = SpaceTimePosition((2, 3, 4))
    x = jnp.asarray(rng.normal(size=(2, 2, 3, 4, 5)), jnp.float32)
    params = random_parameters(layer, x)
    clips, mixed = (layer.apply({'params': params}, x, image_B) for image_B in (None, jnp.array([False, True])))
    np.testing.assert_array_equal(mixed[0], clips[0])
    expected = x[1] + params['space'] + params['time'][0]
    np.testing.assert_allclose(mixed[1], expected, atol=1e-6)


@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('head', [6, 16])
def test_products_of_turned_vectors_see_the_offset_of_their_places_only(window, head, rng):
    q_K, k_K = rng.normal(size=(2, head)).astype(np.float32)
    angles_PA = rotary_angles(window, head)
    q_PK, k_PK = (rotate(jnp.tile(x, (1, len(angles_PA), 1, 1)), angles_PA)[0, :, 0] for x in (q_K, k_K))
    products_PP = np.asarray(q_PK @ k_PK.T)
    np.testing.assert_allclose(np.diag(products_PP), q_K @ k_K, atol=1e-4)
    by_offset = {}
    for (p, there), (q, here) in itertools.product(enumerate(places(window)), repeat=2):
        by_offset.setdefault(tuple(there - here), []).append(products_PP[p, q])
    assert max(np.ptp(products) for products in by_offset.values()) < 1e-4
    different = sorted(np.mean(products) for products in by_offset.values())
    assert np.diff(different).min() > 1e-5 or len(different) == 1


def test_turning_keeps_lengths_and_dtypes(rng):
    x_BLNK = jnp.asarray(rng.normal(size=(2, 12, 3, 8)), jnp.float32)
    angles_PA = rotary_angles((2, 2, 3), 8)
    lengths = [jnp.linalg.norm(x, axis=-1) for x in (x_BLNK, rotate(x_BLNK, angles_PA))]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert rotate(x_BLNK.astype(jnp.bfloat16), angles_PA).dtype == jnp.bfloat16


@pytest.mark.parametrize(('head', 'pairs'), [(6, (1, 1, 1)), (16, (2, 3, 3)), (64, (8, 12, 12))])
def test_each_axis_turns_pairs_of_its_own_from_rate_1_downwards(head, pairs):
    """Rows and columns alike: one step down turns as far as one to the right."""
    angles_THWA = rotary_angles((2, 2, 2), head).reshape(2, 2, 2, -1)
    assert angles_THWA.dtype == np.float32 and angles_THWA.shape[-1] == head // 2
    steps = [angles_THWA[1, 0, 0], angles_THWA[0, 1, 0], angles_THWA[0, 0, 1]]
    assert tuple((step > 0).sum() for step in steps) == pairs
    assert (sum(step > 0 for step in steps) == 1).all()
    t, h, w = (step[step > 0] for step in steps)
    np.testing.assert_array_equal(h, w)
    for rates in (t, h):
        np.testing.assert_allclose(rates, 10_000.0 ** -(np.arange(len(rates)) / len(rates)), rtol=1e-5)


@pytest.mark.parametrize('head', [2, 4, 7, 9])
def test_a_head_without_a_pair_for_each_axis_is_refused(head):
    with pytest.raises(ValueError, match=f'even head width of 6 or more, not {head}'):
        rotary_angles((1, 1, 1), head)


def test_tables_are_float32_and_activations_keep_their_dtype():
    layer = SpaceTimePosition((2, 3, 4))
    x = jax.ShapeDtypeStruct((1, 2, 3, 4, 5), jnp.bfloat16)
    y, variables = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
