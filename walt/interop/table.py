"""Tables between the parameters of another project and ours: one description, read in both directions.

A row says which of their arrays make which parameter of ours, and how its axes lie:

    Row('blocks.{L}.attn.{S}.weight', 'blocks/qkv/kernel', 'L S (N K) D -> L D S N K')

A slot of their name, `{L}`, stands for a list of names that the table gives (here the numbers of the layers), and is an
axis of the layout (an einops pattern): arrays are stacked along it on the way in and split on the way out. So a stack
over layers, three projections in one, a transposition and a split into heads are one line, and the line backwards is
the export. Two more things occur:

    copies   a slot that the right side of the layout lacks: all these arrays must be equal, one is kept
    order    along an axis of ours the entries come in another order than in theirs

Every array is accounted for. What is missing, not expected, of another shape or not finite is listed, all at once, and
nothing is imported then.
"""

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """`theirs`, names of arrays; `ours`, the path of a parameter, with / between its parts; `layout`, from theirs to
    ours; `order`, by axis of ours: entry i is their entry order[i]."""

    theirs: str
    ours: str
    layout: str
    order: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    @property
    def left(self) -> str:
        return self.layout.split('->')[0].strip()

    @property
    def right(self) -> str:
        return self.layout.split('->')[1].strip()

    @property
    def slots(self) -> list[str]:
        return re.findall(r'{(\w+)}', self.theirs)

    @property
    def copies(self) -> list[str]:
        return [slot for slot in self.slots if slot not in _axes(self.right)]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An array of theirs that is computed here and no parameter: `values` within `tolerance`, or within the precision
    of the file where that is less."""

    theirs: str
    values: np.ndarray
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows for all parameters of a network.

    Attributes:
        rows: one for each parameter of ours.
        slots: the names that each slot stands for, in the order of its axis.
        sizes: of axes that a layout cannot know, such as the number of heads.
        fixed: arrays of theirs that are no parameters.

    Raises:
        ValueError: at construction, on two rows for one parameter of ours or one array of theirs.
    """

    rows: Sequence[Row]
    slots: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fixed: Sequence[Fixed] = ()

    def __post_init__(self):
        theirs = [name for row in self.rows for _, name in self._names(row)] + [part.theirs for part in self.fixed]
        for names in (theirs, [row.ours for row in self.rows]):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f'a table has {twice} twice')

    def export(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters, a nested dict -> their arrays by name.

        Raises:
            ValueError: if the parameters are others than those of the table, naming them.
        """
        params = flat(params)
        if wrong := sorted(set(params) ^ {row.ours for row in self.rows}):
            raise ValueError(f'parameters and rows of the table differ in {wrong}')
        theirs = {part.theirs: part.values for part in self.fixed}
        for row in self.rows:
            array = params[row.ours]
            for axis, order in row.order.items():
                array = array[_along(row.right, axis, np.argsort(order))]
            array = repeat(array, f'{row.right} -> {row.left}', **self._sizes_of(row))
            theirs |= {name: array[place] for place, name in self._names(row)}
        return theirs

    def load(
        self,
        arrays: Mapping[str, np.ndarray],
        params: Mapping[str, Any],
        source,
        allow_missing: Iterable[str] = (),
        initial: Callable[[], Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Their arrays -> parameters, float32.

        Args:
            params: ours, a nested dict of anything that has shapes.
            source: what the errors call the file.
            allow_missing: patterns, as of file names, for arrays that may be missing.
            initial: parameters for what is missing then.

        Raises:
            ValueError: if arrays and table do not fit, with a line for every name.
        """
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), params)
        expected = jax.eval_shape(self.export, shapes)
        check(arrays, expected, source, allow_missing)
        if missing := set(expected) - set(arrays):
            begun = jax.tree.map(np.asarray, initial())
            arrays = dict(arrays) | {name: array for name, array in self.export(begun).items() if name in missing}
        wrong = []
        for part in self.fixed:
            array = arrays[part.theirs]
            tolerance = max(part.tolerance, float(jnp.finfo(array.dtype).eps))
            if (apart := np.abs(array.astype(np.float32) - part.values).max()) > tolerance:
                wrong.append(
                    f'  {part.theirs} is {apart:.2g} from what is computed here, at most {tolerance:.2g} is allowed'
                )
        wrong += [line for row in self.rows for line in self._differing_copies(row, arrays)]
        if wrong:
            raise ValueError(f'{source} does not fit:\n' + '\n'.join(wrong))
        shapes = flat(shapes)
        return nested({row.ours: self._to_ours(row, arrays, shapes[row.ours].shape) for row in self.rows})

    def _to_ours(self, row: Row, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Each array goes right to its place in ours, so that nothing is held twice."""
        ours, sizes = np.empty(shape, np.float32), self._sizes_of(row, row.copies)
        slots, axes = [slot for slot in row.slots if slot not in row.copies], row.left.split()[len(row.slots) :]
        single = re.sub(r'[()]', '', ' '.join(axes))
        places = rearrange(ours, f'{row.right} -> {" ".join(slots)} {single}', **sizes)
        sizes = {axis: size for axis, size in sizes.items() if axis not in slots}
        for place, name in self._names(row):
            at = dict(zip(row.slots, place))
            if any(at[slot] for slot in row.copies):
                continue
            array = rearrange(arrays[name], f'{" ".join(axes)} -> {single}', **sizes)
            for axis, order in row.order.items():
                array = array[_along(single, axis, np.asarray(order))]
            places[tuple(at[slot] for slot in slots)] = array
        return ours

    def _differing_copies(self, row: Row, arrays: Arrays) -> list[str]:
        copied, first = [row.slots.index(slot) for slot in row.copies], {}
        lines = []
        for place, name in self._names(row):
            rest = tuple(index for slot, index in enumerate(place) if slot not in copied)
            one = first.setdefault(rest, name)
            if not np.array_equal(arrays[one], arrays[name]):
                lines.append(f'  {name} differs from {one}, of which it should be a copy')
        return lines

    def _names(self, row: Row) -> list[tuple[tuple[int, ...], str]]:
        """Their names, each with its place along the slots."""
        lists = [list(enumerate(self.slots[slot])) for slot in row.slots]
        return [
            (
                tuple(index for index, _ in chosen),
                row.theirs.format(**{slot: name for slot, (_, name) in zip(row.slots, chosen)}),
            )
            for chosen in itertools.product(*lists)
        ]

    def _sizes_of(self, row: Row, without: Sequence[str] = ()) -> dict[str, int]:
        """Of the axes of a row, as einops wants them: of no others."""
        sizes = {slot: len(self.slots[slot]) for slot in row.slots} | dict(self.sizes)
        axes = set(_axes(row.layout)) - set(without)
        return {axis: size for axis, size in sizes.items() if axis in axes}


def check(
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    source,
    allow_missing: Iterable[str] = (),
) -> None:
    """
    Raises:
        ValueError: if the names, shapes or kinds of `arrays` are others than expected, but for missing names that fit a
            pattern of `allow_missing`; if numbers are not finite; if a pattern fits nothing that is missing. A line for
            each.
    """
    missing, patterns = [name for name in expected if name not in arrays], list(allow_missing)
    excused = {pattern: fnmatch.filter(missing, pattern) for pattern in patterns}
    allowed = set(itertools.chain(*excused.values()))
    lines = [f'  missing: {name} {expected[name].shape}' for name in missing if name not in allowed]
    lines += [f'  nothing that is missing fits {pattern!r}' for pattern, names in excused.items() if not names]
    for name, array in arrays.items():
        if name not in expected:
            lines.append(f'  not expected: {name} {array.shape}')
        elif array.shape != expected[name].shape:
            lines.append(f'  shape: {name} {array.shape}, expected {expected[name].shape}')
        elif _kind(array.dtype) != _kind(expected[name].dtype):
            lines.append(f'  {name} is of {array.dtype}, expected {expected[name].dtype}')
        elif not np.isfinite(array).all():
            lines.append(f'  {name} has numbers that are not finite')
    if lines:
        raise ValueError(f'{source} does not fit:\n' + '\n'.join(lines))


def _kind(dtype) -> Any:
    """All precisions of numbers with a fraction are one kind."""
    return 'float' if jnp.issubdtype(dtype, np.floating) else dtype


def flat(tree: Mapping[str, Any], between: str = '/', prefix: str = '') -> dict[str, Any]:
    """A nested dict -> its leaves by path."""
    leaves = {}
    for key, value in tree.items():
        path = f'{prefix}{key}'
        leaves |= flat(value, between, f'{path}{between}') if isinstance(value, Mapping) else {path: value}
    return leaves


def nested(leaves: Mapping[str, Any], between: str = '/') -> dict[str, Any]:
    """The inverse of `flat`."""
    tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(between)
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree


def _axes(pattern: str) -> list[str]:
    return re.findall(r'[A-Za-z_]\w*', pattern)


def _along(pattern: str, axis: str, index: np.ndarray) -> tuple:
    """What picks entries along an axis of a pattern, which stands there by itself."""
    return (slice(None),) * pattern.split().index(axis) + (index,)
