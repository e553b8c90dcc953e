"""Machines by name, and programs compiled for TPUs that are not there.

    v5p:4x4x4    64 chips of a slice of TPU v5p, a device each (a v5p's two cores are one to JAX)
    h100:8       8 GPUs, behind one switch

libtpu carries the compiler that runs on a TPU's host; asked for a topology it needs none of its devices. It is the
extra `tpu`. GPUs' compilers want to see a GPU: for those there are the counts from shapes, and no compilation.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from walt.planning import schedule
from walt.planning.chips import CHIPS, Chip

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`sides` of the slice; of GPUs, their number."""

    text: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.sides)

    def devices(self) -> Sequence[Any]:
        """Of a TPU slice, as its compiler describes them.

        Raises:
            ModuleNotFoundError: without libtpu.
            ValueError: if the compiler knows no such slice.
        """
        if importlib.util.find_spec('libtpu') is None:
            raise ModuleNotFoundError(f"compiling for {self.text} needs libtpu: pip install -e '.[tpu]'")
        # Flags of this machine's own backends: libtpu ends the process at one that it does not know.
        os.environ.pop('XLA_FLAGS', None)
        os.environ |= {
            # Or libtpu asks the network what machine this is, and complains that it is none; any of its names will do.
            'TPU_SKIP_MDS_QUERY': '1',
            'TPU_ACCELERATOR_TYPE': 'v6e-4',
            'TPU_WORKER_HOSTNAMES': 'localhost',
            # No device is taken, so there is none to guard from a second process.
            'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
        }
        schedule.ask()
        try:
            devices = topologies.get_topology_desc(self.text, platform='tpu').devices
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f'the TPU compiler does not know the topology {self.text!r}: {error}') from error
        if len(devices) != self.count:
            raise ValueError(
                f'topology {self.text!r} has {len(devices)} devices, not one for each of {self.count} chips'
            )
        return devices

    def bandwidth(self, mesh: Mesh | None, members: Sequence[int]) -> float:
        """Bytes a second that each of a group of devices can send while all send along a ring.

        On a torus a ring uses the links of each axis in which the group extends: both where it goes all around a side
        that is closed, one where it is a line. A switch gives a chip all it has.

        Args:
            mesh: None for a switch.
            members: places in the mesh's list of devices.
        """
        if not self.chip.torus or mesh is None:
            return self.chip.link_bandwidth
        coords = [mesh.devices.flat[member].coords for member in members]
        links = 0
        for side, along in zip(self.sides, zip(*coords)):
            extent = len(set(along))
            if extent > 1:
                links += 2 if extent == side and side % self.chip.wraps == 0 else 1
        return self.chip.link_bandwidth * max(links, 1)


def topology(text: str) -> Topology:
    """The machine of a name. Raises `ValueError` on a chip that is not in the table, and on a malformed size."""
    name, _, size = text.partition(':')
    if name not in CHIPS:
        raise ValueError(f'unknown chip {name!r} in topology {text!r}; choices: {sorted(CHIPS)}')
    chip = CHIPS[name]
    rank = max(chip.torus, 1)
    if not re.fullmatch(r'[1-9]\d*' + r'x[1-9]\d*' * (rank - 1), size):
        example = 'x'.join(['4'] * rank)
        raise ValueError(f'topology {text!r} needs a size such as {name}:{example}, it has {size!r}')
    return Topology(text, chip, tuple(map(int, size.split('x'))))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler made of a function.

    Attributes:
        text: HLO; '' where it does not fit, and where libtpu cannot print what it made.
        arguments, temporaries, outputs, code: bytes on a device; outputs without those that take an argument's place.
        peak: the most at a time; where it does not fit, what the compiler said it would take.
        capacity: what the compiler has to give, where it said so.
        flops, seconds: the compiler's own counts, a loop's body once.
        compile_seconds: on this machine.
        bundles: of the final schedule, by instruction (`walt.planning.schedule`).
        unprinted: what libtpu says where it cannot print the program.
    """

    text: str
    arguments: int
    temporaries: int
    outputs: int
    code: int
    peak: int
    flops: float
    seconds: float
    compile_seconds: float
    capacity: int | None = None
    bundles: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unprinted: str = ''

    @property
    def fits(self) -> bool:
        return bool(self.text or self.unprinted)


def compile_for_tpu(function: Callable, *args: Any, **jit: Any) -> Compiled:
    """Compiles `function` for the TPUs that the shardings of `args`, which are shapes, lie on.

    Args:
        jit: keyword arguments of `jax.jit`.
    """
    start = time.perf_counter()
    lowered = jax.jit(function, **jit).trace(*args).lower(lowering_platforms=('tpu',))
    try:
        schedule.read()  # what is there from before
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used, capacity = overflow(str(error))
        return Compiled('', 0, 0, 0, 0, used, 0.0, 0.0, time.perf_counter() - start, capacity)
    seconds, bundles = time.perf_counter() - start, schedule.read()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, outputs, memory.generated_code_size_in_bytes)
    text, unprinted = '', ''
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        unprinted = str(error)
    return Compiled(
        text,
        *sizes,
        peak=sum(sizes),
        flops=cost.get('flops', 0.0),
        seconds=cost.get('optimal_seconds', 0.0),
        compile_seconds=seconds,
        bundles=bundles,
        unprinted=unprinted,
    )


def overflow(message: str) -> tuple[int, int]:
    """(bytes needed, bytes there) of the compiler's error that HBM does not suffice; arguments are among the former.

    Raises:
        RuntimeError: if it is another error.
    """
    size = r'\(([\d.]+)([KMGT]?)\)'
    found = re.search(rf'required for HLO temporaries {size} exceeds available HBM {size}', message)
    if not found:
        raise RuntimeError(f'the compiler failed, and not for want of memory: {message}')
    used, unit, there, unit_there = found.groups()
    return int(float(used) * _UNITS[unit]), int(float(there) * _UNITS[unit_there])
