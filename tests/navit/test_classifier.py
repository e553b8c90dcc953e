"""A trained classifier of noised clips, asked for log p(class | z_t, t)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt import build, tokens
from walt.navit.classifier import Classifier, centred
from walt.navit.navit import Navit


def classifier(**fields):
    module = Navit(classes=5, patch=(1, 2, 2), channels=4, extent=(3, 8, 8), width=16, depth=1, heads=2, **fields)
    shapes = nn.unbox(jax.eval_shape(build.init_classifier(module), jax.random.key(0))['params'])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), shapes)
    return Classifier(module, params)


Z = np.random.default_rng(1).normal(size=(3, 2, 4, 8, 4)).astype(np.float32)
TIMES, COND = jnp.array([0.1, 0.5, 0.9]), {'label': jnp.array([4, 0, 2])}


log_prob = jax.jit(Classifier.log_prob)


def test_log_prob_is_that_of_the_clip_in_a_packed_row():
    of_noised = classifier(timed=True)
    log_B = log_prob(of_noised, Z, TIMES, COND)
    row = tokens.pack([tokens.from_clip(z, (1, 2, 2)) for z in Z], 64, 4)
    rows = {name: value[None] for name, value in row.items()}
    log_BEC = jax.nn.log_softmax(jax.jit(Classifier.logits)(of_noised, rows, jnp.pad(TIMES, (0, 1))[None]))
    np.testing.assert_allclose(log_B, log_BEC[0, jnp.arange(3), COND['label']], atol=1e-5)


def test_its_gradient_is_there_for_every_latent_and_stays_within_the_clip():
    gradient = jax.jit(jax.grad(lambda z: classifier(timed=True).log_prob(z, TIMES, COND)[1]))(jnp.asarray(Z))
    assert (gradient[1] != 0).all() and not gradient[0].any() and not gradient[2].any()


def test_it_depends_on_the_time():
    before, after = (log_prob(classifier(timed=True), Z, t_B, COND) for t_B in (TIMES, TIMES.at[0].set(0.8)))
    assert abs(before[0] - after[0]) > 1e-3 and (before[1:] == after[1:]).all()


def test_a_classifier_of_clean_clips_does_not_guide():
    with pytest.raises(ValueError, match='train one with `noising`'):
        classifier().log_prob(Z, TIMES, COND)


def test_clean_clips_are_read_at_time_0_and_nothing_is_known_of_the_null_class():
    of_noised = classifier(timed=True)
    at_0 = log_prob(of_noised, Z, jnp.zeros(3), COND)
    np.testing.assert_allclose(jax.jit(Classifier.log_prob_of_clean)(of_noised, Z, COND), at_0, atol=1e-6)
    with_null = {'label': jnp.array([4, 5, 2])}
    log_B = log_prob(of_noised, Z, TIMES, with_null)
    gradient = jax.jit(jax.grad(lambda z: log_prob(of_noised, z, TIMES, with_null).sum()))(jnp.asarray(Z))
    assert log_B[1] == 0 and not gradient[1].any() and log_B[0] < 0


def rows_of(order, length=64, most=4):
    """Clips of three sizes in a row, by number, with labels of which one is none: rows, and times of the clips."""
    shapes, labels, times = [(2, 4, 8), (1, 2, 6), (3, 4, 2)], [4, 5, 2], [0.1, 0.5, 0.9]
    clips = []
    for number in order:
        z = np.random.default_rng(number).normal(size=(*shapes[number], 4)).astype(np.float32)
        clips.append(tokens.from_clip(z, (1, 2, 2)) | {'label': np.int32(labels[number])})
    rows = {name: jnp.asarray(value)[None] for name, value in tokens.pack(clips, length, most).items()}
    return rows, jnp.array([[times[number] for number in order] + [0.0] * (most - len(order))])


@jax.jit
def gradient_of_rows(classifier, rows, t_BE):
    """log p of every clip, and the gradient by the tokens of their sum."""

    def total(tokens_BLC):
        log_BE = classifier.log_prob_of_rows(rows | {'tokens': tokens_BLC}, t_BE)
        return log_BE.sum(), log_BE

    return jax.grad(total, has_aux=True)(rows['tokens'])


def test_the_gradient_in_a_packed_row_is_that_of_each_clip_alone():
    of_noised, (rows, t_BE) = classifier(timed=True), rows_of([0, 1, 2])
    gradient, log_BE = gradient_of_rows(of_noised, rows, t_BE)
    for number, start, stop in ((0, 0, 16), (2, 19, 25)):
        alone, log_alone_BE = gradient_of_rows(of_noised, *rows_of([number]))
        np.testing.assert_allclose(gradient[0, start:stop], alone[0, : stop - start], atol=1e-5)
        np.testing.assert_allclose(log_BE[0, number], log_alone_BE[0, 0], atol=1e-5)
        assert (alone[0, : stop - start] != 0).all() and not alone[0, stop - start :].any()


def test_a_clip_without_a_label_and_padding_have_no_gradient():
    gradient, log_BE = gradient_of_rows(classifier(timed=True), *rows_of([0, 1, 2]))
    assert not gradient[0, 16:19].any() and not gradient[0, 25:].any()
    assert log_BE[0, 1] == 0 and log_BE[0, 3] == 0 and log_BE[0, 0] < 0


def test_the_time_of_a_clip_counts_for_it_alone():
    of_noised, (rows, t_BE) = classifier(timed=True), rows_of([0, 1, 2])
    before, after = (gradient_of_rows(of_noised, rows, t)[0] for t in (t_BE, t_BE.at[0, 0].set(0.8)))
    assert np.abs(before - after)[0, :16].max() > 1e-3 and (before[0, 16:] == after[0, 16:]).all()
    with pytest.raises(ValueError, match='train one with `noising`'):
        classifier().log_prob_of_rows(rows, t_BE)


def test_pixels_are_centred_and_latents_left_as_they_are():
    np.testing.assert_allclose(centred(jnp.array([0, 255], jnp.uint8)), [-1, 1])
    np.testing.assert_array_equal(centred(jnp.array([0.5, 3.0])), [0.5, 3.0])
