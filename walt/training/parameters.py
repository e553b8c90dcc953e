"""What optimizers know of a parameter: its place in the tree, whose names are those of the layers.

    ('blocks', 'spatial', 'attention', 'qkv', 'kernel')       (layers, D, 3, N, K)

`nn.scan` stacks the layers of a transformer along the first axis of all parameters under `blocks`. A projection's array
is its `kernel`; its bias, scales of norms and tables of embeddings have other names.
"""

from collections.abc import Sequence
from typing import Any

import jax

Path = Sequence[Any]
"""Of `jax.tree_util`, also into a tree whose leaves are boxed with their logical names."""

STACK = 'blocks'

# The AdaLN maps of a layer; they see the conditioning vector and not the tokens.
_MODULATION = ('modulation', 'lora')

# Projection -> axes of its kernel that are summed over, and put out; the axis that tells q, k and v apart is neither.
_IN_OUT = {
    'qkv': ((-4,), (-2, -1)),
    'kv': ((-4,), (-2, -1)),
    'q': ((-3,), (-2, -1)),
    'out': ((-3, -2), (-1,)),
    'up': ((-2,), (-1,)),
    'down': ((-2,), (-1,)),
}


def names(path: Path) -> tuple[str, ...]:
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def is_kernel(path: Path) -> bool:
    return names(path)[-1] == 'kernel'


def stacked_axes(path: Path) -> int:
    """How many leading axes of the parameter count layers: 1 in a stack, else 0."""
    return int(STACK in names(path))


def in_out_axes(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(axes summed over, axes put out) of the matrices of attention and MLP in a transformer's layers, counted from the
    last axis; None for every other parameter.

    Raises:
        ValueError: on a kernel of a layer whose projection is unknown.
    """
    where = names(path)
    if STACK not in where or not is_kernel(path) or set(where) & set(_MODULATION):
        return None
    if where[-2] not in _IN_OUT:
        raise ValueError(f'the axes of {"/".join(where)} are unknown; projections are {sorted(_IN_OUT)}')
    return _IN_OUT[where[-2]]
