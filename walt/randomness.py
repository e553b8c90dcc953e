"""Named random streams: every draw is addressed by (key, name, step) and by nothing else.

    root -- 'noise' --> stream -- step 7 --> the key of the noise of step 7

A name is folded in as its CRC-32, which no process, platform or Python version changes, and a step as itself. No key
is ever advanced, so a run resumed at step 7 draws what an unbroken one would, and a new stream leaves the old ones as
they were. Sampling folds in the index of a clip as its step: one key for each clip, whatever the batch it is put in.
Training does the same with the rows of a step (`row_keys`): what is drawn for a row does not depend on how rows are
spread over devices, processes and micro-batches.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

_fold_in = jnp.vectorize(jax.random.fold_in)


def stream(key: jax.Array, name: str, step: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Returns the key of the stream `name`, at `step` if there is one.

    Args:
        key: a typed key, or an array of them.
        name: what the numbers are for.
        step: an integer, or an array of them, which broadcasts against `key`: `stream(key, 'clip', jnp.arange(8))` is
            the keys of eight clips, `stream(key_B, 'sampler', 3)` the key of every clip at step 3.
    """
    key = _fold_in(key, np.uint32(zlib.crc32(name.encode())))
    return key if step is None else _fold_in(key, step)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """The key of every row of a step, (B,), from the step's key."""
    return stream(key, 'row', jnp.arange(rows))


def normal(key_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws (B, *shape) standard normal float32 numbers, those of an example from its own key and nothing else.

    This holds for JAX's default (threefry) keys; 'rbg' keys do not promise it under `vmap`.
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(key_B)


def uniform(key_B: jax.Array) -> jax.Array:
    """Draws a number in [0, 1) from each key: (B,) float32."""
    return jax.vmap(jax.random.uniform)(key_B)


def bernoulli(key_B: jax.Array, probability: float) -> jax.Array:
    """Draws True with `probability` from each key: (B,) bool."""
    return uniform(key_B) < probability
