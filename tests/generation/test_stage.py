"""A stage: labels and a seed become clips, one by one whatever the batch."""

import dataclasses

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from walt.diffusion.schedules import DiscreteLinear
from walt.diffusion.steppers import Ddim
from walt.generation.cascade import Cascade
from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.parallel.mesh import AXES, make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm


@pytest.fixture(scope='module')
def stage(small_denoiser, small_tokenizer):
    """Guided, self-conditioned, with a sampler that draws noise in every step."""
    return Stage(
        denoiser=small_denoiser.module,
        params=small_denoiser.params,
        frozen=FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, LatentNorm.identity(3)),
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
    many = dataclasses.replace(stage, mesh=AbstractMesh((4, 1, 1), AXES))
    with pytest.raises(ValueError, match=r'batch_size 6 .* 4 devices'):
        clips(many, [0], batch_size=6)
