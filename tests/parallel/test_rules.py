"""The table of logical axes covers every parameter of the paper's models, and no name slips through it."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, PartitionSpec

from walt.denoiser.walt import Walt
from walt.parallel.mesh import AXES, make_mesh
from walt.parallel.rules import RULES, activate, shardings
from walt.tokenizer.autoencoder import Tokenizer


def boxed_tokenizer():
    return jax.eval_shape(Tokenizer().init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))['params']


def boxed_denoiser(**fields):
    module = Walt(latent_shape=(5, 16, 16, 8), classes=101, **fields)
    dtypes = {'label': jnp.int32, 'text_mask': bool, 'image': bool}
    cond = {name: jnp.zeros((1, *shape), dtypes.get(name)) for name, shape in module.conditions.items()}
    return jax.eval_shape(module.init, jax.random.key(0), cond['estimate'], jnp.zeros(1), cond)['params']


def boxed_denoiser_with_everything():
    return boxed_denoiser(text_shape=(64, 2048), pooled_text=True, frame_prediction=True, upsample=2, images=True)


def boxed_denoiser_with_separate_modulations():
    return boxed_denoiser(separate_adaln=True, rank=0)


BOXED = [boxed_tokenizer, boxed_denoiser, boxed_denoiser_with_everything, boxed_denoiser_with_separate_modulations]


@pytest.fixture(scope='module', params=BOXED, ids=lambda boxed: boxed.__name__.removeprefix('boxed_'))
def boxed(request):
    return request.param()


def parameters(boxed):
    """(path, box) of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return [(jax.tree_util.keystr(path), box) for path, box in leaves]


def test_every_axis_of_every_parameter_has_a_name_in_the_table(boxed):
    """`None` stands only for axes that nobody splits: q, k, v; the vectors of AdaLN; one of two equal widths."""
    known = {name for name, _ in RULES}
    for path, box in parameters(boxed):
        assert isinstance(box, nn.LogicallyPartitioned), path
        assert len(box.names) == box.value.ndim, path
        assert known.issuperset(set(box.names) - {None}), path
        small = [size for name, size in zip(box.names, box.value.shape) if name is None]
        assert all(size <= 6 for size in small) or path.endswith("['mlp']['second']['kernel']") or 'bias' in path, path
    shardings(make_mesh(), boxed)


def test_every_large_parameter_is_split_over_the_devices(boxed):
    layout = shardings(AbstractMesh((1, 2, 1, 2), AXES), boxed)
    for (path, box), sharding in zip(parameters(boxed), jax.tree.leaves(layout)):
        if math.prod(box.value.shape) > 2**20:
            assert {axis for axis in sharding.spec if axis is not None}, path


def box(*names):
    value = jax.ShapeDtypeStruct((4,) * len(names), jnp.float32)
    return nn.LogicallyPartitioned(value, names)


def test_names_become_the_axes_of_the_mesh():
    tree = {'kernel': box('embed', None, 'heads', 'head'), 'step': jax.ShapeDtypeStruct((), jnp.int32)}
    layout = shardings(AbstractMesh((1, 2, 1, 2), AXES), tree)
    assert layout['kernel'].spec == PartitionSpec('fsdp', None, 'tensor', None)
    assert layout['step'].spec == PartitionSpec()


def test_an_axis_that_no_rule_covers_is_named_with_its_parameter():
    with pytest.raises(ValueError, match=r"logical axis 'hedas' of \['blocks'\]\['kernel'\]"):
        shardings(make_mesh(), {'blocks': {'kernel': box('embed', 'hedas')}})


def test_activations_are_constrained_within_the_block_only():
    def constrained(x):
        return nn.with_logical_constraint(x, ('batch', 'act_embed'))

    x = jnp.zeros((2, 2))
    with activate(make_mesh()):
        assert 'sharding_constraint' in str(jax.make_jaxpr(constrained)(x))
    assert 'sharding_constraint' not in str(jax.make_jaxpr(constrained)(x))
