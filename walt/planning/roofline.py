"""How long a compiled program takes on a chip, instruction by instruction.

A TPU's core runs one instruction of the schedule after the other; while it does, memory is copied and, where the
compiler made them asynchronous, collectives go on. So for each instruction outside of collectives

    t_i = max(cycles_i / clock, FLOPs_i / peak, bytes_i / HBM bandwidth)

and for the step

    t   = max(sum_i n_i t_i, bytes of all / HBM bandwidth, asynchronous collectives) + the other collectives

where n_i is how often i runs, with loops around it (the compiler's own `optimal_seconds` counts a loop's body once).

    FLOPs_i     of the products inside, from their shapes, without padding (`planning.flops`); Pallas kernels say
                themselves how many they do
    bytes_i     of operands and results that lie in HBM, padding included; of an operand that is only sliced, and of a
                result that is written in place, the slice. What is copied from HBM beforehand counts in `bytes of all`
    cycles_i    bundles of the compiler's final schedule (`planning.schedule`), a cycle each, times the turns of its
                loop over tiles, or of a kernel's grid, over the cores of the chip; vector work is in them. Where a
                product's epilogue is done in some turns only that is too much; the compiler also has an estimate from
                before it makes a schedule, and of the two the smaller is taken. Of other instructions the early
                estimate is not used: it gives a plain sum of two large arrays four times what the HBM's bandwidth takes

The cycles are the compiler's and were not measured on a device here. libtpu can also simulate the final schedule with
its copies, but aborts on some of those, so not for whole programs. Against that simulation, for the six products of an
MLP of 1152 x 4608 with its norm, GELU and gradients on 20480 tokens, cycles_i were from 2 % too few to 17 % too many
on a v6e and from 5 % too few to 4 % too many on a v5p; the early estimates alone, up to 41 and 22 % too many. For
window attention at 256 x 256 tokens they were within 3 % on a v6e (`python -m tests.benchmarks.schedule`). So there are
two times: t, and `at_best`, in which cycles_i is 0. Both leave out the start of programs, and data that arrives late.

MFU is the model's FLOPs / (devices x peak x t). The model's FLOPs are those of the method: forward and backward, and
the pass for the self-conditioning's estimate; not what is computed again to save memory.
"""

import dataclasses
import math
import re
import types
from collections.abc import Iterable, Mapping

from walt.planning.chips import Chip
from walt.planning.flops import met
from walt.planning.hlo import HBM, Array, Instruction, Module

# Nothing moves for these: they name, regroup or begin what another instruction does.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'call', 'conditional', 'after-all'}
_FREE |= {'partition-id', 'replica-id', 'iota', 'opt-barrier', 'async-start', 'async-done', 'async-update', 'domain'}
_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-', 'ragged-all-to-all')
_PRODUCTS = {'convolution', 'dot'}


@dataclasses.dataclass(frozen=True)
class Work:
    """An instruction's: how often it runs, and what one run takes.

    Attributes:
        flops, bytes: of products; to and from HBM.
        cycles: of the chip, by the compiler's early estimate.
        bundles: of the final schedule, with all turns of its loop, on all cores; 0 where they are not known.
        hidden: an asynchronous copy, which takes bandwidth but no time of its own.
    """

    name: str
    operation: str
    times: int
    flops: int
    bytes: int
    cycles: int
    bundles: int
    hidden: bool

    def seconds(self, chip: Chip, at_best: bool = False) -> float:
        """Of one run; `at_best` leaves the compiler's cycles out."""
        if self.hidden:
            return 0.0
        seconds = max(self.bytes / chip.hbm_bandwidth, self.flops / chip.peak_flops)
        return seconds if at_best or not chip.clock else max(seconds, self.chip_cycles(chip) / chip.clock)

    def chip_cycles(self, chip: Chip) -> float:
        """cycles_i of the module's docstring."""
        estimates = [self.bundles / chip.cores] if self.bundles else []
        if self.flops and self.cycles:
            estimates.append(self.cycles)
        return min(estimates, default=0.0)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a program on every device, and what they are spent on.

    Attributes:
        seconds: of the whole.
        at_best: the same if nothing took longer than its FLOPs at the peak or its bytes.
        products, memory: of instructions with a matrix product or convolution; of all others, which move data and do
            vector work.
        exposed: of collectives that nothing runs beside.
        flops, bytes: on one device, by the program that was compiled.
    """

    seconds: float
    at_best: float
    products: float
    memory: float
    exposed: float
    flops: int
    bytes: int


def roofline(
    module: Module,
    chip: Chip,
    bundles: Mapping[str, int] = types.MappingProxyType({}),
    hidden: float = 0.0,
    exposed: float = 0.0,
) -> Roofline:
    """The estimate of the module's docstring.

    Args:
        bundles: of the final schedule, by instruction.
        hidden, exposed: seconds of asynchronous collectives, and of the others.
    """
    all_work = work(module, bundles)
    products = sum(w.times * w.seconds(chip) for w in all_work if w.flops)
    total_bytes = sum(w.times * w.bytes for w in all_work)
    local, local_best = (
        max(sum(w.times * w.seconds(chip, at_best) for w in all_work), total_bytes / chip.hbm_bandwidth)
        for at_best in (False, True)
    )
    at_best = max(local_best, hidden) + exposed
    exposed += max(hidden - local, 0.0)
    return Roofline(
        seconds=local + exposed,
        at_best=at_best,
        products=products,
        memory=local - products,
        exposed=exposed,
        flops=sum(w.times * w.flops for w in all_work),
        bytes=total_bytes,
    )


def work(module: Module, bundles: Mapping[str, int] = types.MappingProxyType({})) -> list[Work]:
    """Of every instruction that runs and costs anything, but for collectives; `bundles` as `roofline` has them.

    Instructions that do the same on arrays that lie alike are scheduled once, under the name of one of them.
    """
    found, alike = [], {}
    running = [
        (instruction, times, computation)
        for instruction, times, computation in module.executed()
        if not (instruction.opcode in _FREE or instruction.opcode.startswith(_COLLECTIVES))
        and not instruction.opcode.endswith('-done')
    ]
    for instruction, _, computation in running:
        if instruction.name in bundles:
            alike[_signature(module, instruction, computation)] = bundles[instruction.name]
    for instruction, times, computation in running:
        scheduled = bundles.get(instruction.name) or alike.get(_signature(module, instruction, computation), 0)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        operation = re.search(r'op_name="([^"]*)"', instruction.attributes)
        found.append(
            Work(
                name=instruction.name,
                operation=operation[1] if operation else instruction.opcode,
                times=times,
                flops=_flops(module, instruction, computation),
                bytes=_bytes(module, instruction, computation),
                cycles=int(cycles[1]) if cycles else 0,
                bundles=scheduled * _turns(instruction),
                hidden=instruction.opcode.endswith('-start'),
            )
        )
    return found


def _flops(module: Module, instruction: Instruction, computation: str) -> int:
    if instruction.opcode in _PRODUCTS:
        return _product_flops(module, instruction, computation)
    if instruction.opcode == 'custom-call':
        return _cost(instruction, 'flops')
    if instruction.opcode != 'fusion':
        return 0
    return sum(
        _flops(module, inner, name) for name in instruction.called for inner in module.computations[name].values()
    )


def _cost(instruction: Instruction, name: str) -> int:
    """What a kernel says of itself."""
    found = re.search(rf'"cost_estimate":\{{[^}}]*"{name}":"(\d+)"', instruction.attributes)
    return int(found[1]) if found else 0


def _turns(instruction: Instruction) -> int:
    """Of the loop over tiles, or over the grid of a kernel that says how many steps it has."""
    if steps := re.search(r'kernel_metadata=\{[^}]*"?steps"?[:=]\s*"?(\d+)', instruction.attributes):
        return int(steps[1])
    bounds = re.search(r'"iteration_bounds":\[([^\]]*)\]', instruction.attributes)
    return math.prod(map(int, re.findall(r'\d+', bounds[1]))) if bounds else 1


def _signature(module: Module, instruction: Instruction, computation: str) -> tuple:
    """What an instruction does, without names."""
    there = module.computations[computation]
    window = re.search(r'"window_config":\{[^}]*\}', instruction.attributes)
    inside = instruction.called if instruction.opcode == 'fusion' else ()
    return (
        instruction.opcode,
        instruction.arrays,
        tuple(there[name].arrays for name in instruction.operands if name in there),
        instruction.literal if instruction.opcode in ('constant', 'parameter') else '',
        window[0] if window else '',
        _turns(instruction),
        *(_cost(instruction, name) for name in ('flops', 'transcendentals', 'bytes_accessed')),
        tuple(_signature(module, inner, name) for name in inside for inner in module.computations[name].values()),
    )


def _product_flops(module: Module, product: Instruction, computation: str) -> int:
    """Two for each multiplication of numbers that are not padding."""
    lhs, rhs = (module.computations[computation][name].arrays[0] for name in product.operands)
    (out,) = product.arrays
    flops = 2
    for size in out.shape:
        flops *= size
    if product.opcode == 'dot':
        for axis in re.findall(r'\d+', product.attribute('lhs_contracting_dims')):
            flops *= lhs.shape[int(axis)]
        return flops
    lhs_labels, rhs_labels, out_labels = re.split('_|->', product.attribute('dim_labels'))
    window = dict(field.split('=') for field in product.attribute('window').strip('{}').split())

    def field(name, place, default):
        text = window.get(name)
        return text.split('x')[place] if text else default

    flops *= rhs.shape[rhs_labels.index('i')]
    for place in range(len(out_labels) - 2):
        size, taps, positions = (
            array.shape[labels.index(str(place))]
            for array, labels in ((lhs, lhs_labels), (rhs, rhs_labels), (out, out_labels))
        )
        pairs = met(
            size,
            taps,
            positions,
            stride=int(field('stride', place, 1)),
            before=int(field('pad', place, '0_0').split('_')[0]),
            dilation=int(field('lhs_dilate', place, 1)),
            tap_dilation=int(field('rhs_dilate', place, 1)),
        )
        flops = flops // positions * pairs
    return flops


def _bytes(module: Module, instruction: Instruction, computation: str) -> int:
    there = module.computations[computation]
    operands = [there[name].arrays for name in instruction.operands if name in there]
    results = instruction.arrays
    if instruction.opcode in ('dynamic-slice', 'slice', 'gather'):
        return 2 * _in_hbm(results)
    if instruction.opcode == 'dynamic-update-slice':
        return 2 * _in_hbm(operands[1])
    if instruction.opcode.endswith('-start'):
        # Operand and result are both in the tuple that it returns, with a word for the synchronisation.
        moved = max((array.padded_bytes for array in results[:1]), default=0)
        if instruction.opcode == 'slice-start':
            moved = min(array.padded_bytes for array in results[:2])
        return moved * sum(array.space == HBM for array in results[:2])
    if instruction.opcode != 'fusion':
        return _in_hbm(results) + sum(map(_in_hbm, operands))
    (name,) = instruction.called
    body = module.computations[name]
    return _written(body, results) + sum(
        _read(module, body, int(inner.literal), arrays)
        for inner in body.values()
        if inner.opcode == 'parameter'
        for arrays in [operands[int(inner.literal)]]
    )


def _read(module: Module, body: dict[str, Instruction], number: int, arrays: tuple[Array, ...]) -> int:
    """Bytes that a fusion reads of its operand `number`, also in fusions within it."""
    (parameter,) = (i for i in body.values() if i.opcode == 'parameter' and int(i.literal) == number)
    sliced, pending = 0, [parameter.name]
    while pending:
        name = pending.pop()
        for user in body.values():
            if name not in user.operands:
                continue
            if user.opcode == 'bitcast':
                pending.append(user.name)
            elif user.opcode in ('dynamic-slice', 'slice', 'gather') and user.operands[0] == name:
                sliced += sum(array.padded_bytes for array in user.arrays)
            elif user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
                pass  # written in place; what is not written is not read
            elif user.opcode == 'fusion':
                within = [module.computations[called] for called in user.called]
                places = [place for place, operand in enumerate(user.operands) if operand == name]
                sliced += sum(_read(module, inner, place, arrays) for inner in within for place in places)
            else:
                return _in_hbm(arrays)
    return min(sliced, _in_hbm(arrays))


def _written(body: dict[str, Instruction], results: tuple[Array, ...]) -> int:
    """Bytes that a fusion writes: of results that are updated in place, the updates."""
    (root,) = (i for i in body.values() if i.root)
    roots = [body[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    total = 0
    for made, array in zip(roots, results):
        while made.opcode == 'bitcast':
            made = body[made.operands[0]]
        if array.space == HBM:
            updated = made.opcode == 'dynamic-update-slice'
            written = body[made.operands[1]].arrays[0] if updated else array
            total += written.padded_bytes
    return total


def _in_hbm(arrays: Iterable[Array]) -> int:
    return sum(array.padded_bytes for array in arrays if array.space == HBM)
