"""What training carries from step to step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from walt.parallel.rules import shardings
from walt.randomness import stream


@struct.dataclass
class State:
    """step; parameters; optimizer; the exponential moving average of the parameters; `measured`, a pytree of what is
    measured rather than trained (the tokenizer's latent norm; None for the denoiser); `adversary`, the parameters,
    optimizer and logit averages of a discriminator, or None."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    measured: Any = None
    adversary: 'Adversary | None' = None

    def apply(self, gradients, optimizer: optax.GradientTransformation, ema_decay: float) -> 'State':
        """One optimizer update and one update of the moving average.

        The decay is min(ema_decay, (1 + n) / (10 + n)) after n updates, so that the average of a young run is not its
        random initialisation.
        """
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema = moving_average(self.ema, params, ema_decay, self.step)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, ema=ema)


@struct.dataclass
class Adversary:
    """What trains against the model: parameters, optimizer, and `averages`, a pytree of moving averages."""

    params: Any
    opt_state: Any
    averages: Any


def moving_average(average, new, decay: float, updates: jax.Array):
    """`average` after one more update; its decay grows to `decay` with the number of `updates` before this one."""
    decay = jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, new)


def create(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    measured: Any = None,
    adversary: Callable[[jax.Array], Adversary] | None = None,
) -> tuple[State, State]:
    """A new state, laid out over the mesh by the logical names of the parameters, and its tree of shardings.

    Args:
        init: key -> variables of a Linen module, boxed with logical names.
        measured: initial value of `State.measured`, replicated.
        adversary: key -> `State.adversary`, its parameters boxed too.
    """

    def new(key):
        params = init(key)['params']
        ema = jax.tree.map(jnp.copy, params)
        opposed = adversary and adversary(stream(key, 'adversary'))
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, measured, opposed)

    layout = shardings(mesh, jax.eval_shape(new, key))
    state = jax.jit(lambda key: nn.unbox(new(key)), out_shardings=layout)(key)
    return state, layout


def abstract_params(init: Callable[[jax.Array], Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the parameters that `init` makes, from shapes alone."""
    boxed = jax.eval_shape(init, jax.random.key(0))['params']
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings(mesh, boxed),
    )
