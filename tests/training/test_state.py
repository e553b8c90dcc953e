"""The training state: one update, the moving average, and its layout."""

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
