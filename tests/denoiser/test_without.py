"""Nothing in place of a condition, for guidance and for dropout; and frames that are given."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt.denoiser.conditions import NullText, given_frames, without

NULL_TEXT = NullText(jnp.full((3, 5), 7.0), jnp.array([True, False, False]))


@pytest.fixture(params=[(), (2,)], ids=['clips', 'stacks'])
def cond(request, rng):
    """Two rows of everything, labels and texts for each row or for each of two pictures."""
    lead = (2, *request.param)
    return {
        'label': jnp.ones(lead, jnp.int32),
        'text': jnp.asarray(rng.normal(size=(*lead, 3, 5)), jnp.float32),
        'text_mask': jnp.ones((*lead, 3), bool),
        'frames': jnp.asarray(rng.normal(size=(2, 2, 4, 4, 3)), jnp.float32),
        'frames_mask': jnp.ones((2, 2)),
        'low': jnp.ones((2, 2, 2, 2, 3)),
        'low_t': jnp.ones(2),
        'image': jnp.ones(2, bool),
    }


NOTHING = {
    'label': {'label': 10},
    'text': {'text': NULL_TEXT.text_SE, 'text_mask': NULL_TEXT.mask_S},
    'frames': {'frames': 0, 'frames_mask': 0},
}


@pytest.mark.parametrize('parts', [('label',), ('text',), ('frames',), ('label', 'text'), ()], ids=str)
@pytest.mark.parametrize('rows_B', [None, [True, False]], ids=['all', 'some'])
def test_nothing_stands_in_place_of_the_parts_named_in_the_rows_chosen_and_nowhere_else(parts, rows_B, cond):
    before = dict(cond)
    chosen = None if rows_B is None else jnp.array(rows_B)
    after = without(cond, parts, classes=10, null_text=NULL_TEXT, rows_B=chosen)
    nothing = {name: value for part in parts for name, value in NOTHING[part].items()}
    assert list(after) == list(cond) and cond == before  # the same objects
    for name, value in after.items():
        assert value.dtype == cond[name].dtype and value.shape == cond[name].shape
        for row, taken in enumerate(rows_B or [True, True]):
            expected = nothing[name] if taken and name in nothing else cond[name][row]
            np.testing.assert_array_equal(value[row], jnp.broadcast_to(expected, cond[name][row].shape), name)


def test_all_that_guidance_takes_away_is_label_text_and_frames(cond):
    every = without(cond, classes=10, null_text=NULL_TEXT)
    named = without(cond, ('label', 'text', 'frames'), classes=10, null_text=NULL_TEXT)
    for name in cond:
        np.testing.assert_array_equal(every[name], named[name])
        assert (every[name] is cond[name]) == (name in ('low', 'low_t', 'image'))


def test_parts_that_a_denoiser_does_not_have_are_passed_over(cond):
    only_low = {'low': cond['low']}
    assert without(only_low, classes=0) == only_low


def test_what_cannot_be_taken_away_is_refused_with_what_can(cond):
    with pytest.raises(ValueError, match=r"\['image', 'low'\] cannot .*\('label', 'text', 'frames'\)"):
        without(cond, ('low', 'label', 'image'), classes=10, null_text=NULL_TEXT)


def test_a_text_cannot_be_taken_away_without_the_null_text(cond):
    with pytest.raises(ValueError, match=r"'text' .* it is None"):
        without(cond, ('text',), classes=10)
    without(cond, ('label', 'frames'), classes=10)


def test_given_frames_are_the_latents_where_given_and_zero_elsewhere(rng):
    z = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 2)), jnp.float32)
    given_BT = jnp.array([[True, True, False], [False, False, False]])
    clean, noisy = given_frames(z, given_BT), given_frames(z, given_BT, jnp.array([0.5, 0.25]))
    for told in (clean, noisy):
        np.testing.assert_array_equal(told['frames'][0], z[0] * np.array([1, 1, 0])[:, None, None, None])
        np.testing.assert_array_equal(told['frames'][1], 0)
        assert told['frames_mask'].dtype == jnp.float32
    np.testing.assert_array_equal(clean['frames_mask'], given_BT)
    np.testing.assert_array_equal(noisy['frames_mask'], [[0.5, 0.5, 0], [0, 0, 0]])
