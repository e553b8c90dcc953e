"""A guard against numbers that are not finite: one flag each step, and the name of a bad tensor when it is down.

A step is good if its loss and the norms of its gradients are finite. The norms are computed anyway, and one NaN or
infinity anywhere in the gradients makes them so (one that overflows does too, beyond 1e19), so the flag costs nothing.
A bad step keeps the state as it was, but for the step, which is the position in the data:

    ok = finite(loss, norms)       state <- ok ? new : old       step <- step + 1

Which tensors were bad is counted on the device, in a branch that good steps do not take (`counts_unless`), and read
by the host only after it saw the flag.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Step = Callable[..., tuple[Any, Mapping[str, jax.Array]]]
"""(state, ...) -> (next state, metrics by name)."""


def finite(tree: Any) -> jax.Array:
    """bool (): whether all floating-point numbers in all leaves are finite. To be used under `jit`."""
    flags = [jnp.isfinite(leaf).all() for _, leaf in _floating(tree)]
    return jnp.stack(flags).all() if flags else jnp.bool_(True)


def counts(tree: Any) -> jax.Array:
    """int32 (floating-point leaves, 3): how many NaNs and infinities each leaf has, and where along its first axis the
    first of them is; in the order of `first_bad`. To be used under `jit`."""
    rows = []
    for _, leaf in _floating(tree):
        bad = ~jnp.isfinite(jnp.atleast_1d(leaf))
        first = bad.any(axis=range(1, bad.ndim)).argmax()
        rows.append(jnp.stack([jnp.isnan(leaf).sum(), jnp.isinf(leaf).sum(), first]).astype(jnp.int32))
    return jnp.stack(rows) if rows else jnp.zeros((0, 3), jnp.int32)


def counts_unless(ok: jax.Array, tree: Any) -> jax.Array:
    """`counts` of the tree, computed only where `ok`, bool (), is false; zeros otherwise."""
    leaves = [leaf for _, leaf in _floating(tree)]
    return jax.lax.cond(ok, lambda leaves: jnp.zeros((len(leaves), 3), jnp.int32), counts, leaves)


def first_bad(tree: Any, counted: jax.Array | np.ndarray | None = None) -> str | None:
    """The first leaf with a number that is not finite, and how many such leaves there are; None if all are finite.

    Paths are in order, numbers in them by value: block_2 before block_10. Of layers that are stacked along the first
    axis (`nn.scan`) the first bad one is named too. Where every gradient is bad the cause lies in the activations or
    the loss; where one parameter is, in this one.

    Args:
        tree: arrays, on the mesh or of NumPy; leaves that hold no floating-point numbers are left out.
        counted: `counts` of a tree like this one, of which then only paths and shapes are read. Without it, all
            processes that share the arrays have to call this.

    Raises:
        ValueError: if `counted` is of a tree with another number of leaves.
    """
    leaves = _floating(tree)
    if counted is None:
        counted = jax.jit(counts)([leaf for _, leaf in leaves])
    counted = np.asarray(counted)
    if counted.shape != (len(leaves), 3):
        raise ValueError(f'counts {counted.shape} are not those of a tree of {len(leaves)} floating-point leaves')
    bad = np.flatnonzero(counted[:, :2].any(axis=1))
    if not len(bad):
        return None
    (path, leaf), (nans, infinities, first) = leaves[bad[0]], counted[bad[0]]
    shape = np.shape(leaf)
    where = f', first at [{first}]' if shape else ''
    return (
        f'{path} {tuple(shape)}: {nans} NaN and {infinities} infinite of {np.size(leaf)} numbers{where}; '
        f'{len(bad)} of {len(leaves)} tensors are bad'
    )


def good(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """bool (): whether the `loss` and every `gradient_norm...` of a step are finite. Other metrics may be NaN: a mean
    over nothing is."""
    return finite([value for name, value in metrics.items() if name == 'loss' or name.startswith('gradient_norm')])


def keep_finite(step: Step) -> Step:
    """A training step that gives back the state it was given where it is not `good`; only `state.step` goes on.

    Returns:
        the same step with one more metric, `bad`: 1 where the state was kept, else 0.
    """

    def guarded(state, *args):
        new, metrics = step(state, *args)
        ok = good(metrics)
        kept = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, state)
        return kept.replace(step=new.step), {**metrics, 'bad': 1.0 - ok}

    return guarded


def _floating(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of the floating-point leaves, in order."""
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return sorted(leaves, key=lambda named: _in_order(named[0]))


def _in_order(path: str) -> list[str | int]:
    """Text and number take turns, so that two paths can always be compared."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', path)]
