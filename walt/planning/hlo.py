"""Compiled programs as text (HLO) -> instructions, and how often each runs.

    ENTRY %main (..) -> .. {
      %p = f32[8,16]{1,0} parameter(0)
      %w = (s32[], ..) while(%t), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"12"}}
      ROOT %r = f32[8]{0} fusion(%p), kind=kLoop, calls=%f, ..

A loop's body stands there once and runs `known_trip_count` times; compilers for TPUs do not write that down, and there
it is the number that the loop's counter is compared with. Bodies of fusions and of reductions are no programs of their
own: what runs is the one instruction that calls them.

Layouts say what an array takes: `bf16[32,72]{1,0:T(8,128)(2,1)S(1)}` has its last axis innermost, is padded to tiles of
8 by 128, and lies in memory space 1, which on a TPU is the core's own vector memory; without S(..), in HBM.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

HBM = 0

# Bits; what is not here (tokens, opaque) is no array.
_BITS = {'pred': 8, 's2': 2, 'u2': 2, 's4': 4, 'u4': 4, 'bf16': 16, 'c64': 64, 'c128': 128}
_BITS |= {f'{kind}{bits}': bits for kind in 'su' for bits in (8, 16, 32, 64)}
_BITS |= {f'f{bits}': bits for bits in (16, 32, 64)}
_ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_NAME = re.compile(r'^\s+(ROOT )?%?([\w.-]+) = ')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array as it lies in memory.

    Attributes:
        tile: of the innermost axes, outer one first; () where there is no padding.
        order: its axes, innermost first.
        space: `HBM`, or another memory.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def bytes(self) -> int:
        """Without padding."""
        return math.prod(self.shape) * _bits(self.dtype) // 8

    @property
    def padded_bytes(self) -> int:
        sizes = [self.shape[axis] for axis in self.order] or list(reversed(self.shape))
        for place, multiple in zip(range(len(sizes)), reversed(self.tile)):
            sizes[place] = -(-sizes[place] // multiple) * multiple
        return math.prod(sizes) * _bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line; `attributes` is all of it after the operands, `literal` what stands between an opcode's parentheses."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str
    root: bool

    def attribute(self, name: str) -> str:
        """The value of `name=` up to its end, with the braces that it has; '' where there is none."""
        found = re.search(rf'(?:^|[ ,]){name}=', self.attributes)
        return _value(self.attributes, found.end()) if found else ''

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it mentions."""
        names = []
        for key in ('calls', 'to_apply', 'body', 'condition', 'branch_computations', 'called_computations'):
            names += re.findall(r'[\w.-]+', self.attribute(key))
        names += [self.attribute(key).lstrip('%') for key in ('true_computation', 'false_computation')]
        return tuple(name for name in names if name)


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, each its instructions by name, and the name of the one that is run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def executed(self) -> Iterator[tuple[Instruction, int, str]]:
        """(instruction, how often it runs, its computation) of all that is run for itself.

        Raises:
            ValueError: on a loop whose length the text does not tell.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, computation: str, times: int) -> Iterator[tuple[Instruction, int, str]]:
        for instruction in self.computations[computation].values():
            yield instruction, times, computation
            if instruction.opcode == 'while':
                turns = self.turns(instruction)
                yield from self._executed(instruction.attribute('body').lstrip('%'), times * turns)
            elif instruction.opcode in ('call', 'conditional', 'async-start'):
                for name in instruction.called:
                    yield from self._executed(name, times)

    def turns(self, loop: Instruction) -> int:
        """How often the body of a `while` runs."""
        known = re.search(r'known_trip_count["\\]*:?=?\{["\\]*n["\\]*:["\\]*(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition, body = (self.computations[loop.attribute(name).lstrip('%')] for name in ('condition', 'body'))
        compared, made = _root(condition), _root(body)
        bounds, counters = [], []
        for name in compared.operands:
            operand = condition[name]
            if operand.opcode == 'constant':
                bounds.append(int(operand.literal))
            elif operand.opcode == 'get-tuple-element':
                counters.append(int(operand.attribute('index')))
        if (compared.opcode, compared.attribute('direction'), len(bounds), len(counters)) != ('compare', 'LT', 1, 1):
            raise ValueError(f'the loop {loop.name} does not say how often it runs: {compared}')
        # The counter starts at 0; where the compiler has unrolled the loop it grows by more than one.
        grown = body[made.operands[counters[0]]]
        steps = [body[name].literal for name in grown.operands if body[name].opcode == 'constant']
        if grown.opcode != 'add' or len(steps) != 1:
            raise ValueError(f'the loop {loop.name} does not say how its counter grows: {grown}')
        return -(-bounds[0] // int(steps[0]))


def _root(computation: dict[str, Instruction]) -> Instruction:
    (root,) = (instruction for instruction in computation.values() if instruction.root)
    return root


def parse(text: str) -> Module:
    """The module that a `compiled.as_text()` describes. Raises `ValueError` if it has no entry."""
    computations, entry, current = {}, None, None
    for line in _without_breaks(text).splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith('}'):
            current = None
        else:
            instruction = _instruction(line)
            if instruction:
                current[instruction.name] = instruction
    if entry is None:
        raise ValueError(f'no ENTRY computation in an HLO text of {len(text)} characters')
    return Module(computations, entry)


def _without_breaks(text: str) -> str:
    """What a kernel says about itself is printed on lines of its own: here it is in the line of the instruction."""
    parts, end = [], 0
    for found in re.finditer('kernel_metadata=', text):
        said = _value(text, found.end(), stop=',')
        parts += [text[end : found.end()], said.replace('\n', ' ')]
        end = found.end() + len(said)
    return ''.join([*parts, text[end:]])


def _instruction(line: str) -> Instruction | None:
    start = _NAME.match(line)
    if not start:
        return None
    shape = _value(line, start.end(), stop=' ')
    call = start.end() + len(shape) + 1
    opcode, _, _ = line[call:].partition('(')
    inside = _value(line, call + len(opcode), stop=' ,')
    attributes = line[call + len(opcode) + len(inside) :].lstrip(', ')
    operands = () if opcode in ('constant', 'parameter', 'iota') else tuple(re.findall(r'%([\w.-]+)', inside))
    return Instruction(start[2], opcode, arrays(shape), operands, attributes, inside[1:-1], bool(start[1]))


def arrays(shape: str) -> tuple[Array, ...]:
    """All arrays of a shape as HLO prints it, those of a tuple one after the other."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if dtype not in _BITS and not dtype.startswith('f8'):
            continue
        order, _, rest = layout.partition(':')
        tile = re.search(r'T\(([\d,]+)\)', rest)
        space = re.search(r'S\((\d+)\)', rest)
        found.append(
            Array(
                dtype,
                _integers(sizes.replace('<=', '')),
                _integers(order),
                _integers(tile[1]) if tile else (),
                int(space[1]) if space else HBM,
            )
        )
    return tuple(found)


def _bits(dtype: str) -> int:
    return 8 if dtype.startswith('f8') else _BITS[dtype]


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', text))


def _value(text: str, start: int, stop: str = ' ,') -> str:
    """From `start` to the first of `stop` outside of all brackets and quotes."""
    depth, quoted = 0, False
    for end in range(start, len(text)):
        letter = text[end]
        if letter == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif letter in '([{':
            depth += 1
        elif letter in ')]}':
            depth -= 1
            if depth < 0:
                return text[start:end]
        elif depth == 0 and letter in stop:
            return text[start:end]
    return text[start:]
