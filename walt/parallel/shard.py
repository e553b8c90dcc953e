"""Host arrays -> one global array on the mesh."""

import jax
from jax.sharding import Mesh

from walt.parallel.rules import batch_sharding


def process_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Which rows of a batch the devices of this process hold, in order.

    All of them where there is one process; a part of them, which need not be one stretch, where the rows are split
    between processes; and the same as another process where both have devices of one model.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in parts for row in range(batch_size)[part]})


def put_batch(mesh: Mesh, batch):
    """A tree of this process's rows, as `process_rows` names them -> a tree of global arrays, split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
