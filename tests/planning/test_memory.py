"""The peak of a program, in closed form for small ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from walt.nn.conv import conv3d, conv3d_native
from walt.planning.memory import array_bytes, peak_bytes, tree_bytes
from walt.planning.program import program


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def peak(function, *args, **kwargs) -> int:
    return peak_bytes(program(function, *args, **kwargs))


def test_bytes_of_a_tree_are_those_of_its_leaves():
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    tree = {'a': shaped(2, 3, dtype=jnp.bfloat16), 'b': [np.zeros(5, np.uint8), jnp.zeros((), jnp.int32)], 'c': None}
    assert tree_bytes(tree) == 2 * 6 + 5 + 4
    assert array_bytes(key) == 3 * 8  # two words each


def test_a_chain_of_products_holds_two_neighbours_at_a_time_and_not_its_inputs():
    widths, batch = [1000, 10, 20, 50, 40, 5], 3
    weights = [shaped(a, b) for a, b in itertools.pairwise(widths)]

    def chain(weights, x):
        for w in weights:
            x = x @ w
        return x

    assert peak(chain, weights, shaped(batch, widths[0])) == 4 * batch * (50 + 40)


def test_what_is_read_later_is_held_until_then():
    w = shaped(10, 10)
    assert peak(lambda x, w: (x @ w) @ w @ w @ w, shaped(3, 10), w) == 2 * 4 * 30
    assert peak(lambda x, w: (first := x @ w) @ w @ w @ w + first @ w, shaped(3, 10), w) == 3 * 4 * 30
    assert peak(lambda x, w: ((first := x @ w) @ w @ w @ w, first), shaped(3, 10), w) == 3 * 4 * 30


def layers(x, w, count: int, remat: bool):
    def layer(x):
        return jnp.sin(x @ w)

    for _ in range(count):
        x = jax.checkpoint(layer)(x) if remat else layer(x)
    return x.sum()


@pytest.mark.parametrize(('remat', 'arrays_a_layer'), [(False, 2), (True, 1)])
def test_a_backward_pass_holds_what_every_layer_keeps_for_it(remat, arrays_a_layer):
    """Input and cosine of each layer; or, recomputed, its input alone."""
    step = jax.grad(layers, 1)
    x, w = shaped(64, 8), shaped(8, 8)
    more, fewer = (peak(lambda x, w, n=n: step(x, w, n, remat), x, w) for n in (20, 10))
    assert more - fewer == 10 * arrays_a_layer * array_bytes(x)


def test_a_scan_holds_its_stacked_outputs_and_one_turn_of_its_body():
    def turn(x, _):
        wide = jnp.concatenate([x] * 5)
        return wide[:10] + 1, x

    x, stacked, inside = 40, 7 * 40, 200 + 40
    assert peak(lambda x: lax.scan(turn, x, length=7), shaped(10)) == x + stacked + inside
    assert peak(lambda x: lax.scan(turn, x, length=7)[0], shaped(10)) == x + inside  # nothing reads what is stacked


def test_branches_of_other_platforms_hold_nothing():
    x_BTHWC, kernel_THWIO = shaped(1, 5, 8, 8, 8), shaped(3, 3, 3, 8, 8)

    def step(conv):
        return jax.grad(lambda x, kernel: jnp.square(conv(x, kernel, (1, 1, 1))).sum(), (0, 1))

    native, chosen = (peak(step(conv), x_BTHWC, kernel_THWIO) for conv in (conv3d_native, conv3d))
    assert native <= chosen <= 1.01 * native
    assert peak(step(conv3d), x_BTHWC, kernel_THWIO, platform='cpu') > 1.2 * native


def test_an_optimizer_after_the_last_product_adds_no_copies():
    x, w = shaped(2, 100), shaped(100, 100)
    grad = jax.grad(lambda w, x: jnp.square(x @ w).sum())

    def step(w, x):
        gradient = grad(w, x)
        moment = 0.9 * w + 0.1 * gradient
        return w - moment / jnp.sqrt(jnp.square(moment) + 1), moment

    assert peak(step, w, x) == peak(grad, w, x)
