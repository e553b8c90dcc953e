"""What training carries from step to step.

A run may keep averages of several decays at once, of which sampling picks one: the first is `State.ema`, the one that
validation looks at, and the others are in `State.more_ema`. With a decay of 0 the average is the parameters themselves,
to the last bit: that is how to train without one, as W.A.L.T does its text-to-video models.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from walt.parallel.rules import batch_sharding, replicated, shardings
from walt.randomness import stream


@struct.dataclass
class State:
    """step; parameters; optimizer; the exponential moving average of the parameters; `measured`, a pytree of what is
    measured rather than trained (a tokenizer's latent norm, by the first average; a denoiser's null text);
    `adversary`, the parameters, optimizer and logit averages of a discriminator, or None; `more_ema`, the averages of
    further decays by `decay_name`, or None."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    measured: Any = None
    adversary: 'Adversary | None' = None
    more_ema: dict[str, Any] | None = None

    def apply(self, gradients, optimizer: optax.GradientTransformation, ema_decay: float | Sequence[float]) -> 'State':
        """One optimizer update and one update of every moving average.

        The decay is min(ema_decay, (1 + n) / (10 + n)) after n updates, so that the average of a young run is not its
        random initialisation.

        Raises:
            ValueError: if the state was created for other decays.
        """
        first, *more = ema_decays(ema_decay)
        there = sorted(self.more_ema or ())
        if there != sorted(map(decay_name, more)):
            raise ValueError(f'ema_decay is {ema_decay}, but the averages of the state beside its first are {there}')
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema = moving_average(self.ema, params, first, self.step)
        more_ema = {
            decay_name(decay): moving_average(self.more_ema[decay_name(decay)], params, decay, self.step)
            for decay in more
        }
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, ema=ema, more_ema=more_ema or None)

    def starting_from(self, params) -> 'State':
        """This state with other parameters, of which all averages start as copies."""
        more = self.more_ema and {name: jax.tree.map(jnp.copy, params) for name in self.more_ema}
        return self.replace(params=params, ema=jax.tree.map(jnp.copy, params), more_ema=more)


@struct.dataclass
class Adversary:
    """What trains against the model: parameters, optimizer, and `averages`, a pytree of moving averages."""

    params: Any
    opt_state: Any
    averages: Any


def ema_decays(ema_decay: float | Sequence[float]) -> tuple[float, ...]:
    """One decay or several as a tuple. Raises `ValueError` where there is none, one twice, or one outside [0, 1)."""
    decays = tuple(ema_decay) if isinstance(ema_decay, Sequence) else (ema_decay,)
    if not decays or len(set(decays)) < len(decays) or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(f'ema_decay is a number in [0, 1) or several different ones, not {ema_decay}')
    return decays


def decay_name(decay: float) -> str:
    """What an average is called in `State.more_ema` and in checkpoints."""
    return repr(float(decay))


def moving_average(average, new, decay: float, updates: jax.Array):
    """`average` after one more update; its decay grows to `decay` with the number of `updates` before this one.

    A decay of 0 gives `new` exactly, which `old + (1 - decay) (new - old)` would not.
    """
    decay = jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
    return jax.tree.map(lambda old, new: new + decay * (old - new), average, new)


def create(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    measured: Any = None,
    adversary: Callable[[jax.Array], Adversary] | None = None,
    ema_decay: float | Sequence[float] = 0.0,
) -> tuple[State, State]:
    """A new state, laid out over the mesh by the logical names of the parameters, and its tree of shardings.

    Args:
        init: key -> variables of a Linen module, boxed with logical names.
        measured: initial value of `State.measured`, replicated.
        adversary: key -> `State.adversary`, its parameters boxed too.
        ema_decay: as `State.apply` will have it; says how many averages there are.
    """
    more = [decay_name(decay) for decay in ema_decays(ema_decay)[1:]]

    @jax.jit  # what it is called on twice is traced once
    def new(key):
        params = init(key)['params']
        ema = jax.tree.map(jnp.copy, params)
        opposed = adversary and adversary(stream(key, 'adversary'))
        more_ema = {name: jax.tree.map(jnp.copy, params) for name in more} or None
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, measured, opposed, more_ema)

    layout = shardings(mesh, _without_empty_boxes(jax.eval_shape(new, key)))
    state = jax.jit(lambda key: nn.unbox(new(key)), out_shardings=layout)(key)
    return state, layout


def step_jit(layout: State, frozen_layout: Any = None) -> dict[str, Any]:
    """Keyword arguments of `jax.jit` for a step (state, frozen, batch, key) -> (state, metrics).

    Where everything lies, and that the state is donated. Networks without gradient lie as they are, or as
    `frozen_layout` says.
    """
    mesh = layout.step.mesh
    whole = replicated(mesh)
    return {
        'in_shardings': (layout, frozen_layout, batch_sharding(mesh), whole),
        'out_shardings': (layout, whole),
        'donate_argnums': 0,
    }


def _without_empty_boxes(tree):
    """An optimizer of a part of the parameters leaves boxes with nothing in them, which have no sharding."""
    boxes = nn.LogicallyPartitioned
    return jax.tree.map(
        lambda leaf: leaf if jax.tree.leaves(leaf) else nn.unbox(leaf), tree, is_leaf=lambda x: isinstance(x, boxes)
    )


def abstract_params(init: Callable[[jax.Array], Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the parameters that `init` makes, from shapes alone."""
    boxed = jax.eval_shape(init, jax.random.key(0))['params']
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings(mesh, boxed),
    )
