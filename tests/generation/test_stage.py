"""A stage: labels and a seed become clips, one by one whatever the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from walt.denoiser.conditions import NullText, abstract
from walt.diffusion.schedules import DiscreteLinear
from walt.diffusion.steppers import Ddim
from walt.generation.cascade import Cascade
from walt.generation.request import Request
from walt.generation.stage import Stage, Weak
from walt.parallel.mesh import AXES, make_mesh
from walt.randomness import stream


@pytest.fixture(scope='module')
def stage(small_denoiser, frozen):
    """Guided, self-conditioned, with a sampler that draws noise in every step."""
    return Stage(
        denoiser=small_denoiser.module,
        params=small_denoiser.params,
        frozen=frozen,
        schedule=DiscreteLinear(),
        parametrisation='v',
        self_conditioning=True,
        stepper=Ddim(1.0),
        steps=2,
        guidance=1.5,
        mesh=make_mesh(),
    )


LABELS = [3, 0, 7, 7, 1]


def clips(stage, labels, seed=0, batch_size=2):
    return list(Cascade((stage,)).clips(Request(labels), seed, batch_size))


@pytest.fixture(scope='module')
def batches(stage):
    return clips(stage, LABELS)


def test_clips_come_in_batches_as_many_as_labels(batches):
    assert [batch.shape for batch in batches] == [(2, 5, 16, 16, 3), (2, 5, 16, 16, 3), (1, 5, 16, 16, 3)]
    assert {batch.dtype for batch in batches} == {np.dtype('uint8')}


def test_clips_of_one_label_differ_by_their_index(batches):
    assert (batches[1][0] != batches[1][1]).mean() > 0.1


def test_a_clip_is_the_same_in_another_batch(stage, batches):
    """At most one grey level of rounding: another batch size is another compiled program."""
    (together,) = clips(stage, LABELS, batch_size=5)
    np.testing.assert_allclose(together.astype(int), np.concatenate(batches).astype(int), atol=1)


def test_a_clip_is_the_same_beside_other_labels(stage, batches):
    others = clips(stage, [3, 9, 2, 7])
    np.testing.assert_array_equal(others[0][0], batches[0][0])
    np.testing.assert_array_equal(others[1][1], batches[1][1])
    assert (others[0][1] != batches[0][1]).any()


def test_the_same_seed_gives_the_same_clips_and_another_seed_others(stage, batches):
    (again,), (other,) = (clips(stage, LABELS[:2], seed) for seed in (0, 1))
    np.testing.assert_array_equal(again, batches[0])
    assert (other != again).mean() > 0.1


CHANGES = [{'guidance': 1.0}, {'rescale': 1.0}, {'self_conditioning': False}, {'stepper': Ddim(0.0)}]


@pytest.mark.parametrize('change', CHANGES, ids=str)
def test_guidance_self_conditioning_and_sampler_all_matter(stage, batches, change):
    (other,) = clips(dataclasses.replace(stage, **change), LABELS[:2])
    assert (other != batches[0]).mean() > 0.01


@pytest.mark.parametrize(('labels', 'wrong'), [([0, 10], r'\[10\]'), ([-2, 3, 12], r'\[-2, 12\]')])
def test_labels_that_are_no_classes_are_refused_with_the_range(stage, labels, wrong):
    """The null class is one of them."""
    with pytest.raises(ValueError, match=rf'labels {wrong} are not in 0 .. 9'):
        clips(stage, labels)


def test_a_batch_that_the_devices_do_not_divide_is_refused(stage):
    many = dataclasses.replace(stage, mesh=AbstractMesh((4, 1, 1, 1), AXES))
    with pytest.raises(ValueError, match=r'batch_size 6 .* 4 devices'):
        clips(many, [0], batch_size=6)


def test_a_cascade_of_one_stage_is_the_stage(stage, batches):
    key_B = stream(jax.random.key(0), 'clip', jnp.arange(2))
    z = stage.latents(stage.conditions(Request(LABELS[:2])), key_B)
    np.testing.assert_array_equal(stage.decode(z), batches[0])


@pytest.fixture(scope='module')
def full(build_stage, random_parameters):
    """Text, given frames, low resolution."""
    stage = build_stage(text_shape=(3, 4), frame_prediction=True, upsample=2)
    module = stage.denoiser
    cond = {name: jnp.zeros(entry.shape, entry.dtype) for name, entry in abstract(module.conditions, 1).items()}
    return dataclasses.replace(stage, params=random_parameters(module, cond['estimate'], jnp.zeros(1), cond))


@pytest.fixture(scope='module')
def rows(full):
    """Of two clips with a prompt, a given frame and low-resolution latents each."""
    rng = np.random.default_rng(7)
    video = rng.integers(256, size=(2, 1, 16, 16, 3), dtype=np.uint8)
    low = rng.normal(size=(2, 2, 2, 2, 3)).astype(np.float32)
    return full.conditions(Request(prompts=['a dog', 'snow'], frames_NTHWC=video), low)


def latents(stage, rows, clips=(0, 1)) -> np.ndarray:
    return np.asarray(stage.latents(rows, stream(jax.random.key(0), 'clip', jnp.array(clips))))


@pytest.fixture(scope='module')
def sampled(full, rows):
    return latents(full, rows)


@pytest.mark.parametrize('noise', ['', 'frames_noise', 'low_noise'])
def test_given_frames_are_kept_as_they_are_and_noise_on_conditions_changes_the_others(noise, full, rows, sampled):
    """Also where the denoiser sees the given frames under noise."""
    stage = dataclasses.replace(full, **{noise: 0.5}) if noise else full
    other = latents(stage, rows) if noise else sampled
    np.testing.assert_array_equal(other[:, 0], rows['frames'][:, 0])
    assert np.abs(other[:, 1] - rows['frames'][:, 1]).max() > 0.1
    if noise:
        assert np.abs(other[:, 1] - sampled[:, 1]).max() > 1e-3
        beside_another = latents(stage, rows, clips=(0, 7))
        np.testing.assert_array_equal(beside_another[0], other[0])  # noise is a clip's own


def test_guidance_towards_frames_changes_the_others_and_has_a_scale_of_its_own(full, rows, sampled):
    guided = dataclasses.replace(full, frames_guidance=2.0)
    other = latents(guided, rows)
    np.testing.assert_array_equal(other[:, 0], rows['frames'][:, 0])
    assert np.abs(other[:, 1] - sampled[:, 1]).max() > 1e-3
    none = rows | {'given_BT': np.zeros((2, 2), bool)}
    np.testing.assert_allclose(latents(guided, none), latents(full, none), atol=1e-4)


def test_autoguidance_goes_away_from_another_denoiser(full, rows):
    """Away from itself is nowhere."""
    expected = latents(dataclasses.replace(full, guidance=1.0), rows)
    np.testing.assert_allclose(away_from(full, full.params, 3.0, rows), expected, atol=1e-4)
    assert np.abs(away_from(full, half(full.params), 3.0, rows)[:, 1] - expected[:, 1]).max() > 1e-2


def away_from(full, params, scale, rows, rescale=0.0):
    weak = Weak(full.denoiser, params)
    return latents(dataclasses.replace(full, guidance=1.0, weak=weak, weak_guidance=scale, rescale=rescale), rows)


def half(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf) / 2, params)


@pytest.mark.slow
def test_autoguidance_of_scale_1_is_none_and_it_is_rescaled_as_all_guidance_is(full, rows):
    other = half(full.params)
    expected = latents(dataclasses.replace(full, guidance=1.0), rows)
    np.testing.assert_allclose(away_from(full, other, 1.0, rows), expected, atol=1e-4)
    away, rescaled = (away_from(full, other, 3.0, rows, rescale) for rescale in (0.0, 1.0))
    assert np.abs(rescaled - away)[:, 1].max() > 1e-2


def test_where_no_frame_is_given_all_are_sampled(full, rows, sampled):
    none = latents(full, rows | {'given_BT': np.zeros((2, 2), bool)})
    assert np.abs(none[:, 0] - rows['frames'][:, 0]).max() > 0.1
    assert np.abs(none[:, 1] - sampled[:, 1]).max() > 1e-3


@pytest.mark.parametrize('name', ['text', 'text_mask', 'frames', 'low'])
def test_every_condition_changes_its_own_clip_and_no_other(name, full, rows, sampled):
    value = rows[name].copy()
    value[1] = ~value[1] if name == 'text_mask' else value[1] + 1
    other = latents(full, rows | {name: value})
    np.testing.assert_array_equal(other[0], sampled[0])
    assert np.abs(other[1, 1] - sampled[1, 1]).max() > 1e-3


def test_guidance_is_away_from_the_null_text(full, rows, sampled):
    """With the null text for a prompt there is nothing to guide towards."""
    null = full.null_text
    told_nothing = rows | {
        'text': np.broadcast_to(null.text_SE, rows['text'].shape),
        'text_mask': np.broadcast_to(null.mask_S, rows['text_mask'].shape),
    }
    unguided = dataclasses.replace(full, guidance=1.0)
    np.testing.assert_allclose(latents(full, told_nothing), latents(unguided, told_nothing), atol=1e-4)
    assert np.abs(latents(unguided, rows) - sampled).max() > 1e-3
    elsewhere = dataclasses.replace(full, null_text=NullText(null.text_SE + 1, null.mask_S))
    assert np.abs(latents(elsewhere, rows) - sampled).max() > 1e-3


def test_pictures_of_a_stack_are_decoded_and_encoded_one_by_one(stage, rng):
    z = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    stacks, clips = stage.decode(z, pictures=True), stage.decode(z)
    assert stacks.shape == (2, 2, 16, 16, 3) and clips.shape == (2, 5, 16, 16, 3)
    z_again = stage.encode(stacks, pictures=True)
    assert z_again.shape == z.shape
    for frame in range(2):
        alone = stage.decode(z[:, frame : frame + 1])
        np.testing.assert_allclose(stacks[:, frame].astype(int), alone[:, 0].astype(int), atol=1)
        np.testing.assert_allclose(
            z_again[:, frame], stage.encode(stacks[:, frame : frame + 1])[:, 0], rtol=1e-4, atol=1e-4
        )
