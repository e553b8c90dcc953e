"""Named streams."""

import jax
import jax.numpy as jnp
import numpy as np

from walt.randomness import normal, stream


def _data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_a_stream_is_the_crc32_of_its_name_then_the_step():
    root = jax.random.key(7)
    crc32_of_noise = 0xFDA99629
    expected = jax.random.fold_in(jax.random.fold_in(root, crc32_of_noise), 3)
    assert _data(stream(root, 'noise', 3)) == _data(expected)


def test_names_and_steps_give_different_keys():
    root = jax.random.key(0)
    keys = [stream(root, name, step) for name in ('time', 'noise') for step in (None, 0, 1)]
    assert len({tuple(_data(key)) for key in keys}) == len(keys)


def test_a_resumed_run_draws_what_an_unbroken_one_would():
    def run(first, last):
        return [float(jax.random.normal(stream(jax.random.key(1), 'time', step))) for step in range(first, last)]

    assert run(0, 4)[2:] == run(2, 4)


def test_a_traced_step_draws_what_a_python_one_does():
    root = jax.random.key(2)
    assert _data(jax.jit(lambda step: stream(root, 'noise', step))(5)) == _data(stream(root, 'noise', 5))


def test_arrays_of_steps_and_of_keys_broadcast():
    root = jax.random.key(3)
    key_B = stream(root, 'clip', jnp.arange(3))
    assert _data(key_B) == [_data(stream(root, 'clip', i)) for i in range(3)]
    assert _data(stream(key_B, 'sampler', 4)) == [_data(stream(key, 'sampler', 4)) for key in key_B]


def test_the_numbers_of_an_example_depend_on_its_own_key_alone():
    key_B = stream(jax.random.key(4), 'clip', jnp.arange(5))
    np.testing.assert_array_equal(normal(key_B, (2, 3))[2:3], normal(key_B[2:3], (2, 3)))
