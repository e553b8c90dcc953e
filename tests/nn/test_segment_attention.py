"""Attention within segments of packed rows: the kernels, interpreted, are the mask; padding has no part in anything."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from scipy.special import softmax

from walt.nn import segment_attention as module
from walt.nn.attention import Attention
from walt.nn.segment_attention import by_mask, by_splash, by_triton, segment_attention
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import activate, batch_sharding
from walt.planning.topology import compile_for_tpu, topology

KERNELS = {'splash': by_splash, 'triton': by_triton}


def segments(*lengths):
    """Ids 1, 2, .. of so many tokens each, one after another; the last is padding."""
    *clips, padding = lengths
    return np.repeat([*range(1, len(clips) + 1), 0], [*clips, padding]).astype(np.int32)


@pytest.fixture
def row(rng):
    """Two rows of 256 tokens: some whose ids lie in one piece, some in windows that take turns; padding in both."""
    q, k, v = (jnp.asarray(rng.normal(size=(2, 256, 2, 16)), jnp.float32) for _ in range(3))
    windows = np.where(segments(200, 56) > 0, 1 + np.arange(256) % 5, 0)
    return q, k, v, jnp.asarray(np.stack([segments(100, 3, 130, 23), windows]), jnp.int32)


def value_and_gradients(attend, q, k, v, ids):
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)
    return jax.jit(jax.value_and_grad(lambda *qkv: (attend(*qkv, ids) * weight).sum(), (0, 1, 2)))(q, k, v)


@pytest.mark.parametrize('kernel', KERNELS)
def test_the_kernels_are_the_mask_in_values_and_gradients(kernel, row, monkeypatch):
    expected = jax.jit(segment_attention)(*row), value_and_gradients(segment_attention, *row)
    monkeypatch.setitem(module.WAYS, 'cpu', functools.partial(KERNELS[kernel], interpret=True))
    got = jax.jit(lambda *row: segment_attention(*row))(*row), value_and_gradients(segment_attention, *row)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), got, expected)


def test_a_segment_is_attention_over_its_tokens_alone(row):
    q, k, v, ids = row
    y = jax.jit(segment_attention)(*row)
    for b in range(2):
        for segment in set(np.asarray(ids[b])) - {0}:
            (own,) = np.nonzero(ids[b] == segment)
            q_LNK, k_LNK, v_LNK = (np.asarray(x[b])[own] for x in (q, k, v))
            weights = softmax(np.einsum('lnk,mnk->nlm', q_LNK, k_LNK) / 4, axis=-1)
            alone = np.einsum('nlm,mnk->lnk', weights, v_LNK)
            np.testing.assert_allclose(y[b, own], alone, atol=1e-5)


def test_padding_puts_out_zeros_and_has_no_gradient(row):
    padding = np.asarray(row[-1] == 0)
    assert not np.asarray(segment_attention(*row))[padding].any()
    for gradient in value_and_gradients(segment_attention, *row)[1]:
        assert np.isfinite(gradient).all() and not np.asarray(gradient)[padding].any()


def test_what_stands_in_padding_changes_nothing(row):
    q, k, v, ids = row
    other = [jnp.where(ids[..., None, None] > 0, x, 1e4) for x in (q, k, v)]
    before, after = value_and_gradients(segment_attention, *row), value_and_gradients(segment_attention, *other, ids)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_row_of_padding_is_zeros():
    q = jnp.ones((1, 128, 2, 16))
    value, gradients = value_and_gradients(segment_attention, q, q, q, jnp.zeros((1, 128), jnp.int32))
    assert value == 0 and not any(np.asarray(gradient).any() for gradient in gradients)


def test_the_layer_in_a_packed_row_is_the_layer_in_windows(rng, random_parameters):
    """Ids say which windows there are; rotary angles are those of the tokens."""
    x_BGPD = jnp.asarray(rng.normal(size=(2, 3, 5, 12)), jnp.float32)
    angles_PA = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    layer = Attention(2)
    params = random_parameters(layer, x_BGPD, None, angles_PA)
    windows = jax.jit(layer.apply)({'params': params}, x_BGPD, None, angles_PA)
    ids_BL = jnp.broadcast_to(jnp.repeat(jnp.arange(1, 4), 5), (2, 15))
    row = jax.jit(layer.apply)(
        {'params': params}, x_BGPD.reshape(2, 1, 15, 12), None, np.tile(angles_PA, (3, 1)), None, ids_BL
    )
    np.testing.assert_allclose(row.reshape(windows.shape), windows, atol=1e-5)


def test_kernels_refuse_rows_that_are_no_whole_number_of_blocks(row):
    short = [x[:, :200] for x in row]
    for kernel in KERNELS.values():
        with pytest.raises(ValueError, match='200 tokens, but kernels take multiples of 128'):
            kernel(*short)
    assert by_mask(*short).shape == (2, 200, 2, 16)


def test_a_platform_without_a_way_is_an_error(row, monkeypatch):
    monkeypatch.setattr(module, 'platform', lambda: 'abacus')
    with pytest.raises(ValueError, match="\\['cpu', 'gpu', 'tpu'\\], not for 'abacus'"):
        segment_attention(*row)


@pytest.mark.parametrize('width', [16, 24])
def test_the_kernel_for_gpus_is_lowered_forward_and_backward(width):
    """Compiling it takes a GPU; what Triton is given is made here."""
    q, ids = jax.ShapeDtypeStruct((2, 256, 2, width), jnp.bfloat16), jax.ShapeDtypeStruct((2, 256), jnp.int32)
    step = jax.jit(functools.partial(value_and_gradients, by_triton))
    gpu = AbstractDevice('NVIDIA H100 80GB HBM3', None, 'gpu')  # jax 0.12 asks for one
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        lowered = step.trace(q, q, q, ids).lower(lowering_platforms=('cuda',))
    assert lowered.as_text().count('stablehlo.custom_call') == 3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install -e '.[tpu]'")
def test_the_kernel_for_tpus_compiles_on_devices_that_share_rows_and_heads():
    mesh = make_mesh(devices=topology('v5p:2x2x1').devices(), data=2, tensor=2)
    q, ids = jax.ShapeDtypeStruct((4, 384, 4, 72), jnp.bfloat16), jax.ShapeDtypeStruct((4, 384), jnp.int32)
    step = functools.partial(value_and_gradients, segment_attention)
    with activate(mesh):
        compiled = compile_for_tpu(step, q, q, q, ids, in_shardings=(batch_sharding(mesh),) * 4)
    assert compiled.fits and compiled.text.count('custom_call_target="tpu_custom_call"') == 3
