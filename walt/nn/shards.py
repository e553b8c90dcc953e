"""How layers lay out what they compute with: over how many devices an axis is split, and parameters made whole for use.

A parameter is stored in parts along one of its axes (`embed`, `in_channels`: the mesh's axis fsdp), over the same
devices that share the batch. Where it is used, every device needs the whole of that axis. Said here, parameters move,
in the dtype of the computation, once for every use; left to the compiler, it moves activations where those are smaller.
"""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn

STORED_IN_PARTS = ('embed', 'in_channels')


def shards(name: str) -> int:
    """The devices that share an axis of this logical name; 1 where no mesh is active."""
    (axes,) = nn.logical_to_mesh_axes((name,)) or (None,)
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def whole(parameter: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A parameter with these logical axes, whole along the one that it is stored in parts along."""
    return nn.with_logical_constraint(parameter, tuple(None if axis in STORED_IN_PARTS else axis for axis in axes))
