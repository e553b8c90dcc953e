"""The fused kernel, interpreted, against dense attention; and that TPUs have room for it."""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from walt import build
from walt.nn import attention, window_attention
from walt.nn.attention import Attention, CrossAttention
from walt.parallel.mesh import make_mesh
from walt.planning.flops import flops
from walt.planning.program import program
from walt.planning.topology import compile_for_tpu, topology

HEADS, WIDTH = 2, 8


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run here, where there is no TPU, and for windows of any size."""

    def call(*args):
        return window_attention.window_attention(*args, interpret=True)

    monkeypatch.setattr(attention, 'window_attention', call)
    monkeypatch.setattr(attention, 'pays', lambda *sizes: True)


def inputs(rng, of):
    x_BGPD = jnp.asarray(rng.normal(size=(2, 4, 5, WIDTH)), jnp.float32)
    if of == 'text':
        tokens_BTSD = jnp.asarray(rng.normal(size=(2, 2, 3, WIDTH)), jnp.float32)
        there = [[True, True, False], [False, True, True]]
        return CrossAttention(HEADS), (x_BGPD, tokens_BTSD, jnp.array([there, there[::-1]]))
    bias_NPP = jnp.asarray(rng.normal(size=(HEADS, 5, 5)), jnp.float32)
    return {
        'bias': (Attention(HEADS), (x_BGPD, bias_NPP)),
        'neither': (Attention(HEADS, qk_norm=False), (x_BGPD,)),
        'alone': (Attention(HEADS), (x_BGPD, bias_NPP, None, jnp.array([True, False]))),
    }[of]


def value_and_gradients(layer, params, args, weight):
    """Of all parameters and of all inputs that are numbers."""
    floats = [i for i, arg in enumerate(args) if arg is not None and arg.dtype == jnp.float32]

    def loss(params, given):
        given = dict(zip(floats, given))
        y = layer.apply({'params': params}, *(given.get(i, arg) for i, arg in enumerate(args)))
        return (y * weight).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, [args[i] for i in floats])
    return y, gradients


SLOW = [pytest.param(of, marks=pytest.mark.slow) for of in ('neither', 'alone')]


@pytest.mark.parametrize('of', ['bias', 'text', *SLOW])
def test_the_fused_kernel_is_dense_attention_in_values_and_gradients(of, rng, random_parameters, request):
    layer, args = inputs(rng, of)
    params = random_parameters(layer, *args)
    weight = jnp.asarray(rng.normal(size=args[0].shape), jnp.float32)
    dense = value_and_gradients(layer, params, args, weight)
    request.getfixturevalue('interpreted')
    fused = value_and_gradients(layer, params, args, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), fused, dense)


@pytest.mark.parametrize('of', ['bias', 'text'])
def test_the_fused_kernel_has_the_parameters_of_dense_attention(of, rng, request):
    layer, args = inputs(rng, of)
    dense = jax.eval_shape(layer.init, jax.random.key(0), *args)
    request.getfixturevalue('interpreted')
    fused = jax.eval_shape(layer.init, jax.random.key(0), *args)
    assert jax.tree.structure(dense) == jax.tree.structure(fused)
    assert jax.tree.leaves(dense) == jax.tree.leaves(fused)


def test_many_windows_an_odd_number_of_them_and_large_logits(rng):
    """Sums over windows go on from step to step of the grid; logits of some hundreds overflow no exponential."""
    q, k, v = (jnp.asarray(30 * rng.normal(size=(3, 16, 4)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(1, 4, 4)), jnp.float32)

    def fused(bias):
        y = window_attention.window_attention(q, k, v, 1, bias_NMP=bias, interpret=True)
        return jnp.square(y).sum(), y

    def dense(bias):
        logits_WMP = jnp.einsum('wkm,wkp->wmp', k, q) / 4 + bias
        y = jnp.einsum('wkm,wmp->wkp', v, jax.nn.softmax(logits_WMP, axis=1))
        return jnp.square(y).sum(), y

    (of_fused, y_fused), (of_dense, y_dense) = (jax.jit(jax.grad(f, has_aux=True))(bias) for f in (fused, dense))
    np.testing.assert_allclose(y_fused, y_dense, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_fused, of_dense, rtol=1e-4, atol=1e-2)


def test_heads_of_several_blocks_are_each_by_themselves(rng):
    """Four heads go two by two: each is what it is alone, values and gradients."""
    assert window_attention._Grid(3, 4, (6, 3), 4, 8).steps == (2, 1, 3)
    q, dy, k, v, k_text, v_text = (
        jnp.asarray(rng.normal(size=(3, 32, length)), jnp.float32) for length in (4, 4, 6, 6, 3, 3)
    )
    norms = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(4, 9, 4)), jnp.float32)
    there = jnp.asarray(rng.random((3, 3)) < 0.7)

    def pulled(heads, bias, dy, *tokens):
        def attention(norms, bias, q, k, v, *text):
            return window_attention.window_attention(q, k, v, heads, norms, bias, (*text, there), interpret=True)

        y, pull_back = jax.vjp(attention, norms, bias, *tokens)
        return *pull_back(dy), y

    together = jax.jit(pulled, static_argnums=0)(4, bias, dy, q, k, v, k_text, v_text)
    by_head = [(bias[n : n + 1], *(x[:, 8 * n : 8 * n + 8] for x in (dy, q, k, v, k_text, v_text))) for n in range(4)]
    dnorms, dbias, *of_tokens = zip(*(jax.jit(pulled, static_argnums=0)(1, *inputs) for inputs in by_head))
    apart = (sum(dnorms), jnp.concatenate(dbias), *(jnp.concatenate(x, axis=1) for x in of_tokens))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), together, apart)


def test_a_block_has_as_many_heads_as_memory_allows():
    def block(tokens, heads, width):
        return window_attention._Grid(1, tokens, (tokens,), heads, width).block

    assert [block(256, 16, 72), block(320, 16, 112), block(448, 16, 112), block(560, 16, 112)] == [8, 8, 8, 4]
    assert block(560, 16, 64) == 4
    assert (block(256, 12, 64), block(256, 2, 64), block(1024, 16, 64)) == (6, 2, 2)


def test_the_kernel_counts_the_products_of_dense_attention(rng):
    """Its backward pass has the logits once more."""
    q, k = jax.ShapeDtypeStruct((3, 16, 4), jnp.float32), jax.ShapeDtypeStruct((3, 16, 6), jnp.float32)

    def fused(q, k, v):
        return window_attention.window_attention(q, k, v, 2, interpret=True)

    product = 2 * 3 * 2 * 4 * 6 * 8
    assert flops(program(fused, q, k, k)) == 2 * product
    assert flops(program(jax.grad(lambda *x: fused(*x).sum(), (0, 1, 2)), q, k, k)) == 5 * product


def test_on_cpus_and_for_small_windows_attention_stays_dense():
    assert not window_attention.pays(256, 256, 16, 72)
    device = jax.sharding.AbstractDevice('TPU v5', 2, 'tpu')
    mesh = make_mesh(devices=jax.devices()[:1]).abstract_mesh.update(abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert window_attention.pays(256, 256, 16, 72) and window_attention.pays(320, 384, 16, 72)
        assert window_attention.pays(1024, 1024, 16, 64)
        assert not window_attention.pays(64, 256, 16, 72) and not window_attention.pays(4096, 4096, 16, 72)


def windows_of_the_configurations():
    """{(tokens of a window, of a text beside it, heads, their width)}: all kernels of the paper's models."""
    found = set()
    for path in (Path(__file__).parents[2] / 'configs').glob('walt_*.py'):
        fields = importlib.import_module(f'configs.{path.stem}').get_config().denoiser.to_dict()
        if fields['name'] == 'walt':
            walt = build.denoiser(fields, 'bfloat16')
            for window in walt.windows.values():
                found.add((math.prod(window), 0, walt.heads, walt.width // walt.heads))
            for window in walt._text_windows if walt.text_shape else ():
                found.add((math.prod(window), walt.text_shape[0], walt.heads, walt.width // walt.heads))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install -e '.[tpu]'")
@pytest.mark.parametrize('chip', ['v5p:2x2x1', 'v6e:2x2'])
@pytest.mark.parametrize('tokens, text, heads, width', windows_of_the_configurations())
def test_the_windows_of_every_configuration_fit_into_a_core(tokens, text, heads, width, chip):
    where = SingleDeviceSharding(topology(chip).devices()[0])

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def of_each(length):
        return array(8, heads * width, length)  # of fewer windows none is fetched ahead

    norms = array(width, 4, dtype=jnp.float32)
    bias = None if text else array(heads, tokens, tokens, dtype=jnp.float32)
    beside = (of_each(text), of_each(text), array(8, text, dtype=jnp.bool_)) if text else None

    def loss(q, k, v, norms, bias, text):
        y = window_attention.window_attention(q, k, v, heads, norms, bias, text)
        return jnp.square(y).sum().astype(jnp.float32)

    q = of_each(tokens)
    gradient = jax.grad(loss, argnums=(0, 1, 2, 3), allow_int=True)
    assert compile_for_tpu(gradient, q, q, q, norms, bias, beside).fits
