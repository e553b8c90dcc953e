"""A guard against numbers that are not finite: one flag each step, and the name of a bad tensor when it is down.

A step is good if its loss and the norms of its gradients are finite. The norms are computed anyway, and one NaN or
infinity anywhere in the gradients makes them so (one that overflows does too, beyond 1e19), so the flag costs nothing.
A bad step keeps the state as it was, but for the step, which is the position in the data:

    ok = finite(loss, norms)       state <- ok ? new : old       step <- step + 1

Which tensors were bad is counted on the device, in a branch that good steps do not take (`counts_unless`), and read
by the host only after it saw the flag. What becomes of the run is `Guard`'s.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from walt.training.state import State

Metrics = Mapping[str, jax.Array]


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


def first_bad(tree: Any, counted: np.ndarray) -> str | None:
    """The first leaf with a number that is not finite, and how many such leaves there are; None if all are finite.

    Paths are in order, numbers in them by value: block_2 before block_10. Of layers that are stacked along the first
    axis (`nn.scan`) the first bad one is named too. Where every gradient is bad the cause lies in the activations or
    the loss; where one parameter is, in this one.

    Args:
        tree: arrays or their shapes, of which paths and shapes are read.
        counted: `counts` of a tree like it.

    Raises:
        ValueError: if `counted` is of a tree with another number of leaves.
    """
    leaves = _floating(tree)
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
    deciding = [value for name, value in metrics.items() if name == 'loss' or name.startswith('gradient_norm')]
    return jnp.isfinite(jnp.stack(deciding)).all()


def keep_finite(before: State, after: State, metrics: Metrics, gradients: Any) -> tuple[State, Metrics]:
    """What a training step returns: `after`, or where the step is not `good`, `before` with only its number gone on.

    Returns:
        the state, and `metrics` with `bad`, 1 where the state was kept and else 0, and `bad_tensors`, the `counts` of
        the gradients where it was.
    """
    ok = good(metrics)
    state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), after, before).replace(step=after.step)
    return state, {**metrics, 'bad': 1.0 - ok, 'bad_tensors': counts_unless(ok, gradients)}


def what_was_bad(step: int, metrics: Mapping[str, np.ndarray], params: Any) -> str:
    """The metric of a bad step that says so, and the first bad gradient, by the shapes of `params`."""
    name = next(name for name in ('loss', *sorted(metrics)) if not np.isfinite(metrics[name]).all())
    tensor = first_bad(params, metrics['bad_tensors'])
    return f'the {name} of step {step} is {metrics[name]}' + (f'; gradient of {tensor}' if tensor else '')


class Guard:
    """What becomes of a run after a bad step, of which `keep_finite` has kept nothing but the number.

        stop        FloatingPointError
        skip        goes on: the batch is left out, nothing else
        rollback    parameters, optimizer and averages of the newest checkpoint, the step as it is: what was learnt
                    since is forgotten, and the batches since are not seen again

    A run that is killed and goes on from that checkpoint comes to the same bad step, and does the same: both are
    functions of checkpoint and step. More than `most` bad steps between two checkpoints stop a run, whatever was
    chosen.

    Raises:
        ValueError: for another policy.
    """

    POLICIES = ('stop', 'skip', 'rollback')

    def __init__(self, policy: str, most: int = 10):
        if policy not in self.POLICIES:
            raise ValueError(f"non_finite is one of {self.POLICIES}, not '{policy}'")
        self._policy, self._most, self._bad = policy, most, 0

    def after_bad(self, message: str, state: Any, restore_latest: Callable[[Any], Any]) -> Any:
        """The state to go on from; raises `FloatingPointError` with the message where the run is to stop."""
        self._bad += 1
        if self._policy == 'stop':
            raise FloatingPointError(message)
        if self._bad > self._most:
            raise FloatingPointError(f'{message}; {self._bad} bad steps since the newest checkpoint')
        if self._policy == 'skip':
            return state
        restored = restore_latest(state)
        if restored is state:
            raise FloatingPointError(f'{message}; there is no checkpoint to go back to')
        return restored.replace(step=state.step)

    def saved(self) -> None:
        """A checkpoint was made: bad steps are counted from here."""
        self._bad = 0


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
