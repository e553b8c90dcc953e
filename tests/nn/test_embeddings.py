"""Embeddings of time, class, place and offset."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.nn.embeddings import LabelEmbedding, RelativePositionBias, SpaceTimePosition, relative_index, sinusoid

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


def test_the_null_class_has_a_row_after_the_classes(random_parameters):
    layer = LabelEmbedding(classes=3, width=4)
    params = random_parameters(layer, jnp.zeros(1, jnp.int32))
    assert params['table'].shape == (4, 4)
    rows = layer.apply({'params': params}, jnp.arange(4))
    np.testing.assert_array_equal(rows, params['table'])


def test_position_adds_a_vector_for_the_place_and_one_for_the_frame(rng, random_parameters):
    layer = SpaceTimePosition((2, 3, 4))
    x = jnp.asarray(rng.normal(size=(2, 2, 3, 4, 5)), jnp.float32)
    params = random_parameters(layer, x)
    y = layer.apply({'params': params}, x)
    for t, h, w in [(0, 0, 0), (1, 2, 0), (1, 0, 3)]:
        expected = x[:, t, h, w] + params['space'][h, w] + params['time'][t]
        np.testing.assert_allclose(y[:, t, h, w], expected, atol=1e-6)


def test_tables_are_float32_and_activations_keep_their_dtype():
    layer = SpaceTimePosition((2, 3, 4))
    x = jax.ShapeDtypeStruct((1, 2, 3, 4, 5), jnp.bfloat16)
    y, variables = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
