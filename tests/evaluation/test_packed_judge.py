"""Pictures of any size, read by a classifier of packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import log_softmax

from walt import build, tokens
from walt.data.mixed_digits import MixedDigits
from walt.data.moving_digits import MovingDigits
from walt.data.packing import resized
from walt.data.resolution import NATIVE, TruncatedNormal
from walt.evaluation.packed_judge import PackedJudge
from walt.navit.classifier import Classifier
from walt.navit.navit import Navit


@pytest.fixture(scope='module')
def classifier():
    module = Navit(classes=10, patch=(1, 4, 4), extent=(4, 16, 16), width=16, depth=1, heads=2)
    shapes = nn.unbox(jax.eval_shape(build.init_classifier(module), jax.random.key(0))['params'])
    rng = np.random.default_rng(0)
    return Classifier(
        module, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), shapes)
    )


def pictures(count=30):
    source = MixedDigits('validation', pictures=count)
    return [source[index]['video'] for index in range(count)]


def test_pictures_are_read_the_same_packed_and_alone_and_in_their_order(classifier):
    judge = PackedJudge(classifier, TruncatedNormal(8, 24), length=64, most=6, rows=4)
    together = judge.log_probabilities(pictures())
    assert together.shape == (30, 10) and (judge.read_clips(pictures()) == together.argmax(1)).all()
    for number in (0, 11, 29):
        alone = judge.log_probabilities(pictures()[number : number + 1])
        np.testing.assert_allclose(alone[0], together[number], atol=1e-5)


def test_a_picture_is_read_as_large_as_it_is_but_no_larger_than_in_training(classifier):
    picture = np.random.default_rng(0).integers(0, 255, (1, 16, 32, 3), np.uint8)

    def read(clip_THWC):
        row = tokens.pack([tokens.from_clip(clip_THWC, (1, 4, 4))], 64, 2)
        logits_BEK = jax.jit(classifier.logits)({name: value[None] for name, value in row.items()})
        return log_softmax(np.asarray(logits_BEK)[0, 0])

    def judged(sides):
        return PackedJudge(classifier, sides, length=64, most=2, rows=4).log_probabilities([picture])[0]

    smaller = resized(picture[0], 8, 16)[None]
    np.testing.assert_allclose(judged(NATIVE), read(picture), atol=1e-5)
    np.testing.assert_allclose(judged(TruncatedNormal(8, 40)), read(picture), atol=1e-5)
    np.testing.assert_allclose(judged(TruncatedNormal(4, 8 * 2**0.5)), read(smaller), atol=1e-5)


def test_clips_are_read_frame_by_frame_or_whole(classifier):
    source = MovingDigits('validation', frames=4, clips=3)
    videos = np.stack([source[index]['video'] for index in range(3)])
    judge = PackedJudge(classifier, TruncatedNormal(8, 24), length=144, most=6, rows=4)
    read_NT = judge.read(videos)
    assert read_NT.shape == (3, 4)
    np.testing.assert_array_equal(read_NT[1], judge.read_clips([frame[None] for frame in videos[1]]))
    assert judge.read_clips(list(videos)).shape == (3,)
    with pytest.raises(ValueError, match='clips of uint8, got float64'):
        judge.read_clips([np.zeros((1, 8, 8, 3))])
