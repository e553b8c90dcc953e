"""What a stage tells its denoiser: of every combination of labels, prompts, frames, pictures and low resolution."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Letters

from walt.generation.request import Request

TEXT = {'text_shape': (3, 4)}
KINDS = {
    'labels': {'classes': 10},
    'text': TEXT,
    'frames': {'frame_prediction': True},
    'low': {'upsample': 2},
    'images': {'images': True},
}
COMBINATIONS = [names for size in range(6) for names in itertools.combinations(KINDS, size)]


@pytest.fixture
def video(rng):
    """Two whole clips."""
    return rng.integers(256, size=(2, 5, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize('names', COMBINATIONS, ids='-'.join)
def test_conditions_are_those_of_the_denoiser_whatever_it_was_trained_with(names, build_stage, video):
    stage = build_stage(**{key: value for name in names for key, value in KINDS[name].items()})
    shapes = stage.denoiser.conditions
    request = Request(
        labels=[3, 4] if 'labels' in names else [-1, -1],
        prompts=['a dog', ''] if 'text' in names else None,
        frames_NTHWC=video[:, :1] if 'frames' in names else None,
    )
    low = jnp.ones((2, *shapes['low'])) if 'low' in names else None
    rows = stage.conditions(request, low)
    expected = {name: shape for name, shape in shapes.items() if name not in ('estimate', 'frames_mask', 'low_t')}
    expected |= {'given_BT': (2,)} if 'frames' in names else {}
    assert {name: value.shape[1:] for name, value in rows.items()} == expected
    assert {name: len(value) for name, value in rows.items()} == dict.fromkeys(expected, 2)
    # What is compiled for planning is what runs.
    abstract = {name: (leaf.shape, leaf.dtype) for name, leaf in stage.abstract_rows(2).items() if name != 'key'}
    assert abstract == {name: (value.shape, value.dtype) for name, value in rows.items()}


def test_no_label_in_particular_is_the_null_class(build_stage):
    stage = build_stage(classes=10, **TEXT)
    assert stage.conditions(Request([0, -1, 9]))['label'].tolist() == [0, 10, 9]
    assert stage.conditions(Request(prompts=['a', 'b']))['label'].tolist() == [10, 10]


def test_no_prompt_is_the_empty_prompt_which_is_the_null_text(build_stage):
    stage = build_stage(classes=10, **TEXT)
    for request, prompts in [(Request([1, 2]), ['', '']), (Request(prompts=['a dog', '']), ['a dog', ''])]:
        rows, (text_BSE, mask_BS) = stage.conditions(request), Letters().encode(prompts)
        np.testing.assert_array_equal(rows['text'], text_BSE)
        np.testing.assert_array_equal(rows['text_mask'], mask_BS)
    np.testing.assert_array_equal(rows['text'][1], stage.null_text.text_SE)
    np.testing.assert_array_equal(rows['text_mask'][1], stage.null_text.mask_S)


def test_each_frame_of_a_model_of_pictures_has_the_label_and_the_text_of_its_clip(build_stage):
    stage = build_stage(images=True, classes=10, **TEXT)
    text_BSE, mask_BS = Letters().encode(['a dog', 'snow'])
    for pictures in (False, True):
        rows = stage.conditions(Request([3, -1], ['a dog', 'snow'], pictures=pictures))
        assert rows['label'].tolist() == [[3, 3], [10, 10]] and rows['image'].tolist() == [pictures] * 2
        for frame in range(2):
            np.testing.assert_array_equal(rows['text'][:, frame], text_BSE)
            np.testing.assert_array_equal(rows['text_mask'][:, frame], mask_BS)


@pytest.mark.parametrize('latents', [1, 2])
def test_given_frames_have_the_latents_that_they_have_in_the_whole_clip(latents, build_stage, rng):
    """Nine frames; the first one or five are given. The encoder is causal."""
    stage = build_stage(frame_prediction=True, latent_shape=(3, 4, 4, 3))
    video = rng.integers(256, size=(2, 9, 16, 16, 3), dtype=np.uint8)
    rows = stage.conditions(Request(frames_NTHWC=video[:, : 4 * latents - 3]))
    z = stage.encode(video)
    np.testing.assert_allclose(rows['frames'][:, :latents], z[:, :latents], atol=1e-5)
    assert (rows['frames'][:, latents:] == 0).all() and np.abs(z[:, latents:]).max() > 0.1
    assert rows['given_BT'].tolist() == [[frame < latents for frame in range(3)]] * 2


def test_where_no_frames_are_given_none_are_shown(build_stage):
    rows = build_stage(frame_prediction=True).conditions(Request([-1]))
    assert not rows['given_BT'].any() and not rows['frames'].any()


def test_frames_of_another_size_or_number_are_refused_with_both(build_stage):
    def go_on(frames, height, width, **sampling):
        stage = build_stage(frame_prediction=True, latent_shape=(3, 4, 4, 3), sampling=sampling)
        return stage.conditions(Request(frames_NTHWC=np.zeros((1, frames, height, width, 3), np.uint8)))

    with pytest.raises(ValueError, match='given frames are 16x15, the clips 16x16'):
        go_on(1, 16, 15)
    with pytest.raises(ValueError, match=r'4 frames are not 1 \+ k \* 4'):
        go_on(4, 16, 16)
    with pytest.raises(ValueError, match='9 frames are given, the denoiser was trained with 5 at the most'):
        go_on(9, 16, 16)
    with pytest.raises(ValueError, match='5 frames are given, the denoiser was trained with 1 at the most'):
        go_on(5, 16, 16, most_given=1)


def test_low_resolution_latents_that_are_missing_or_of_another_shape_are_refused_with_both(build_stage):
    stage = build_stage(upsample=2)
    with pytest.raises(ValueError, match=r'low-resolution latents of \(2, 2, 2, 3\), none are given'):
        stage.conditions(Request([-1]))
    with pytest.raises(ValueError, match=r'low-resolution latents of \(2, 2, 2, 3\), not \(2, 4, 4, 3\)'):
        stage.conditions(Request([-1]), jnp.zeros((1, 2, 4, 4, 3)))


def test_an_encoder_of_other_texts_is_refused_with_both_shapes(build_stage):
    stage = build_stage(**TEXT, sampling={'encode_text': Letters(length=2).encode})
    with pytest.raises(ValueError, match=r'the encoder gives a text of \(2, 4\), the denoiser takes \(3, 4\)'):
        stage.conditions(Request(prompts=['a']))


@pytest.mark.parametrize(
    ('asked', 'fields'),
    [
        ('labels', {'labels': [-1, 3]}),
        ('prompts', {'prompts': ['', 'a dog']}),
        ('frames', {'frames_NTHWC': np.zeros((2, 1, 16, 16, 3), np.uint8)}),
        ('pictures', {'labels': [-1], 'pictures': True}),
    ],
)
def test_what_a_denoiser_was_not_trained_with_cannot_be_asked_for(asked, fields, build_stage):
    kind = 'text' if asked == 'prompts' else 'images' if asked == 'pictures' else asked
    others = {key: value for name in KINDS if name not in (kind, 'low') for key, value in KINDS[name].items()}
    with pytest.raises(ValueError, match=f'^{asked} are asked for, but the denoiser was trained without$'):
        build_stage(**others).check(Request(**fields))
    build_stage(**others | KINDS[kind]).check(Request(**fields))


def test_nothing_in_particular_can_be_asked_of_any_denoiser(build_stage):
    assert build_stage().conditions(Request([-1, -1])) == {}
    assert build_stage().conditions(Request(prompts=['', ''])) == {}
