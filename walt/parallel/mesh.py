"""The mesh: devices arranged along named axes.

    data      every device holds the whole model and its own rows of the batch; slices of a multi-slice job lie along it
    fsdp      rows of the batch too, and the parameters are split along their `embed` axis
    context   each clip is split along its height
    tensor    heads and hidden widths are split

Axes of one device change nothing, so the usual layouts are meshes with some axes left at 1:

    ddp            data=-1
    fsdp           data=1, fsdp=-1
    fsdp_tp        data=1, fsdp=-1, tensor=4
    fsdp_context   data=1, fsdp=-1, context=2

One device is a mesh of one, so the same program runs on a laptop and on a pod.
"""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ('data', 'fsdp', 'context', 'tensor')
BATCH_AXES = ('data', 'fsdp')

# The compiler propagates shardings. The default, `Explicit`, refuses the reshapes of window attention.
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)


def make_mesh(
    *, data: int = -1, fsdp: int = 1, context: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices of all processes, or over `devices`; the axis of -1 takes those that the others leave.

    Raises:
        ValueError: if the axes do not multiply to the number of devices, or the slices of a multi-slice job do not
            divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    shape = _shape(len(devices), data=data, fsdp=fsdp, context=context, tensor=tensor)
    slices = len({getattr(device, 'slice_index', 0) for device in devices}) if devices[0].platform == 'tpu' else 1
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=_AXIS_TYPES, devices=devices)
    if shape[0] % slices:
        raise ValueError(f'{slices} slices do not divide the axis data of {shape[0]} devices')
    within, across = (shape[0] // slices, *shape[1:]), (slices, *(1,) * len(shape[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), AXES, axis_types=_AXIS_TYPES)


def abstract_mesh(
    devices: int | None = None, *, data: int = -1, fsdp: int = 1, context: int = 1, tensor: int = 1
) -> AbstractMesh:
    """`make_mesh` for `devices` that are not there; None is the fewest that the axes take."""
    axes = {'data': data, 'fsdp': fsdp, 'context': context, 'tensor': tensor}
    devices = devices or math.prod(max(size, 1) for size in axes.values())
    return AbstractMesh(_shape(devices, **axes), AXES, _AXIS_TYPES)


def _shape(devices: int, **axes: int) -> tuple[int, ...]:
    rest = math.prod(size for size in axes.values() if size != -1)
    shape = tuple(devices // max(rest, 1) if axes[name] == -1 else axes[name] for name in AXES)
    if min(shape) < 1 or math.prod(shape) != devices:
        raise ValueError(
            f'the axes of mesh {axes} do not multiply to the {devices} devices that there are '
            '(one axis may be -1: what the others leave)'
        )
    return shape


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """How many devices share the batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Raises `ValueError` if the devices that share the batch do not divide each of its `accumulation` parts."""
    shards = batch_shards(mesh)
    if batch_size % (shards * accumulation):
        parts = f' in {accumulation} micro-batches' if accumulation > 1 else ''
        raise ValueError(
            f'batch_size {batch_size}{parts} is not divisible by the {shards} devices that share it '
            f'({dict(mesh.shape)})'
        )
