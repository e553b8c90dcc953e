"""Named random streams: every draw is addressed by (key, name, step) and by nothing else.

    root -- 'noise' --> stream -- step 7 --> the key of the noise of step 7

A name is folded in as its CRC-32, which no process, platform or Python version changes, and a step as itself. No key
is ever advanced, so a run resumed at step 7 draws what an unbroken one would, and a new stream leaves the old ones as
they were. Sampling folds in the index of a clip as its step: one key for each clip, whatever the batch it is put in.
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


def normal(key_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws (B, *shape) standard normal float32 numbers, those of an example from its own key and nothing else.

    This holds for JAX's default (threefry) keys; 'rbg' keys do not promise it under `vmap`.
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(key_B)
