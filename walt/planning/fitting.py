"""The smallest change of a run that makes it fit into memory, in the order of what the changes cost.

    recompute activations      a fourth more arithmetic at the most
    accumulate gradients       a step in micro-batches: smaller products, collectives of parameters more often
    split parameters further   more of the mesh along `fsdp`, less along `data`: gathered by more devices, more often

A change of the mesh alone comes before the same mesh with the changes above it; where the state alone does not fit,
nothing but the mesh helps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Change = dict[str, Any]


def changes(rows: int, mesh: Mapping[str, int], remat: Sequence[Change], accumulation: int) -> Iterator[Change]:
    """Changes to try, cheapest first; each a dict of configuration keys and their new values.

    Args:
        rows: clips on each device in a micro-batch now.
        mesh: axis -> size, with `data` and `fsdp` among them.
        remat: policies beyond that of now, cheapest first, such as {'denoiser.remat': 'blocks'}.
        accumulation: of now.
    """
    data, fsdp = mesh['data'], mesh['fsdp']
    strongest = remat[-1] if remat else {}
    parts = [1]
    while rows % (2 * parts[-1]) == 0:
        parts.append(2 * parts[-1])
    while True:
        of_mesh = {'mesh.data': data, 'mesh.fsdp': fsdp} if fsdp != mesh['fsdp'] else {}
        if of_mesh:
            yield of_mesh
        yield from (of_mesh | policy for policy in remat)
        yield from (of_mesh | strongest | {'accumulation': accumulation * count} for count in parts[1:])
        if data % 2:
            return
        data, fsdp = data // 2, 2 * fsdp


def smallest(
    candidates: Iterator[Change], state_fits: Callable[[Change], bool], fits: Callable[[Change], bool]
) -> tuple[Change | None, int]:
    """(the first change with which all fits, or None; how many were tried with `fits`).

    `state_fits` is cheap and tells of a change whether what is there before any step fits; `fits` may compile.
    """
    tried = 0
    for change in candidates:
        if state_fits(change):
            tried += 1
            if fits(change):
                return change, tried
    return None, tried
