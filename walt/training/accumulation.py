"""Gradient accumulation: a step in micro-batches, one after another, for batches that memory does not hold at once.

    f(batch) = mean over j of f(rows j, j + k, j + 2k, ... of the batch),    j = 0 .. k - 1

which is exact for whatever is a mean over rows: losses of the denoiser, their gradients and metrics. What a tokenizer's
terms take from the whole batch together (the entropy and use of codes, LeCam's mean logits) they take from a
micro-batch then. Rows j, j + k, ... lie on the devices that the batch lies on, so nothing moves.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def rows_of(batch: Any) -> int:
    """The rows of a batch, a tree of arrays that have them as their first axis."""
    (rows,) = {len(leaf) for leaf in jax.tree.leaves(batch)}
    return rows


def mean_over_parts(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """The mean of `function` over `parts` micro-batches of `rows`, a tree of arrays with the batch as first axis.

    Args:
        function: tree of rows -> tree of floating-point arrays; traced once.

    Raises:
        ValueError: if the micro-batches would not be equally large.
    """
    batch = rows_of(rows)
    if batch % parts:
        raise ValueError(f'a batch of {batch} rows does not divide into {parts} micro-batches')
    if parts == 1:
        return function(rows)
    micro_batches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), rows)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, function(micro_batch)), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first))
    total, _ = jax.lax.scan(add, zero, micro_batches)
    return jax.tree.map(lambda leaf: leaf / parts, total)
