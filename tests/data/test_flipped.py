"""A data set, and its mirror image after it."""

import jax
import numpy as np
import pytest

from walt import build
from walt.data.encoded import Encoded
from walt.data.flipped import Flipped
from walt.data.moving_digits import MovingDigits
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.training.latents import write_latents


@pytest.fixture(scope='module')
def clips():
    return MovingDigits('train', frames=5, size=16, digit_size=10, clips=3)


def test_every_clip_comes_twice_once_with_left_and_right_exchanged(clips):
    flipped = Flipped(clips)
    assert (len(flipped), flipped.num_classes, flipped.fps) == (6, clips.num_classes, getattr(clips, 'fps', None))
    for number in range(3):
        plain, mirror = flipped[number], flipped[number + 3]
        assert set(plain) == set(mirror) == set(clips[number])
        np.testing.assert_array_equal(plain['video'], clips[number]['video'])
        np.testing.assert_array_equal(mirror['video'], np.flip(plain['video'], axis=2))
        assert not np.array_equal(mirror['video'], plain['video']) and mirror['label'] == plain['label']
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f'index {index} of 6'):
            flipped[index]


def test_the_latents_of_both_are_encoded_and_are_no_mirror_images(clips, small_tokenizer, tmp_path):
    """Which is why they are."""
    frozen = FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, LatentNorm.identity(3))
    origin = {'data': {}, 'tokenizer': {'checkpoint': 'none'}}
    options = dict(origin=origin, mesh=make_mesh(), batch_size=2)
    write_latents(tmp_path, 'train', frozen, Flipped(clips), **options)
    encoded = Encoded(tmp_path, 'train')
    assert len(encoded) == 6
    encode = jax.jit(frozen.encode)
    for number in range(3):
        expected = encode(np.flip(clips[number]['video'], axis=2)[None])[0]
        np.testing.assert_allclose(encoded[number + 3]['z'], expected, atol=1e-5)
        assert np.abs(encoded[number + 3]['z'] - encoded[number]['z'][:, :, ::-1]).max() > 0.1


def test_the_section_of_a_configuration_holds_that_of_the_clips():
    section = {'name': 'moving_digits', 'frames': 5, 'size': 16, 'digit_size': 10, 'clips': 3}
    source = build.source({'name': 'flipped', 'clips': section}, 'train')
    assert source == Flipped(MovingDigits('train', frames=5, size=16, digit_size=10, clips=3))
    assert build.clips_section({'name': 'flipped', 'clips': section}) == section
