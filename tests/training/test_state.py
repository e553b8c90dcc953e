"""The training state: one update, the moving average, and its layout."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from walt.parallel.mesh import make_mesh
from walt.training.state import State, abstract_params, create


class Line(nn.Module):
    """y = w x + b."""

    @nn.compact
    def __call__(self, x):
        def number(name, init, axis):
            return self.param(name, nn.with_logical_partitioning(init, (axis,)), (2,), jnp.float32)

        return number('w', nn.initializers.normal(1.0), 'embed') * x + number('b', nn.initializers.zeros, None)


def init(key):
    return Line().init(key, jnp.zeros(2))


def state_at(step):
    params = {'w': jnp.array([1.0, 2.0])}
    return State(jnp.asarray(step, jnp.int32), params, optax.sgd(0.5).init(params), {'w': jnp.array([5.0, 5.0])})


def test_one_update_moves_parameters_and_counts():
    state = state_at(7).apply({'w': jnp.array([2.0, -2.0])}, optax.sgd(0.5), 0.9)
    np.testing.assert_allclose(state.params['w'], [0, 3], atol=1e-6)
    assert state.step == 8


@pytest.mark.parametrize(('step', 'decay'), [(0, 0.1), (1, 2 / 11), (80, 0.9), (81, 0.9), (10_000, 0.9)])
def test_average_follows_the_new_parameters_with_a_decay_that_warms_up(step, decay):
    """min(0.9, (1 + n) / (10 + n)) after n updates."""
    state = state_at(step).apply({'w': jnp.array([2.0, -2.0])}, optax.sgd(0.5), 0.9)
    np.testing.assert_allclose(state.ema['w'], decay * 5 + (1 - decay) * np.array([0.0, 3.0]), atol=1e-5)


def test_every_average_follows_with_its_own_decay():
    """After many updates, so that the decays are those asked for."""
    state, optimizer = state_at(100_000), optax.sgd(0.5)
    state = state.replace(more_ema={'0.5': {'w': jnp.array([7.0, 7.0])}})
    state = state.apply({'w': jnp.array([2.0, -2.0])}, optimizer, (0.9, 0.5))
    np.testing.assert_allclose(state.ema['w'], 0.9 * 5 + 0.1 * np.array([0.0, 3.0]), atol=1e-5)
    np.testing.assert_allclose(state.more_ema['0.5']['w'], 0.5 * 7 + 0.5 * np.array([0.0, 3.0]), atol=1e-5)


def test_with_a_decay_of_zero_the_average_is_the_parameters_to_the_last_bit():
    """`old + (new - old)` is not: these numbers are of very different size."""
    params = {'w': jnp.asarray(np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-5, 5).repeat(100))}
    average = {'w': jnp.full(1000, 3e4)}
    state = State(jnp.asarray(50, jnp.int32), params, optax.sgd(0.5).init(params), average)
    state = jax.jit(lambda state: state.apply({'w': jnp.ones(1000)}, optax.sgd(0.5), 0.0))(state)
    np.testing.assert_array_equal(state.ema['w'], state.params['w'])


@pytest.mark.parametrize('ema_decay', [(), (0.9, 0.9), 1.0, -0.1, (0.9, 1.5)])
def test_decays_that_are_none_or_doubled_or_out_of_range_are_refused(ema_decay):
    with pytest.raises(ValueError, match=rf'in \[0, 1\) or several different ones, not {re.escape(str(ema_decay))}'):
        create(init, optax.sgd(0.1), make_mesh(), jax.random.key(0), ema_decay=ema_decay)


def test_a_step_with_other_decays_than_the_state_is_refused_with_both():
    with pytest.raises(ValueError, match=r'ema_decay is \(0.9, 0.5\), .* beside its first are \[\]'):
        state_at(0).apply({'w': jnp.ones(2)}, optax.sgd(0.5), (0.9, 0.5))
    state, _ = create(init, optax.sgd(0.1), make_mesh(), jax.random.key(0), ema_decay=(0.9, 0.5))
    with pytest.raises(ValueError, match=r"ema_decay is 0.9, .* beside its first are \['0.5'\]"):
        state.apply(state.params, optax.sgd(0.5), 0.9)


def test_a_state_has_an_average_for_each_decay_laid_out_as_the_parameters():
    state, layout = create(init, optax.sgd(0.1), make_mesh(), jax.random.key(0), ema_decay=(0.9, 0.5, 0.99))
    assert list(state.more_ema) == ['0.5', '0.99']
    assert layout.more_ema['0.99'] == layout.params
    for average in state.more_ema.values():
        np.testing.assert_array_equal(average['w'], state.params['w'])
    pointers = {tree['w'].unsafe_buffer_pointer() for tree in (state.params, state.ema, *state.more_ema.values())}
    assert len(pointers) == 4


def test_a_state_that_starts_from_other_parameters_forgets_its_own():
    state, _ = create(init, optax.sgd(0.1), make_mesh(), jax.random.key(0), ema_decay=(0.9, 0.5))
    other = jax.tree.map(lambda x: x + 1, state.params)
    again = state.starting_from(other)
    for tree in (again.params, again.ema, again.more_ema['0.5']):
        np.testing.assert_array_equal(tree['w'], other['w'])
    assert again.ema['w'].unsafe_buffer_pointer() != other['w'].unsafe_buffer_pointer()


def test_an_optimizer_of_some_parameters_leaves_no_shardings_for_the_others():
    """The tree of shardings is then that of the state, box by box."""

    def by_leaf(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

    optimizer = optax.partition({'w': optax.adam(0.1), 'b': optax.sgd(0.1)}, by_leaf)
    state, layout = create(init, optimizer, make_mesh(), jax.random.key(0))
    assert jax.tree.structure(layout) == jax.tree.structure(state)


def test_a_new_state_is_plain_arrays_laid_out_by_their_names():
    optimizer, measured = optax.adam(0.1), {'mean': jnp.ones(3)}
    state, layout = create(init, optimizer, make_mesh(), jax.random.key(0), measured)
    assert all(type(leaf).__name__ == 'ArrayImpl' for leaf in jax.tree.leaves(state))
    assert set(state.params) == {'w', 'b'} and state.params['w'].shape == (2,)
    assert jax.tree.structure(layout) == jax.tree.structure(state)
    assert layout.params['w'].spec == layout.opt_state[0].mu['w'].spec == jax.P('fsdp')
    assert layout.params['b'].spec == jax.P(None) and layout.step.spec == jax.P()
    assert state.step == 0
    np.testing.assert_array_equal(state.measured['mean'], measured['mean'])


def test_the_average_starts_as_the_parameters_in_memory_of_its_own():
    """Or the step that gives up the one would lose the other."""
    state, _ = create(init, optax.sgd(0.1), make_mesh(), jax.random.key(0))
    np.testing.assert_array_equal(state.ema['w'], state.params['w'])
    assert np.abs(state.params['w']).min() > 0
    assert state.ema['w'].unsafe_buffer_pointer() != state.params['w'].unsafe_buffer_pointer()


def test_the_same_key_makes_the_same_state():
    first, again, other = (create(init, optax.sgd(0.1), make_mesh(), jax.random.key(i))[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(first.params['w'], again.params['w'])
    assert np.abs(first.params['w'] - other.params['w']).min() > 0


def test_abstract_parameters_are_those_of_a_new_state_without_the_numbers():
    abstract = abstract_params(init, make_mesh())
    state, layout = create(init, optax.sgd(0.1), make_mesh(), jax.random.key(0))
    assert jax.tree.structure(abstract) == jax.tree.structure(state.params)
    for name, leaf in abstract.items():
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (state.params[name].shape, state.params[name].dtype)
        assert leaf.sharding == layout.params[name]
