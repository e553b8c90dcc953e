"""A step of the denoiser: what it computes, whom it tells the null text, and what it measures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt.denoiser.conditions import NullText
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.randomness import stream
from walt.training.conditions import Conditioning
from walt.training.denoiser_step import make_denoiser_step, make_validation_loss
from walt.training.state import State

OPTIMIZER = optax.sgd(0.1)
SCHEDULE = DiscreteLinear()
LOSS = DenoisingLoss(SCHEDULE)
ALL_DROPPED = Conditioning(SCHEDULE, dropout=1.0)


def state_of(params, measured=None):
    return State(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params), params, measured)


@pytest.fixture(scope='module')
def state(small_denoiser):
    return state_of(small_denoiser.params)


@pytest.fixture(scope='module')
def batch():
    z = np.random.default_rng(5).normal(size=(4, 2, 4, 4, 3))
    return {'z': jnp.asarray(z, jnp.float32), 'label': jnp.array([1, 2, 3, 4])}


@pytest.fixture(scope='module')
def step(small_denoiser):
    """Drops every label."""
    return jax.jit(make_denoiser_step(small_denoiser.module, LOSS, OPTIMIZER, 0.9, ALL_DROPPED))


@pytest.fixture(scope='module')
def validation_loss(small_denoiser):
    return jax.jit(make_validation_loss(small_denoiser.module, LOSS, ALL_DROPPED))


def test_a_dropped_label_has_no_influence(step, state, batch):
    key, other = jax.random.key(1), batch | {'label': jnp.array([9, 8, 7, 6])}
    (after, metrics), (same, same_metrics) = (step(state, None, b, key) for b in (batch, other))
    assert metrics['loss'] == same_metrics['loss']
    np.testing.assert_array_equal(after.params['label']['table'], same.params['label']['table'])
    moved_K = np.abs(after.params['label']['table'] - state.params['label']['table']).max(-1)
    assert moved_K[10] > 0 and (moved_K[:10] == 0).all()


def test_a_step_has_the_loss_at_its_key_and_the_norm_of_its_gradient(step, validation_loss, state, batch):
    key = jax.random.key(2)
    after, metrics = step(state, None, batch, key)
    null = batch | {'label': jnp.full(4, 10)}
    np.testing.assert_allclose(metrics['loss'], validation_loss(state.params, None, null, key), rtol=1e-5)
    difference = jax.tree.map(lambda new, old: (np.asarray(old) - np.asarray(new)) / 0.1, after.params, state.params)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(difference)))
    np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-3)
    assert after.step == 1 and set(metrics) == {'loss', 'loss_by_time', 'gradient_norm', 'bad', 'bad_tensors'}


def test_the_loss_by_time_is_of_all_rows_and_sums_to_the_loss(step, state, batch):
    _, metrics = step(state, None, batch, jax.random.key(2))
    total, count = metrics['loss_by_time'].sum(1)
    assert count == 4
    np.testing.assert_allclose(total / 4, metrics['loss'], rtol=1e-6)


@pytest.mark.parametrize('parts', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_step_in_micro_batches_is_the_step_of_the_whole_batch(parts, step, small_denoiser, state, batch):
    in_parts = jax.jit(make_denoiser_step(small_denoiser.module, LOSS, OPTIMIZER, 0.9, ALL_DROPPED, parts))
    (after, metrics), (same, same_metrics) = (f(state, None, batch, jax.random.key(2)) for f in (step, in_parts))
    for name in ('loss', 'gradient_norm'):
        np.testing.assert_allclose(same_metrics[name], metrics[name], rtol=1e-5)
    np.testing.assert_allclose(parts * same_metrics['loss_by_time'], metrics['loss_by_time'], rtol=1e-5)
    moved = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after.params, state.params)
    jax.tree.map(
        lambda a, b, move: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(move).max() + 1e-7),
        same.params,
        after.params,
        moved,
    )


def test_a_batch_that_micro_batches_do_not_divide_is_refused_with_both(small_denoiser, state, batch):
    step = make_denoiser_step(small_denoiser.module, LOSS, OPTIMIZER, 0.9, ALL_DROPPED, 3)
    with pytest.raises(ValueError, match=r'4 rows .* 3 micro-batches'):
        jax.eval_shape(step, state, None, batch, jax.random.key(2))


def test_another_key_draws_other_times_and_noise(step, state, batch):
    first, again, other = (step(state, None, batch, jax.random.key(i))[1]['loss'] for i in (3, 3, 4))
    assert first == again != other


def test_validation_keeps_the_labels(validation_loss, state, batch):
    key = stream(jax.random.key(0), 'validation')
    losses = [validation_loss(state.params, None, batch | {'label': jnp.full(4, i)}, key) for i in (1, 2)]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.fixture(scope='module')
def joint(tiny_denoiser):
    """A denoiser of clips and pictures with texts, and a batch of one stack beside each of two clips."""
    tiny = tiny_denoiser(images=True, text_shape=(3, 5))
    rng = np.random.default_rng(6)
    batch = {'video': rng.integers(256, size=(2, 5, 16, 16, 3), dtype=np.uint8)}
    batch |= {'images': rng.integers(256, size=(2, 1, 2, 16, 16, 3), dtype=np.uint8)}
    for prefix, lead in [('', (2,)), ('images_', (2, 1, 2))]:
        batch[f'{prefix}text'] = rng.normal(size=(*lead, 3, 5)).astype(np.float32)
        batch[f'{prefix}text_mask'] = np.ones((*lead, 3), bool)
    tiny.batch, tiny.null_text = batch, NullText(jnp.ones((3, 5)), jnp.array([True, False, True]))
    return tiny


def test_the_losses_of_clips_and_of_pictures_are_told_apart(joint, frozen):
    """Both make up the loss; other pictures change the one and leave the other."""
    conditioning = Conditioning(SCHEDULE, dropout=0.0)
    step = jax.jit(make_denoiser_step(joint.module, LOSS, OPTIMIZER, 0.9, conditioning))
    others = joint.batch | {'images': 255 - joint.batch['images']}
    first, other = (
        step(state_of(joint.params), frozen, batch, jax.random.key(1))[1] for batch in (joint.batch, others)
    )
    for metrics in (first, other):
        assert set(metrics) >= {'loss', 'gradient_norm', 'loss_images', 'loss_clips'}
        halves = (metrics['loss_images'] + metrics['loss_clips']) / 2
        np.testing.assert_allclose(metrics['loss'], halves, rtol=1e-5)
    np.testing.assert_allclose(first['loss_clips'], other['loss_clips'], rtol=1e-5)
    assert abs(first['loss_images'] - other['loss_images']) > 1e-3


@pytest.mark.slow
def test_a_dropped_text_has_no_influence_and_the_null_text_of_the_state_has_one(joint, frozen):
    step = jax.jit(make_denoiser_step(joint.module, LOSS, OPTIMIZER, 0.9, ALL_DROPPED))
    other_text = joint.batch | {name: joint.batch[name] + 1 for name in ('text', 'images_text')}
    other_null = joint.null_text.replace(text_SE=-joint.null_text.text_SE)
    plain, told, null = (
        step(state_of(joint.params, measured), frozen, batch, jax.random.key(1))[1]['loss']
        for measured, batch in [
            (joint.null_text, joint.batch),
            (joint.null_text, other_text),
            (other_null, joint.batch),
        ]
    )
    assert plain == told and abs(plain - null) > 1e-4
