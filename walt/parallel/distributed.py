"""One program on several processes: how they meet, wait for each other, and look at arrays that none holds whole.

Every process runs the same program on the same arguments and owns the devices of its host. What all compute together
are arrays on the mesh; files and the terminal belong to process 0.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# A process that ends waits so long for the others before it gives up on them. Nothing is under way by then: a
# checkpoint is complete in all processes before any of them leaves the loop.
_SHUTDOWN_SECONDS = 60


def initialize(
    *, auto: bool = False, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes, before JAX computes anything; does nothing if all arguments are at their defaults.

    Args:
        auto: JAX finds out where it runs: on a TPU pod, under SLURM or under Open MPI.
        coordinator: HOST:PORT that process 0 opens and the others call.
        processes: how many there are.
        process: the number of this one, counted from 0.

    Raises:
        ValueError: unless `auto` comes alone and the other three come together, or if `process` is out of range.
        RuntimeError: if the others are not there after five minutes.
    """
    explicit = {'coordinator': coordinator, 'processes': processes, 'process': process}
    given = {name: value for name, value in explicit.items() if value is not None}
    if auto and given:
        raise ValueError(f'either the processes are found automatically or they are told: auto, and {given}')
    if given and len(given) < len(explicit):
        raise ValueError(f'{sorted(explicit)} come together, but only {given} is given')
    if given and not 0 <= process < processes:
        raise ValueError(f'process {process} must be one of {processes} processes, counted from 0')
    if auto:
        jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    elif given:
        jax.distributed.initialize(coordinator, processes, process, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)


def first_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def wait_for_all(event: str) -> None:
    """Returns when every process is there; `event` says where, and must be the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


def fetch(tree: Any) -> Any:
    """Arrays -> NumPy arrays, whole in every process. All processes must call it alike."""

    def whole(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)
