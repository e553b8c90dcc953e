"""Host arrays -> one global array on the mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from walt.parallel.mesh import batch_shards
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


def put_filled(mesh: Mesh, rows) -> jax.Array:
    """Rows of one process, however many -> an array split over the mesh, filled up with copies of the last row."""
    fill = -len(rows) % batch_shards(mesh)
    rows = jnp.concatenate([rows, jnp.repeat(rows[-1:], fill, axis=0)]) if fill else rows
    return jax.device_put(rows, batch_sharding(mesh))
