"""Clips of any shape from packed rows: each is its own, whatever shares its row."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from walt.denoiser.packed import PackedDenoiser
from walt.diffusion.schedules import DiscreteLinear
from walt.diffusion.steppers import ancestral
from walt.generation.packed_stage import PackedStage
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm, Pixels

SHAPES = [(1, 6, 4), (2, 4, 4), (1, 2, 12), (1, 6, 4), (1, 8, 8)]
LABELS = [0, 1, -1, 0, 4]
LENGTH = 24


@pytest.fixture(scope='module')
def stage(random_parameters):
    """Of pixels in patches of 2 x 2, with noise of its own in every step and guided."""
    module = PackedDenoiser(LENGTH, 3, 3, (2, 6, 6), classes=5, layers=((1, 0, 0), (0, 2, 2)), width=8, depth=2,
                            heads=1, patch=2)  # fmt: skip
    cond = {name: jnp.zeros((1, *shape), jnp.int32) for name, shape in module.conditions.items()}
    cond['estimate'] = jnp.zeros((1, *module.latent_shape))
    params = random_parameters(module, cond['estimate'], jnp.zeros(1), cond, scale=0.1)
    return PackedStage(module, params, Pixels(), DiscreteLinear(), 'v', True, ancestral(), 3, 2.0, make_mesh())


@pytest.fixture(scope='module')
def clips(stage):
    return stage.clips(SHAPES, LABELS, seed=0, rows=2)


def test_clips_have_the_shapes_that_were_asked_for_in_their_order(clips):
    assert [clip.shape for clip in clips] == [(*shape, 3) for shape in SHAPES]
    assert all(clip.dtype == np.uint8 and clip.std() > 5 for clip in clips)
    assert not np.array_equal(clips[0], clips[3])  # the same shape and label, another number


def test_a_clip_is_made_by_seed_and_number_not_by_the_rows_it_is_made_in(stage, clips):
    """Another number of rows; fewer clips, so that others share its row. Pixels are rounded, so at most one apart."""
    for made in (stage.clips(SHAPES, LABELS, seed=0, rows=1), stage.clips(SHAPES[:3], LABELS[:3], seed=0, rows=1)):
        for one, other in zip(clips, made):
            np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)
    assert stage.rows([stage.grid(shape) for shape in SHAPES]) != stage.rows([stage.grid(s) for s in SHAPES[:3]])
    assert not np.array_equal(stage.clips(SHAPES[:1], LABELS[:1], seed=1, rows=1)[0], clips[0])


def test_a_label_counts_for_its_clip_alone(stage, clips):
    other = stage.clips(SHAPES, [*LABELS[:2], 3, *LABELS[3:]], seed=0, rows=2)
    apart = [np.abs(one.astype(int) - two.astype(int)).max() for one, two in zip(clips, other)]
    assert apart[2] > 1 and max(apart[:2] + apart[3:]) <= 1


def test_latents_are_decoded_by_the_tokenizer_shape_by_shape(stage, tiny_tokenizer):
    norm = LatentNorm(jnp.array([0.5, 0, -0.5]), jnp.array([1.0, 2.0, 3.0]))
    frozen = FrozenTokenizer(tiny_tokenizer.module, tiny_tokenizer.params, norm)
    of_latents = dataclasses.replace(stage, frozen=frozen)
    shapes = [(3, 8, 8), (1, 4, 12)]
    assert of_latents.grid(shapes[0]) == (2, 2, 2) and of_latents.grid(shapes[1]) == (1, 1, 3)
    made = of_latents.clips(shapes, [0, 1], seed=0, rows=1)
    assert [clip.shape for clip in made] == [(3, 8, 8, 3), (1, 4, 12, 3)]


def test_what_cannot_be_made_is_refused(stage):
    with pytest.raises(ValueError, match=r'patches of \(1, 2, 2\) do not tile a clip of \(1, 5, 4\)'):
        stage.clips([(1, 5, 4)], None, 0, 1)
    with pytest.raises(ValueError, match='25 tokens, does not fit a row of 1 to 24'):
        stage.clips([(1, 10, 10)], None, 0, 1)
    with pytest.raises(ValueError, match=r'labels \[5, 7\] are not in 0 .. 4'):
        stage.clips([(1, 4, 4)] * 3, [5, 0, 7], 0, 1)
    with pytest.raises(ValueError, match='for every clip, not 1 and 2'):
        stage.clips([(1, 4, 4)], [0, 1], 0, 1)
