"""A program is what runs: calls inlined, one branch a platform, nothing that no output needs."""

import jax
import jax.numpy as jnp
import pytest

from walt.planning.program import program

X = jax.ShapeDtypeStruct((3, 4), jnp.float32)


def names(function, *args, **kwargs) -> list[str]:
    return [operation.name for operation in program(function, *args, **kwargs).operations]


@jax.custom_vjp
def with_own_gradient(x):
    return jnp.sin(x)


with_own_gradient.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


@pytest.mark.parametrize('wrap', [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.jit(f)), jax.named_call])
def test_a_call_is_what_it_calls(wrap):
    def inner(x):
        return jnp.sin(x)

    assert names(wrap(inner), X) == ['sin']


def test_own_gradients_are_inlined_forward_and_backward():
    assert names(with_own_gradient, X) == ['sin']
    assert 'cos' in names(jax.grad(lambda x: with_own_gradient(x).sum()), X)


def test_a_call_that_runs_twice_is_there_twice():
    inner = jax.jit(jnp.sin)
    twice = program(lambda x: inner(inner(x)), X)
    first, second = twice.operations
    assert first.outputs == second.inputs and second.outputs == twice.outputs


def test_what_no_output_needs_is_dropped():
    def wasteful(x):
        jnp.tanh(x)
        return jnp.sin(x)

    assert names(wasteful, X) == ['sin']
    # The derivative by one argument alone needs no product for the other.
    grad = jax.grad(lambda x, w: jnp.square(x @ w).sum())
    assert names(grad, X, jax.ShapeDtypeStruct((4, 2), jnp.float32)).count('dot_general') == 2


def by_platform(x):
    return jax.lax.platform_dependent(x, cpu=jnp.sin, cuda=jnp.cos, default=jnp.tanh)


@pytest.mark.parametrize(('platform', 'expected'), [('cpu', 'sin'), ('cuda', 'cos'), ('tpu', 'tanh')])
def test_the_branch_of_the_platform_is_taken_forward_and_backward(platform, expected):
    assert names(by_platform, X, platform=platform) == [expected]
    primitives = {'sin', 'cos', 'tanh'} & set(names(jax.grad(lambda x: by_platform(x).sum()), X, platform=platform))
    assert primitives == {'sin': {'cos'}, 'cos': {'sin'}, 'tanh': {'tanh'}}[expected]


def test_a_platform_without_a_branch_is_refused():
    with pytest.raises(ValueError, match=r"no branch for platform 'tpu', only for .*'cpu'"):
        program(lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin), X)


def test_loops_and_choices_keep_their_bodies():
    def step(x, _):
        return jnp.sin(x), x

    (scan,) = program(lambda x: jax.lax.scan(step, x, length=7), X).operations
    assert scan.times == 7 and [operation.name for operation in scan.bodies[0].operations] == ['sin']
    (loop,) = program(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, jnp.sin, x), X).operations
    assert loop.times is None and any(body.operations[-1].name == 'sin' for body in loop.bodies)
    choice = program(lambda x: jax.lax.cond(x[0, 0] < 1, jnp.sin, jnp.cos, x), X).operations[-1]
    assert choice.times == 1 and {body.operations[0].name for body in choice.bodies} == {'sin', 'cos'}
