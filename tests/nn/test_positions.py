"""Factorised positions: a sum of what is said of frame, row and column, by count or by share of the clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.nn.embeddings import CURVES, FactorisedPosition, angles_at, places, rotary_angles

EXTENT = (2, 4, 6)


def at(module, params, place, size, width=24):
    """What is added to a token at `place` in a grid of `size`."""
    x, of = jnp.zeros((1, 1, width)), lambda three: jnp.array([[three]])
    return np.asarray(module.apply({'params': params}, x, of(place), of(size)))[0, 0]


def made(random_parameters, kind, fractional=False):
    module, three = FactorisedPosition(kind, EXTENT, fractional), jnp.zeros((1, 1, 3), jnp.int32)
    if kind == 'sinusoidal':
        return module, {}
    return module, random_parameters(module, jnp.zeros((1, 1, 24)), three, three)


@pytest.mark.parametrize('kind', CURVES)
def test_what_is_added_is_a_sum_over_the_axes_and_tells_places_apart(kind, random_parameters):
    """So the difference of two rows is the same in every column and frame."""
    module, params = made(random_parameters, kind)
    vectors = {tuple(place): at(module, params, list(place), EXTENT) for place in places(EXTENT).tolist()}
    for (t, h, w), vector in vectors.items():
        summed = vectors[t, 0, 0] + vectors[0, h, 0] + vectors[0, 0, w] - 2 * vectors[0, 0, 0]
        np.testing.assert_allclose(vector, summed, atol=1e-5)
    apart = np.array(list(vectors.values()))
    distances = np.abs(apart[:, None] - apart).max(-1) + np.eye(len(apart))
    assert distances.min() > 1e-2


@pytest.mark.parametrize('kind', CURVES)
def test_fractions_are_of_the_clip_and_counts_are_not(kind, random_parameters):
    absolute, params = made(random_parameters, kind)
    fractional = FactorisedPosition(kind, EXTENT, True)
    half = at(fractional, params, [1, 2, 3], EXTENT)
    for place, size in (([1, 1, 1], [2, 2, 2]), ([2, 4, 30], [4, 8, 60])):
        np.testing.assert_allclose(at(fractional, params, place, size), half, atol=1e-5)
    np.testing.assert_allclose(at(absolute, params, [1, 2, 3], [9, 9, 9]), half, atol=1e-5)


def test_learned_positions_are_the_tables_and_between_their_rows_the_lines(random_parameters):
    module, params = made(random_parameters, 'learned')
    tables = {letter: np.asarray(params['curves'][letter]) for letter in 'thw'}
    expected = tables['t'][1] + tables['h'][3] + tables['w'][5]
    np.testing.assert_allclose(at(module, params, [1, 3, 5], EXTENT), expected, atol=1e-6)
    between = at(FactorisedPosition('learned', EXTENT, True), params, [0, 3, 0], [1, 8, 1])  # 1.5 of 4
    np.testing.assert_allclose(between, tables['t'][0] + tables['h'][1:3].mean(0) + tables['w'][0], atol=1e-6)


def test_what_was_never_learned_is_not_made_up(random_parameters):
    module, params = made(random_parameters, 'learned')
    assert np.isnan(at(module, params, [0, 4, 0], (2, 5, 6))).all()


def test_axes_of_one_token_have_no_waves(random_parameters):
    of_pictures = FactorisedPosition('sinusoidal', (1, 4, 6))
    vector = at(of_pictures, {}, [0, 3, 5], (1, 4, 6))
    assert np.abs(vector).min() > 0  # twelve numbers of the column, twelve of the row
    np.testing.assert_array_equal(at(of_pictures, {}, [7, 3, 5], (9, 4, 6)), vector)


def test_angles_of_tokens_are_those_of_the_window_they_lie_in():
    np.testing.assert_allclose(angles_at(places(EXTENT), 16), rotary_angles(EXTENT, 16))
    place = jnp.asarray(places(EXTENT), jnp.float32)
    np.testing.assert_allclose(jax.jit(lambda p: angles_at(p, 16))(place), rotary_angles(EXTENT, 16), atol=1e-6)


def test_a_kind_that_there_is_not_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"among \['fourier', 'learned', 'sinusoidal'\], not 'polar'"):
        FactorisedPosition('polar', EXTENT)
