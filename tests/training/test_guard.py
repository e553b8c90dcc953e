"""Numbers that are not finite: seen by one flag, named afterwards, and kept out of the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt.training.guard import Guard, counts, counts_unless, first_bad, good, keep_finite, what_was_bad
from walt.training.state import State

BAD = [float('nan'), float('inf'), -float('inf')]


def tree(**leaves):
    whole = {'step': np.int32(7), 'a': np.ones((3, 2), np.float32), 'key': jax.random.key(0)}
    return whole | {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}


def told(tree):
    """What is told of a tree's own numbers."""
    return first_bad(tree, np.asarray(jax.jit(counts)(tree)))


def test_a_tree_without_floating_point_numbers_is_not_bad():
    for empty in ({}, {'step': jnp.int32(3), 'key': jax.random.key(0)}):
        assert told(empty) is None


def test_the_first_bad_leaf_is_named_with_its_counts():
    bad = tree(b=[[1, np.nan, np.inf], [np.nan, -np.inf, np.nan]], c=[np.nan])
    assert told(bad) == 'b (2, 3): 3 NaN and 2 infinite of 6 numbers, first at [0]; 2 of 3 tensors are bad'
    assert told(tree()) is None


def test_a_bad_layer_of_stacked_ones_is_named():
    stacked = np.zeros((5, 2, 2))
    stacked[3, 1, 0] = stacked[4, 0, 0] = np.nan
    assert 'first at [3]' in told(tree(blocks=stacked))


def test_a_scalar_is_named_without_a_place():
    assert told(tree(loss=np.nan)) == 'loss (): 1 NaN and 0 infinite of 1 numbers; 1 of 2 tensors are bad'


def test_numbers_in_paths_are_in_order_of_their_values():
    bad = {f'block_{number}': {'kernel': np.array([np.nan], np.float32)} for number in (10, 9, 11)}
    assert told(bad).startswith('block_9/kernel ')
    assert told([np.ones(1, np.float32)] * 2 + [np.array([np.inf], np.float32)] * 9).startswith('2 ')


def test_counts_made_in_a_step_name_the_same_leaf_from_shapes_alone():
    bad = tree(b=[1, np.inf], c=[np.nan])
    counted = jax.jit(counts)(bad)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), bad)
    assert first_bad(shapes, np.asarray(counted)) == told(bad)
    with pytest.raises(ValueError, match=r'\(3, 3\) are not those of a tree of 1'):
        first_bad(tree(), np.asarray(counted))


def test_nothing_is_counted_in_a_good_step():
    bad = tree(b=[1, np.inf])
    conditional = jax.jit(counts_unless)
    np.testing.assert_array_equal(conditional(jnp.bool_(True), bad), 0)
    np.testing.assert_array_equal(conditional(jnp.bool_(False), bad), counts(bad))


@pytest.mark.parametrize('value', BAD)
def test_loss_and_gradient_norms_decide_and_other_metrics_do_not(value):
    metrics = {'loss': 1.0, 'gradient_norm': 1.0, 'gradient_norm_discriminator': 1.0, 'loss_images': 1.0}
    metrics = {name: jnp.float32(one) for name, one in metrics.items()}
    assert good(metrics)
    assert good(metrics | {'loss_images': jnp.float32(value)})
    for name in ('loss', 'gradient_norm', 'gradient_norm_discriminator'):
        assert not good(metrics | {name: jnp.float32(value)})


@pytest.fixture(scope='module')
def guarded():
    """A step on the mean of a batch, with and without the guard; and a state."""
    optimizer = optax.adam(0.1)

    def step(state, batch):
        value, gradients = jax.value_and_grad(lambda params: jnp.square(params['w'] - batch).mean())(state.params)
        metrics = {'loss': value, 'gradient_norm': optax.global_norm(gradients)}
        return state.apply(gradients, optimizer, (0.9, 0.99)), metrics, gradients

    def guarded(state, batch):
        return keep_finite(state, *step(state, batch))

    params = {'w': jnp.arange(3.0)}
    state = State(jnp.int32(4), params, optimizer.init(params), params, None, None, {'0.99': params})
    return jax.jit(lambda state, batch: step(state, batch)[:2]), jax.jit(guarded, donate_argnums=0), state


def same(state, other):
    return all(np.array_equal(leaf, twin) for leaf, twin in zip(jax.tree.leaves(state), jax.tree.leaves(other)))


def copied(state):
    return jax.tree.map(jnp.copy, state)


def test_a_good_step_is_the_same_with_and_without_the_guard(guarded):
    step, with_guard, state = guarded
    (plain, _), (kept, metrics) = step(state, 2.0), with_guard(copied(state), 2.0)
    assert same(plain, kept) and not same(plain.params, state.params)
    assert metrics['bad'] == 0


@pytest.mark.parametrize('value', BAD)
def test_a_bad_step_changes_nothing_but_its_number(value, guarded):
    _, with_guard, state = guarded
    kept, metrics = with_guard(copied(state), value)
    assert metrics['bad'] == 1 and kept.step == state.step + 1
    assert same(kept.replace(step=state.step), state)
    assert first_bad(state.params, metrics['bad_tensors']).startswith('w (3,)')


def test_what_follows_a_bad_step_is_as_if_it_had_not_been(guarded):
    step, with_guard, state = guarded
    after, _ = with_guard(with_guard(copied(state), np.nan)[0], 2.0)
    expected, _ = step(state.replace(step=state.step + 1), 2.0)
    assert same(after, expected)


def test_what_was_bad_names_the_metric_the_step_and_the_tensor(guarded):
    _, with_guard, state = guarded
    _, metrics = with_guard(copied(state), np.nan)
    told = what_was_bad(5, jax.device_get(metrics), state.params)
    assert told.startswith('the loss of step 5 is nan; gradient of w (3,): 3 NaN')


def test_too_many_bad_steps_without_a_checkpoint_between_them_stop_a_run():
    guard = Guard('skip', most=2)
    for _ in range(2):
        assert guard.after_bad('bad', 'state', None) == 'state'
    guard.saved()
    for _ in range(2):
        guard.after_bad('bad', 'state', None)
    with pytest.raises(FloatingPointError, match='bad; 3 bad steps'):
        guard.after_bad('bad', 'state', None)


def test_without_a_checkpoint_there_is_nothing_to_go_back_to():
    with pytest.raises(FloatingPointError, match='bad; there is no checkpoint'):
        Guard('rollback').after_bad('bad', 'state', lambda state: state)


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match=r"one of .*'rollback'.*, not 'ignore'"):
        Guard('ignore')
