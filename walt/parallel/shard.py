"""Host arrays -> one global array on the mesh."""

import jax
from jax.sharding import Mesh

from walt.parallel.rules import batch_sharding


def put_batch(mesh: Mesh, batch):
    """A tree of this process's rows (B / processes, ...) -> a tree of global arrays (B, ...), split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
