"""What a task consists of, and what a training state is in shapes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from walt.training.state import State, step_jit


@dataclasses.dataclass(frozen=True)
class Phase:
    """Something that is done outside training: `function(*args)`, the first of which are parameters.

    `layouts` are shardings of the arguments, each a tree or one for all of its leaves.
    """

    function: Callable
    args: tuple[Any, ...]
    layouts: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """What there is to count, all of it abstract, and `new`, which makes some of it.

    Attributes:
        kind: 'tokenizer', 'denoiser' or 'classifier'.
        sizes: entries of the plan that come from the configuration alone.
        new: key -> (state, layout), on the devices of the mesh.
        state, layout: of training, and how it lies on the mesh.
        step: (state, frozen, batch, key) -> (state, metrics).
        frozen, frozen_layout: networks that the step reads.
        batch: of the step.
        phases: by name.
        notes: what is left out.
    """

    kind: str
    sizes: dict[str, Any]
    new: Callable[[jax.Array], tuple[State, State]]
    state: State
    layout: State
    step: Callable
    frozen: Any
    frozen_layout: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    phases: dict[str, Phase]
    notes: list[str]

    @property
    def args(self) -> tuple[Any, ...]:
        """Of the step."""
        return self.state, self.frozen, self.batch, abstract_key()

    @property
    def jit(self) -> dict[str, Any]:
        """Keyword arguments of `jax.jit` for the step."""
        return step_jit(self.layout, self.frozen_layout)


def abstract_state(new: Callable[[jax.Array], tuple[State, State]]) -> tuple[State, State]:
    """(state, layout) of `new`, the state in shapes only."""
    layouts = []

    def state(key):
        made, layout = new(key)
        layouts.append(layout)
        return made

    return jax.eval_shape(state, abstract_key()), layouts[0]


def abstract_key() -> jax.ShapeDtypeStruct:
    """A key, in shapes."""
    return jax.eval_shape(lambda: jax.random.key(0))
