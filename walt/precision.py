"""Precision in one place: parameters and optimizer are float32; what the layers compute in is one configuration field.

Softmax, statistics of norms, schedules and losses stay float32 whatever the field says.
"""

import jax.numpy as jnp

PARAM_DTYPE = jnp.float32
COMPUTE_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def compute_dtype(name: str):
    """The dtype of activations and matrix products. Raises `ValueError` on a name that is not in `COMPUTE_DTYPES`."""
    if name not in COMPUTE_DTYPES:
        raise ValueError(f'unknown dtype {name!r}; choices: {sorted(COMPUTE_DTYPES)}')
    return COMPUTE_DTYPES[name]
