"""How long a compiled program takes on a chip, instruction by instruction.

A TPU's core runs one instruction of the schedule after the other; while it does, memory is copied and, where the
compiler made them asynchronous, collectives go on. So for each instruction outside of collectives

    t_i = max(cycles_i / clock, FLOPs_i / peak, bytes_i / HBM bandwidth)      with a matrix product or convolution
    t_i = bytes_i / HBM bandwidth                                             without

and for the step

    t   = max(sum_i n_i t_i, bytes of all / HBM bandwidth, asynchronous collectives) + the other collectives

where n_i is how often i runs, with loops around it (the compiler's own `optimal_seconds` counts a loop's body once).

    FLOPs_i     of the products inside, from their shapes, without padding (`planning.flops`)
    bytes_i     of operands and results that lie in HBM, padding included; of an operand that is only sliced, and of a
                result that is written in place, the slice. What is copied from HBM beforehand counts in `bytes of all`
    cycles_i    the compiler's own estimate, in the text beside each fusion: what the products take on the matrix units
                as they are, with widths that do not fill them. Its estimates of other fusions are not used: a plain sum
                of two large arrays is given four times what the HBM's bandwidth takes

    kernels     Pallas kernels count as products: FLOPs as they say themselves (`cost_estimate`), and cycles by the
                exponentials that they say, where the table `KERNELS` has the compiler's schedule of them

The cycles are the compiler's, for its own choices, and were not measured on a device here. To a product of matrices of
16384 x 16384 they give 94 % of a v5p's published peak, 92 % of a v5e's and 78 % of a v6e's; to one of 65536 x 1152 by
1152 x 4608, 98, 97 and 52 %. So there are two times: t, and `at_best`, in which cycles_i is 0. Both leave out vector
work that takes longer than its memory traffic (but softmax and GELU inside a fusion with a product are in its cycles),
the start of programs, and data that arrives late.

MFU is the model's FLOPs / (devices x peak x t). The model's FLOPs are those of the method: forward and backward, and
the pass for the self-conditioning's estimate; not what is computed again to save memory.
"""

import dataclasses
import re
from collections.abc import Iterable

from walt.planning.chips import Chip
from walt.planning.flops import met
from walt.planning.hlo import HBM, Array, Instruction, Module

# Nothing moves for these: they name, regroup or begin what another instruction does.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'call', 'conditional', 'after-all'}
_FREE |= {'partition-id', 'replica-id', 'iota', 'opt-barrier', 'async-start', 'async-done', 'async-update', 'domain'}
_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-', 'ragged-all-to-all')
# Cycles of one core for 1024 exponentials (a vector register of logits), at the most: bundles of the compiler's final
# schedule of a step of the kernel's grid (libtpu 0.0.51, --xla_jf_dump_llo_text) by its logits with their padding. They
# are 7.7 and 18.8 at 320 x 320 tokens and heads of 72, 10.7 and 24.8 at 256 x 320 tokens, heads of 112 and a mask.
KERNELS = {'window_attention': 11.0, 'window_attention_gradient': 25.0}
_PRODUCTS = {'convolution', 'dot'}


@dataclasses.dataclass(frozen=True)
class Work:
    """An instruction's: how often it runs, and of one run FLOPs, bytes to and from HBM, cycles by the compiler.

    `hidden`: an asynchronous copy, which takes bandwidth but no time of its own. `kernel_cycles` are those of a kernel,
    which the cores of a chip share.
    """

    name: str
    operation: str
    times: int
    flops: int
    bytes: int
    cycles: int
    hidden: bool
    kernel_cycles: float = 0.0

    def seconds(self, chip: Chip, at_best: bool = False) -> float:
        """Of one run; `at_best` leaves the compiler's cycles out."""
        if self.hidden:
            return 0.0
        seconds = self.bytes / chip.hbm_bandwidth
        if self.flops:
            cycles = self.cycles + self.kernel_cycles / chip.cores
            of_cycles = 0.0 if at_best or not chip.clock else cycles / chip.clock
            seconds = max(seconds, self.flops / chip.peak_flops, of_cycles)
        return seconds


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a program on every device, and what they are spent on.

    Attributes:
        seconds: of the whole.
        at_best: the same if products took no longer than their FLOPs at the peak or their bytes.
        products, memory: of instructions with a matrix product or convolution; of all others.
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


def roofline(module: Module, chip: Chip, hidden: float = 0.0, exposed: float = 0.0) -> Roofline:
    """The estimate of the module's docstring.

    Args:
        hidden, exposed: seconds of asynchronous collectives, and of the others.
    """
    all_work = list(work(module))
    products, best = (sum(w.times * w.seconds(chip, at_best) for w in all_work if w.flops) for at_best in (False, True))
    memory = sum(w.times * w.seconds(chip) for w in all_work if not w.flops)
    total_bytes = sum(w.times * w.bytes for w in all_work)
    local, local_best = (max(time + memory, total_bytes / chip.hbm_bandwidth) for time in (products, best))
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


def work(module: Module) -> list[Work]:
    """Of every instruction that runs and costs anything, but for collectives."""
    found = []
    for instruction, times, computation in module.executed():
        if instruction.opcode in _FREE or instruction.opcode.startswith(_COLLECTIVES):
            continue
        if instruction.opcode.endswith('-done'):
            continue
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
                hidden=instruction.opcode.endswith('-start'),
                kernel_cycles=_kernel_cycles(instruction),
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


def _kernel_cycles(instruction: Instruction) -> float:
    if instruction.opcode != 'custom-call':
        return 0.0
    name = re.search(r'op_name="[^"]*?(\w+)/pallas_call', instruction.attributes)
    return _cost(instruction, 'transcendentals') / 1024 * KERNELS.get(name[1] if name else '', 0.0)


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
