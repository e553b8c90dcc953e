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


def as_table(result: Mapping[str, Any]) -> str:
    """The plan of `walt.costs` for people."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in result['mesh'].items())
    sizes = {name: 'x'.join(map(str, result[name])) for name in ('clip', 'latents') if name in result}
    sizes |= {'tokens': f'{result["tokens"]:,}'}
    if 'windows' in result:
        sizes |= {f'tokens/{kind} window': f'{count:,}' for kind, count in result['windows'].items()}
    sizes |= {'clips a step': f'{result["batch_size"]:,}', 'clips a step/on each device': f'{result["rows"]:,}'}
    sizes |= {'devices': f'{result["devices"]:,} ({mesh})', 'steps': f'{result["steps"]:,}'}
    memory = {}
    for phase, uses in result['memory'].items():
        clips = {'training': f', clips: {result["rows"]:,}', 'restore': ''}.get(phase, ', clips: 1')
        memory[phase + clips] = byte_text(uses['total'])
        shown = {use: count for use, count in uses.items() if use != 'total' and count >= 2**10}
        memory |= {f'{phase}/{use}': byte_text(count) for use, count in shown.items()}
    sections = {
        result['task']: sizes,
        'parameters': {path: million_text(count) for path, count in result['parameters'].items()},
        'FLOPs of a clip': {name: flop_text(count) for name, count in result['flops'].items() if name != 'run'},
        'FLOPs of the run': {'training': flop_text(result['flops']['run'])},
        'memory of one device': memory,
    }
    return table(sections, result['notes'])


def as_topologies(results: Sequence[Mapping[str, Any]]) -> str:
    """Plans of `walt.pods` for people: one table of all, then each by itself."""
    rows = [['topology', 'chips', 'mesh', 'batch', 'train', 'fits', 'step', 'MFU', 'days', 'chip-hours']]
    for result in results:
        train = result['phases'].get('train')
        timed = 'seconds' in result
        rows.append(
            [
                result['topology'],
                f'{result["chips"]:,}',
                mesh_text(result['mesh']),
                f'{result["batch_size"]:,}',
                byte_text(train['total']) if train else '',
                'yes' if result['fits'] else 'no',
                f'{result["seconds"]:.3g} s' if timed else '',
                _mfu_text(result) if timed else '',
                f'{result["days"]:.1f}' if timed else '',
                f'{result["chip_hours"]:,.0f}' if timed else '',
            ]
        )
    return '\n\n'.join([grid(rows), *map(_as_topology, results)])


def _as_topology(result: Mapping[str, Any]) -> str:
    hbm = byte_text(result['hbm'])
    sections = {f'{result["topology"]}: bytes on each device, of {hbm}': {}}
    (memory,) = sections.values()
    for name, phase in result['phases'].items():
        memory[name] = byte_text(phase['total']) + ('' if phase['fits'] else ' TOO MUCH')
        parts_of = ('arguments', 'temporaries', 'outputs', 'code')
        memory |= {f'{name}/{part}': byte_text(phase[part]) for part in parts_of if phase.get(part)}
        if 'compile_seconds' in phase:
            memory[f'{name}/compiled in'] = f'{phase["compile_seconds"]:.0f} s'
    if 'seconds' in result:
        sections['a step'] = {'seconds': f'{result["seconds"]:.4g}', 'MFU': _mfu_text(result)}
        sections['a step'] |= {f'seconds/{name}': f'{seconds:.4g}' for name, seconds in result['spent'].items()}
        sections['FLOPs of a step'] = {name: flop_text(count) for name, count in result['flops'].items()}
    if result.get('collectives'):
        sections['collectives of a step, on each device'] = {
            f'{one["kind"]} along {", ".join(one["axes"])}': f'{one["times"]:,} x, {byte_text(one["bytes"])}, '
            f'{1e3 * one["seconds"]:.1f} ms'
            for one in result['collectives']
        }
    notes = list(result['notes'])
    if 'change' in result:
        what = ', '.join(result['change'] or ['no change of remat, accumulation or mesh'])
        notes.append(f'it does not fit; with this it does: {what} ({result["tried"]} tried)')
    return table(sections, notes)


def _mfu_text(result: Mapping[str, Any]) -> str:
    if not result['compiled']:
        return f'< {result["mfu"]:.1%}'
    return f'{result["mfu"]:.1%} .. {result["mfu_at_best"]:.1%}'


def mesh_text(mesh: Mapping[str, int]) -> str:
    """Axes that are longer than one, as in the flag `mesh`."""
    return ','.join(f'{axis}:{size}' for axis, size in mesh.items() if size > 1) or 'one device'


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of aligned columns; the first row is their titles."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(f'{cell:>{width}}' for cell, width in zip(row, widths)).rstrip() for row in rows)
