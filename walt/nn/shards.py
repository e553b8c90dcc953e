"""Over how many devices an array's axis is split, for layers that lay out their arrays by it."""

import math

import jax
from flax import linen as nn


def shards(name: str) -> int:
    """The devices that share an axis of this logical name; 1 where no mesh is active."""
    (axes,) = nn.logical_to_mesh_axes((name,)) or (None,)
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
