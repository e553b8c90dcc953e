"""Logical axis names -> mesh axes. The only place where a model's axes meet the machine's.

Modules name the axes of every parameter where they create it, and of activations at block boundaries. This table says
which mesh axis splits each name; `None` is not split. A name that is not in the table is an error, not a silent
replication.
"""

import contextlib
from collections.abc import Iterator

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from walt.parallel.mesh import BATCH_AXES

RULES = (
    # Activations.
    ('batch', BATCH_AXES),
    ('tokens', None),
    ('act_embed', None),
    ('frames', None),
    ('height', 'context'),
    ('windows', 'context'),
    ('queries', 'context'),
    ('width', None),
    ('act_channels', None),
    # Parameters of the transformer.
    ('layers', None),
    ('embed', 'fsdp'),
    ('mlp', 'tensor'),
    ('heads', 'tensor'),
    ('head', None),
    ('adaln', 'tensor'),
    ('lora', None),
    ('patch', None),
    ('text', None),
    ('frequency', None),
    ('position_t', None),
    ('position_h', None),
    ('position_w', None),
    ('offset', None),
    ('classes', None),
    # Parameters of the tokenizer.
    ('kernel_t', None),
    ('kernel_h', None),
    ('kernel_w', None),
    ('in_channels', 'fsdp'),
    ('out_channels', 'tensor'),
    ('norm', None),
    ('latent', None),
    ('pixel', None),
    ('codes', None),
    ('logit', None),
)


def shardings(mesh: Mesh, abstract_tree):
    """The sharding of every leaf of a tree of (boxed) `ShapeDtypeStruct`s, by the logical names in its boxes.

    Leaves without a box (a step counter) are replicated.

    Raises:
        ValueError: naming a parameter's axis that no rule covers.
    """
    known = {name for name, _ in RULES}

    def check(path, leaf):
        names = getattr(leaf, 'names', ())
        for name in names:
            if name is not None and name not in known:
                raise ValueError(f'no rule for logical axis {name!r} of {jax.tree_util.keystr(path)}')

    jax.tree_util.tree_map_with_path(check, abstract_tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract_tree), mesh, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of the batch over the axes that share it; all other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@contextlib.contextmanager
def activate(mesh: Mesh) -> Iterator[None]:
    """Within the block, the logical names of activations mean axes of `mesh`. Trace and call `jit`ted steps inside."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield
