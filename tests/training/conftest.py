"""A frozen tokenizer; and, for loop and checkpoints, three numbers that follow the data and the noise of a step."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt.data.pipeline import batches
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.training.guard import keep_finite
from walt.training.state import State

OPTIMIZER = optax.adam(0.1)


def new_state():
    params = {'w': jnp.arange(3.0)}
    return State(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params), params, {'count': jnp.zeros(())})


def new_batches(start=0):
    return iter(batches([{'x': x} for x in np.arange(10, dtype=np.float32)], 2, keys=('x',), start=start, threads=0))


@jax.jit
def train_step(state, batch, key):
    """Draws from `key` and reads `batch`, so that a wrong key or a wrong batch shows in the parameters."""

    def loss(params):
        return jnp.square(params['w'] - batch['x'].mean() - jax.random.normal(key, (3,))).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    metrics = {'loss': value, 'step': state.step + 1.0}
    return keep_finite(state, state.apply(gradients, OPTIMIZER, 0.9), metrics, gradients)


@pytest.fixture(scope='session')
def toy():
    return SimpleNamespace(state=new_state, batches=new_batches, step=train_step)


@pytest.fixture(scope='session')
def frozen(small_tokenizer):
    norm = LatentNorm(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.0, 2.0]))
    return FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, norm)
