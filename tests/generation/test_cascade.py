"""Cascades: which stage is given what, chunk by chunk, and what comes of it."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import Letters

from walt.generation.cascade import Cascade, border_jump
from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.randomness import stream
from walt.tokenizer.frozen import LatentNorm


@dataclasses.dataclass(frozen=True)
class Told(Stage):
    """A stage that writes down what it is told and given, and whose clips are numbered.

    The latents of its n-th chunk are n all over, and frame t of the clip that they stand for is 20 n + t.
    """

    rows: list = dataclasses.field(default_factory=list)
    encoded: list = dataclasses.field(default_factory=list)
    decoded: list = dataclasses.field(default_factory=list)

    def latents(self, rows, key_B):
        self.rows.append(rows | {'key': key_B})
        return np.full((len(key_B), *self.denoiser.latent_shape), len(self.rows) - 1, np.float32)

    def encode(self, video_BTHWC, pictures=False):
        self.encoded.append(video_BTHWC)
        _, frames, *size, _ = video_BTHWC.shape
        latents, *shape = self.frozen.module.latent_shape(1 if pictures else frames, *size)
        shape = (len(video_BTHWC), frames if pictures else latents, *shape)
        return np.full(shape, 1000 + float(video_BTHWC[0, 0, 0, 0, 0]), np.float32)

    def decode(self, z_BTHWC, pictures=False):
        self.decoded.append(z_BTHWC)
        frames, *size = self.clip_shape
        video_T = 20 * z_BTHWC[0, 0, 0, 0, 0] + np.arange(len(z_BTHWC[0]) if pictures else frames)
        return np.broadcast_to(video_T[:, None, None, None], (len(z_BTHWC), len(video_T), *size)).astype(np.uint8)


@pytest.fixture
def told(build_stage):
    """told(upsample=1, **fields) -> a stage of 17 frames that predicts frames: 16x16, or 32x32 above that."""

    def told(upsample=1, side=4, **fields):
        shape = (5, side * upsample, side * upsample, 3)
        fields = dict(latent_shape=shape, upsample=upsample, frame_prediction=True) | fields
        return build_stage(kind=Told, **fields)

    return told


def given(video_BTHWC) -> list[int]:
    """The numbers of a clip's frames."""
    return video_BTHWC[0, :, 0, 0, 0].tolist()


def run(cascade, request=None, frames=None, **options):
    return list(cascade.clips(request or Request([-1]), 0, 2, frames, **options))


def test_a_cascade_without_stages_or_without_a_base_is_refused(told):
    with pytest.raises(ValueError, match='one stage or more'):
        Cascade(())
    with pytest.raises(ValueError, match=r'no base: it takes low-resolution latents of \(5, 4, 4, 3\)'):
        Cascade((told(2),))


def test_resolutions_that_do_not_follow_one_another_are_refused_with_both(told):
    with pytest.raises(ValueError, match=r'stage 2 takes .* of \(5, 4, 4, 3\), stage 1 makes \(5, 8, 8, 3\)'):
        Cascade((told(side=8), told(2)))
    with pytest.raises(ValueError, match=r'stage 3 takes .* of \(5, 4, 4, 3\), stage 2 makes \(5, 8, 8, 3\)'):
        Cascade((told(), told(2), told(2)))
    with pytest.raises(ValueError, match=r'stage 2 takes .* of None, stage 1 makes \(5, 4, 4, 3\)'):
        Cascade((told(), told()))
    Cascade((told(), told(2), told(2, side=8)))


def test_resolutions_are_compared_in_pixels_where_tokenizers_differ(told, build_stage, frozen):
    """A tokenizer with twice the spatial stride has half the latents of the same clip."""
    module = frozen.module.clone(spatial_strides=(2, 4))
    coarse = build_stage(
        latent_shape=(5, 4, 4, 3), upsample=2, frame_prediction=True, frozen=frozen.replace(module=module)
    )
    with pytest.raises(ValueError, match=r'stage 2 takes .* of \(5, 2, 2, 3\), stage 1 makes \(5, 4, 4, 3\)'):
        Cascade((told(side=8), coarse))
    assert Cascade((told(), coarse)).last.clip_shape == (17, 32, 32, 3)


def test_a_later_stage_that_goes_on_from_fewer_frames_than_the_base_is_refused_with_both(told):
    fewer = told(2, sampling={'most_given': 1})
    with pytest.raises(ValueError, match='stage 2 goes on from 1 latent frames at the most, the base from 2'):
        Cascade((told(), fewer))
    Cascade((told(sampling={'most_given': 1}), fewer))


CHUNKS = {None: 1, 1: 1, 17: 1, 18: 2, 29: 2, 30: 3, 41: 3, 42: 4}


@pytest.mark.parametrize(('frames', 'count'), CHUNKS.items())
def test_a_chunk_of_17_frames_adds_12(frames, count, told):
    cascade, steps = Cascade((told(), told(2))), []
    assert cascade.given == 5 and cascade.chunks(frames) == count
    (clips,) = run(cascade, frames=frames, progress=lambda: steps.append(1))
    assert clips.shape == (1, frames or 17, 32, 32, 3) and clips.dtype == np.uint8
    assert [len(stage.rows) for stage in cascade.stages] == [count, count] and len(steps) == 2 * count
    # Chunk 0 whole; of each later one the frames that were not given.
    whole = [number for chunk in range(count) for number in range(20 * chunk + (5 if chunk else 0), 20 * chunk + 17)]
    assert given(clips) == whole[: frames or 17]


def test_lengths_that_cannot_be_made_are_refused_with_both_values(told):
    with pytest.raises(ValueError, match='18 frames are asked for, a chunk has 17, and the base predicts no frames'):
        Cascade((told(frame_prediction=False), told(2))).chunks(18)
    with pytest.raises(ValueError, match='a chunk has 17 frames and goes on from 17: none is new'):
        Cascade((told(sampling={'most_given': 5}),)).chunks(18)
    with pytest.raises(ValueError, match='1 frame or more, not 0'):
        Cascade((told(),)).chunks(0)


def test_each_chunk_is_given_the_last_frames_of_its_own_resolution(told):
    cascade = Cascade((told(), told(2)))
    run(cascade, frames=41)
    for side, stage in zip((16, 32), cascade.stages):
        assert [given(video) for video in stage.encoded] == [[12, 13, 14, 15, 16], [32, 33, 34, 35, 36]]
        assert {video.shape[1:] for video in stage.encoded} == {(5, side, side, 3)}
        assert [rows['given_BT'][0].tolist() for rows in stage.rows] == [[False] * 5] + [[True] * 2 + [False] * 3] * 2
        assert [rows['frames'][0, :, 0, 0, 0].tolist() for rows in stage.rows] == [
            [0] * 5,
            [1012, 1012, 0, 0, 0],
            [1032, 1032, 0, 0, 0],
        ]


def test_nobody_decodes_what_nobody_looks_at(told):
    """Nobody goes on from the last chunk of the base."""
    cascade = Cascade((told(), told(2)))
    run(cascade, frames=29)
    assert [len(stage.decoded) for stage in cascade.stages] == [1, 2]


def test_a_later_stage_that_predicts_no_frames_is_given_none(told):
    cascade = Cascade((told(), told(2, frame_prediction=False)))
    run(cascade, Request(frames_NTHWC=np.zeros((1, 5, 32, 32, 3), np.uint8)), frames=29)
    assert set(cascade.last.rows[1]) == {'low', 'key'} and not cascade.last.encoded
    assert len(cascade.stages[0].encoded) == 2


def test_a_users_frames_begin_the_first_chunk_at_every_resolution(told, rng):
    """The base sees the mean of the pixels that each of its own covers."""
    video = rng.integers(256, size=(1, 5, 32, 32, 3), dtype=np.uint8)
    cascade = Cascade((told(), told(2)))
    run(cascade, Request(frames_NTHWC=video), frames=29)
    base, finer = (stage.encoded[0] for stage in cascade.stages)
    np.testing.assert_array_equal(finer, video.repeat(2, 0))  # the batch of two is filled up
    cells = [video[:, :, down::2, across::2].astype(float) for down in (0, 1) for across in (0, 1)]
    np.testing.assert_allclose(base[:1], np.mean(cells, 0), atol=0.5)
    assert [len(stage.encoded) for stage in cascade.stages] == [2, 2]


def test_frames_of_another_size_than_the_last_stages_are_refused_with_both(told):
    cascade = Cascade((told(), told(2)))
    with pytest.raises(ValueError, match='given frames are 16x16, the clips 32x32'):
        run(cascade, Request(frames_NTHWC=np.zeros((1, 5, 16, 16, 3), np.uint8)))
    assert not any(stage.rows for stage in cascade.stages)


def test_latents_are_handed_on_as_they_are_where_the_tokenizer_is_the_same(told):
    cascade = Cascade((told(), told(2)))
    run(cascade, frames=29)
    assert [float(rows['low'].max()) for rows in cascade.last.rows] == [0, 1]
    assert {rows['low'].shape for rows in cascade.last.rows} == {(2, 5, 4, 4, 3)}


@pytest.mark.parametrize('what', ['norm', 'params', 'module'])
def test_latents_are_handed_on_by_way_of_pixels_where_the_tokenizer_is_another(what, told, frozen):
    if what == 'norm':
        other = frozen.replace(norm=LatentNorm(frozen.norm.mean_C, 2 * frozen.norm.std_C))
    elif what == 'params':
        other = frozen.replace(params=jax.tree.map(lambda leaf: leaf + (leaf.ndim == 1), frozen.params))
    else:
        other = frozen.replace(module=frozen.module.clone(dtype='bfloat16'))
    cascade = Cascade((told(), told(2, frozen=other)))
    run(cascade)
    (video,), (rows,) = cascade.last.encoded, cascade.last.rows
    assert given(video) == list(range(17)) and video.shape == (2, 17, 16, 16, 3)
    assert (rows['low'] == 1000).all()


def test_every_chunk_of_every_stage_has_keys_of_its_own_the_first_those_of_the_clips(told):
    cascade = Cascade((told(), told(2)))
    run(cascade, Request([-1] * 3), frames=41)
    keys = [np.asarray(jax.random.key_data(rows['key'])) for stage in cascade.stages for rows in stage.rows]
    drawn = {tuple(key) for key_B in keys for key in key_B.tolist()}
    assert len(drawn) == 2 * 3 * 4  # stages, chunks, clips, of which the last fills a batch up
    clips = stream(jax.random.key(0), 'clip', np.arange(4))
    np.testing.assert_array_equal(np.concatenate([keys[0], keys[3]]), jax.random.key_data(clips))


def test_a_later_stage_is_told_of_labels_and_prompts_what_it_was_trained_with(told):
    request = Request([3, -1], ['a dog', ''])
    cascade = Cascade((told(classes=10, text_shape=(3, 4)), told(2), told(2, side=8, text_shape=(3, 4))))
    run(cascade, request)
    base, without, text = (stage.rows[0] for stage in cascade.stages)
    assert base['label'].tolist() == [3, 10] and not {'label', 'text'} & set(without)
    for rows in (base, text):
        np.testing.assert_array_equal(rows['text'], Letters().encode(['a dog', ''])[0])


def test_what_a_stage_cannot_do_is_refused_before_anything_is_made(told):
    """A label that is no class of the second stage; pictures, where it knows clips only."""
    few = Cascade((told(classes=10), told(2, classes=3)))
    with pytest.raises(ValueError, match=r'labels \[7\] are not in 0 \.\. 2'):
        run(few, Request([1, 7]))
    clips = Cascade((told(images=True), told(2)))
    with pytest.raises(ValueError, match='pictures are asked for, but the denoiser was trained without'):
        run(clips, Request([-1], pictures=True))
    with pytest.raises(ValueError, match='prompts are asked for, but the denoiser was trained without'):
        run(Cascade((told(), told(2, text_shape=(3, 4)))), Request(prompts=['a dog']))
    assert not few.stages[0].rows and not clips.stages[0].rows


def test_pictures_have_no_length(told):
    stage = told(images=True)
    with pytest.raises(ValueError, match='pictures have no length, and 17 frames are asked for'):
        run(Cascade((stage,)), Request([-1], pictures=True), frames=17)
    (stacks,) = run(Cascade((stage,)), Request([-1], pictures=True))
    assert stacks.shape == (1, 5, 16, 16, 3) and stage.rows[0]['image'].all()


def test_pictures_stay_pictures_on_their_way_to_another_tokenizer(told, frozen):
    other = frozen.replace(norm=LatentNorm(frozen.norm.mean_C, 2 * frozen.norm.std_C))
    cascade = Cascade((told(images=True), told(2, images=True, frozen=other)))
    (stacks,) = run(cascade, Request([-1], pictures=True))
    assert stacks.shape == (1, 5, 32, 32, 3) and given(cascade.last.encoded[0]) == [0, 1, 2, 3, 4]
    assert cascade.last.rows[0]['low'].shape == (2, 5, 4, 4, 3) and cascade.last.rows[0]['image'].all()


def video_of(greys) -> np.ndarray:
    return np.broadcast_to(np.uint8(greys)[:, None, None, None], (len(greys), 4, 4, 3))


def test_a_video_that_changes_evenly_has_no_seam():
    assert border_jump(video_of(range(0, 123, 3)), 17, 5) == pytest.approx(1)


@pytest.mark.parametrize('frames', [18, 29, 41])
def test_a_seam_counts_as_many_times_as_it_is_larger_than_other_changes(frames):
    """Frames 17 and 29 are the first ones of the second and third chunk."""
    greys = np.arange(frames) + 4 * (np.arange(frames) >= 17) + 4 * (np.arange(frames) >= 29)
    assert border_jump(video_of(greys), 17, 5) == pytest.approx(5)
    assert border_jump(video_of(greys), 10, 0) < 1.01  # elsewhere than where the chunks meet


def test_a_video_of_one_chunk_has_no_border():
    with pytest.raises(ValueError, match='17 frames in chunks of 17 has no border'):
        border_jump(video_of(range(17)), 17, 5)


def test_a_still_video_with_a_seam_has_a_finite_jump():
    assert 1 < border_jump(video_of([0] * 17 + [9] * 12), 17, 5) < np.inf
