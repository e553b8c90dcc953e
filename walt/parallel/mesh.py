"""The mesh: devices arranged along named axes.

    data     every device holds the whole model and its own rows of the batch
    fsdp     rows of the batch too, and the parameters are split along their `embed` axis
    tensor   heads and hidden widths are split

One device is a mesh of one, so the same program runs on a laptop and on a pod.
"""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')

# The compiler propagates shardings. The default, `Explicit`, refuses the reshapes of window attention.
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices of all processes; `data=-1` takes the devices that the other axes leave.

    Raises:
        ValueError: if the axes do not multiply to the number of devices.
    """
    return jax.make_mesh(_shape(jax.device_count(), data, fsdp, tensor), AXES, axis_types=_AXIS_TYPES)


def abstract_mesh(devices: int | None = None, *, data: int = -1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    """`make_mesh` for `devices` that are not there; None is the fewest that the axes take."""
    return AbstractMesh(_shape(devices or max(data, 1) * fsdp * tensor, data, fsdp, tensor), AXES, _AXIS_TYPES)


def _shape(devices: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    shape = (devices // max(fsdp * tensor, 1) if data == -1 else data, fsdp, tensor)
    if min(shape) < 1 or math.prod(shape) != devices:
        asked = dict(zip(AXES, (data, fsdp, tensor)))
        raise ValueError(f'the axes of mesh {asked} do not multiply to the {devices} devices that there are')
    return shape


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises `ValueError` if the devices that share the batch do not divide it."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % shards:
        raise ValueError(
            f'batch_size {batch_size} is not divisible by the {shards} devices that share it ({dict(mesh.shape)})'
        )
