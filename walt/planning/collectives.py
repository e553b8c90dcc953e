"""Which collectives a compiled program has, along which axes of the mesh, with how many bytes, and how often.

    %ar = f32[8,16] all-reduce(%x), replica_groups=[2,4]<=[4,2]T(1,0)      on a mesh of data 4 x fsdp 2: along `data`

Devices are numbered as the mesh lists them, the last axis fastest. A collective runs along the axes on which members of
one of its groups differ. Compilers write groups in four ways, all of which mean lists of devices:

    {{0,1},{2,3}}                       one by one
    [2,4]<=[4,2]T(1,0)                  0 .. 7 laid out as 4 x 2, transposed, and read as two groups of four
    mesh['a'=4,'b'=2] {'a'}             axes of a mesh of the compiler's own; also 'a':(2)2, a factor of an axis
    source_target_pairs={{0,1},{1,0}}   who sends to whom

TPUs do some inside of fusions: an all-reduce of which each device keeps a slice is a reduce-scatter, and is listed as
one.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from walt.planning.hlo import Array, Instruction, Module, parse

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute')
KINDS += ('collective-broadcast',)


@dataclasses.dataclass(frozen=True)
class Collective:
    """
    Attributes:
        kind: one of `KINDS`.
        bytes: of one run on one device: the larger of what it gives and what it gets, so of a gathered whole, or of
            what is reduced and scattered.
        axes: of the mesh, in its order; () for groups of one.
        group: devices that take part in each.
        members: one group, as places in the mesh's list of devices.
        times: in one run of the program, loops counted.
        asynchronous: begun in one instruction and ended in another.
        shapes: of what it gives, for people.
        operation: where in the source, as JAX names it; '' where the text does not say.
    """

    kind: str
    bytes: int
    axes: tuple[str, ...]
    group: int
    members: tuple[int, ...]
    times: int
    asynchronous: bool
    shapes: tuple[str, ...]
    operation: str


def collectives(hlo_text: str | Module, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """All collectives that run, in the order of the program.

    Args:
        hlo_text: `compiled.as_text()`, or what `hlo.parse` made of it.
        mesh_shape: axis -> size, in the order of the mesh.

    Raises:
        ValueError: if a group names a device that the mesh does not have; as `hlo.Module.executed`.
    """
    module = parse(hlo_text) if isinstance(hlo_text, str) else hlo_text
    found = []
    for instruction, times, computation in module.executed():
        made = _collective(module, instruction, computation, times, mesh_shape)
        found += [made] if made else []
    return found


def summed(all_collectives: Iterable[Collective]) -> dict[tuple[str, tuple[str, ...]], tuple[int, int]]:
    """(kind, axes) -> (how many run, their bytes), largest first."""
    sums = {}
    for one in all_collectives:
        count, size = sums.get((one.kind, one.axes), (0, 0))
        sums[one.kind, one.axes] = count + one.times, size + one.times * one.bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def _collective(
    module: Module, instruction: Instruction, computation: str, times: int, mesh_shape: Mapping[str, int]
) -> Collective | None:
    """The collective that an instruction is, or that it carries as a fusion or an asynchronous call."""
    kind, asynchronous = _kind(instruction.opcode)
    here, does = computation, instruction
    if kind is None:
        if instruction.opcode not in ('fusion', 'async-start', 'custom-call'):
            return None
        inside = [
            (name, inner)
            for name in instruction.called
            if name in module.computations
            for inner in module.computations[name].values()
            if _kind(inner.opcode)[0]
        ]
        if not inside or instruction.opcode == 'async-start':  # what an asynchronous call runs, is listed by itself
            return None
        here, does = inside[0]
        kind, asynchronous = _kind(does.opcode)[0], 'async' in here or 'async' in instruction.name
        sliced = any(inner.opcode == 'dynamic-slice' for inner in module.computations[here].values())
        kind = 'reduce-scatter' if kind == 'all-reduce' and sliced else kind
    if kind is None:
        return None
    groups = replica_groups(does, math.prod(mesh_shape.values()))
    given = [
        array
        for name in does.operands
        if name in module.computations[here]
        for array in module.computations[here][name].arrays
    ]
    results = does.arrays
    if asynchronous and does.opcode.endswith('-start') and kind != 'all-reduce':
        # (operands, results, contexts): the results are what operands leave of the arrays.
        results = [array for array in results[len(given) :] if array.dtype not in ('u32', 's32') or array.shape]
    operation = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind=kind,
        bytes=max(sum(array.bytes for array in given), sum(array.bytes for array in results)),
        axes=_axes(groups, mesh_shape),
        group=max((len(set(group)) for group in groups), default=1),
        members=tuple(groups[0]) if groups else (),
        times=times,
        asynchronous=asynchronous or 'async' in here,
        shapes=tuple(map(_shape_text, results)),
        operation=operation[1] if operation else '',
    )


def _kind(opcode: str) -> tuple[str | None, bool]:
    name = opcode.removesuffix('-start')
    return (name if name in KINDS else None), name != opcode


def _shape_text(array: Array) -> str:
    return f'{array.dtype}[{",".join(map(str, array.shape))}]'


def replica_groups(instruction: Instruction, devices: int) -> list[tuple[int, ...]]:
    """The groups of a collective, as lists of devices; a pair for every sender and its receiver."""
    pairs = instruction.attribute('source_target_pairs')
    if pairs:
        return _listed(pairs)
    text = _groups_text(instruction.attributes)
    if text.startswith('mesh'):
        return _of_mesh(text)
    if text.startswith('['):
        return [tuple(group) for group in _iota(text).tolist()]
    return _listed(text) or [tuple(range(devices))]


def _groups_text(attributes: str) -> str:
    found = re.search(r'replica_groups=(mesh\[.*?\}|\[[^ ]*|\{(?:\{[\d,]*\},?)*\})', attributes)
    return found[1].rstrip(',') if found else ''


def _listed(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, group.split(','))) for group in re.findall(r'\{(\d[\d,]*)\}', text)]


def _iota(text: str) -> np.ndarray:
    """`[2,4]<=[4,2]T(1,0)` as an array of 2 x 4."""
    shape, given, order = re.match(r'\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?', text).groups()
    shape, given, order = (tuple(map(int, part.split(','))) if part else None for part in (shape, given, order))
    ids = np.arange(math.prod(shape)).reshape(given or shape)
    return (ids.transpose(order) if order else ids).reshape(shape)


def _of_mesh(text: str) -> list[tuple[int, ...]]:
    """`mesh['a'=4,'b'=2], device_ids=(..) {'a', 'b':(1)2}` as groups."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", text)}
    ids = re.search(r'device_ids=\(([^()]*(?:\([\d,]*\))?)\)', text)
    if ids and ids[1].startswith('['):
        devices = _iota(ids[1]).reshape(-1)
    else:
        devices = np.array([int(n) for n in ids[1].split(',')]) if ids else np.arange(math.prod(sizes.values()))
    named = text[text.rindex('{') :]
    factors, grouped = [], []  # every axis as (before, the factor itself, after)
    within = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named)
    }
    for name, size in sizes.items():
        before, own = within.get(name, (size, 1))
        grouped.append(len(factors) + 1)
        factors += [before, own, size // before // own]
    shaped = devices.reshape(factors)
    rest = [axis for axis in range(len(factors)) if axis not in grouped]
    count = math.prod(factors[axis] for axis in grouped)
    return [tuple(group) for group in shaped.transpose(*rest, *grouped).reshape(-1, count).tolist()]


def _axes(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    devices = math.prod(mesh_shape.values())
    varying = set()
    for group in groups:
        if max(group) >= devices:
            raise ValueError(f'a collective of devices {list(group)} on a mesh of {devices} ({dict(mesh_shape)})')
        places = np.unravel_index(np.array(group), tuple(mesh_shape.values()))
        varying |= {axis for axis, place in zip(mesh_shape, places) if len(set(place.tolist())) > 1}
    return tuple(axis for axis in mesh_shape if axis in varying)
