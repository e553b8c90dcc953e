"""A plan as a table for people."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def parts(params: Any, depth: int) -> dict[str, int]:
    """Parameters of every group of the tree down to `depth`, by path, each group before its own parts.

    Groups of one kind count as one, by their name without its number: `level0_block0` .. `level0_block3` are
    `level0_block`.
    """
    counts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [re.sub(r'(?<=\D)_?\d+$', '', entry.key) for entry in path[:-1]]
        for end in range(1, min(len(names), depth) + 1):
            group = '/'.join(names[:end])
            counts[group] = counts.get(group, 0) + leaf.size
    return dict(sorted(counts.items(), key=lambda item: item[0].split('/')))


def million_text(count: int) -> str:
    """As 370.37M; few as they are."""
    return f'{count / 1e6:,.2f}M' if count >= 10_000 else f'{count:,}'


def flop_text(flops: float) -> str:
    """As 12.34 G, T, P or E."""
    for prefix, size in (('E', 1e18), ('P', 1e15), ('T', 1e12)):
        if flops >= size:
            return f'{flops / size:.2f} {prefix}'
    return f'{flops / 1e9:.2f} G'


def byte_text(count: int) -> str:
    """As 12.34 GiB, or MiB below one."""
    return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.2f} MiB'


def table(sections: Mapping[str, Mapping[str, str]], notes: Sequence[str] = ()) -> str:
    """Sections of aligned rows, name to figure; names with slashes are indented below what comes before."""
    lines = []
    width = max((len(name) + 2 for rows in sections.values() for name in map(_indented, rows)), default=0)
    figures = max((len(figure) for rows in sections.values() for figure in rows.values()), default=0)
    for title, rows in sections.items():
        lines += ['', title] if lines else [title]
        lines += [f'  {_indented(name):<{width}}{figure:>{figures}}' for name, figure in rows.items()]
    if notes:
        lines += ['', *(f'Note: {note}' for note in notes)]
    return '\n'.join(lines)


def _indented(name: str) -> str:
    *above, own = name.split('/')
    return '  ' * len(above) + own
