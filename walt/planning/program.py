"""A function as one straight line of operations, the way a compiler gets it.

    function, shapes  --trace-->  jaxpr  --inline, choose, drop-->  Program

A jaxpr nests: `jit`, custom derivatives and rematerialisation are calls with a jaxpr of their own, and
`lax.platform_dependent` carries one for every platform. Here calls are inlined, the branch of the asked platform is
taken, and operations that no output needs are dropped: among them what the branches not taken would have kept for the
backward pass, and gradients that nobody asked for. Loops stay operations, with a program for their body.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

# Primitives that run the one jaxpr in their parameters once, on their own inputs; some were renamed over the years.
_CALLS = {
    'call',
    'checkpoint',
    'closed_call',
    'core_call',
    'custom_jvp_call',
    'custom_vjp_call',
    'jit',
    'pjit',
    'remat',
    'remat2',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array that is not there; equal to itself only."""

    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A primitive with its arrays.

    Attributes:
        name, params: of the primitive.
        bodies: the body of a loop, the branches of a choice that depends on data, or other programs that it carries.
        times: how often a body runs; None where shapes do not say.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any]
    bodies: tuple['Program', ...]
    times: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """`operations` in the order of the trace, from `inputs` and constants to `outputs`."""

    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Value, ...]


def program(function: Callable, *args: Any, platform: str = 'tpu') -> Program:
    """The program of `function`, traced on `args`: pytrees of arrays or of `ShapeDtypeStruct`s.

    Args:
        platform: 'tpu', 'cuda', 'rocm' or 'cpu': whose branch of `lax.platform_dependent` is taken.
    """
    return _program(jax.make_jaxpr(function)(*args), platform)


def _program(jaxpr: core.ClosedJaxpr | core.Jaxpr, platform: str) -> Program:
    inputs = tuple(_value(var) for var in _open(jaxpr).invars)
    operations = []
    outputs = tuple(_append(operations, jaxpr, inputs, platform))
    needed, kept = set(outputs), []
    for operation in reversed(operations):
        if not needed.isdisjoint(operation.outputs):
            kept.append(operation)
            needed.update(operation.inputs)
    return Program(inputs, tuple(reversed(kept)), outputs)


def _append(
    operations: list[Operation], jaxpr: core.ClosedJaxpr | core.Jaxpr, inputs: Sequence[Value], platform: str
) -> list[Value]:
    """Appends the operations of `jaxpr` on `inputs`, and returns its outputs."""
    jaxpr = _open(jaxpr)
    values = dict(zip(jaxpr.invars, inputs)) | {var: _value(var) for var in jaxpr.constvars}

    def read(atom):
        return _value(atom) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        arrays = tuple(read(atom) for atom in eqn.invars)
        if name in _CALLS:
            (called,) = _jaxprs(params)
            outputs = _append(operations, called, arrays, platform)
        elif name == 'cond' and params.get('branches_platforms'):
            taken = params['branches'][_branch(params['branches_platforms'], platform)]
            outputs = _append(operations, taken, arrays[1:], platform)
        else:
            outputs = tuple(_value(var) for var in eqn.outvars)
            # Of a kernel the body says what is done with blocks in a core's own memory; its author says what it costs.
            jaxprs = [] if name == 'pallas_call' else _jaxprs(params)
            bodies = tuple(_program(body, platform) for body in jaxprs)
            operations.append(Operation(name, arrays, outputs, params, bodies, _times(name, params)))
        values.update(zip(eqn.outvars, outputs))
    return [read(atom) for atom in jaxpr.outvars]


def _open(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _value(atom) -> Value:
    # Tokens and references have no shape of their own.
    return Value(getattr(atom.aval, 'shape', ()), getattr(atom.aval, 'dtype', jax.numpy.dtype('bool')))


def _jaxprs(params: Mapping[str, Any]) -> list[core.ClosedJaxpr | core.Jaxpr]:
    """All jaxprs in the parameters of a primitive, alone or in tuples."""
    lists = (value if isinstance(value, (list, tuple)) else [value] for value in params.values())
    return [value for values in lists for value in values if isinstance(value, (core.ClosedJaxpr, core.Jaxpr))]


def _times(name: str, params: Mapping[str, Any]) -> int | None:
    if name == 'scan':
        return params['length']
    return 1 if name == 'cond' else None


def _branch(branches_platforms: Sequence[Sequence[str] | None], platform: str) -> int:
    """The branch that names `platform`, or else the default, which comes last."""
    for index, platforms in enumerate(branches_platforms):
        if platforms is None or platform in platforms:
            return index
    raise ValueError(f'no branch for platform {platform!r}, only for {branches_platforms}')
