"""Optimizers behind a global gradient clip, with linear warm-up and cosine decay; optimizers of a part of the model.

All share one frame, `direction` being what tells them apart:

    g <- g min(1, clip_norm / |g|)        u = direction(g)        w <- w - learning_rate(step) (u + weight_decay w)

A learning rate means the same to all three: the RMS of an update is about that of Adam's. `final_fraction=1` keeps it
constant after the warm-up.
"""

import math

import jax
import optax
from optax import contrib

from walt.training.adafactor import scale_by_adafactor
from walt.training.parameters import STACK, in_out_axes, is_kernel


def adamw(
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    final_fraction: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW for a run of `steps` steps.

    Args:
        learning_rate: its peak, reached after `warmup_steps`.
        final_fraction: where the cosine ends, as a fraction of the peak; 1 keeps the peak.
        weight_decay: decoupled, on kernels only: not on biases, scales, tables of embeddings.

    Raises:
        ValueError: if the warm-up takes the whole run.
    """
    schedule = _schedule(steps, learning_rate, warmup_steps, final_fraction)
    return _framed(optax.scale_by_adam(b1, b2), schedule, weight_decay, clip_norm)


def adafactor(
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    final_fraction: float = 0.0,
    decay: float = 0.8,
    clip_threshold: float = 1.0,
    parameter_scale: bool = False,
    min_side: int = 128,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235), without momentum: for W.A.L.T-L it keeps 7.5 MiB where AdamW keeps 2.3 GiB.

    W.A.L.T trains its text-to-video models with it and says no more; that updates are not scaled by the parameters'
    RMS is our reading, for its learning rates, 2e-4 and 5e-4, are then those of its AdamW.

    Args:
        decay, clip_threshold, parameter_scale, min_side: see `walt.training.adafactor`.

    Other arguments and errors as `adamw`.
    """
    schedule = _schedule(steps, learning_rate, warmup_steps, final_fraction)
    direction = scale_by_adafactor(
        decay=decay, clip_threshold=clip_threshold, parameter_scale=parameter_scale, min_side=min_side
    )
    return _framed(direction, schedule, weight_decay, clip_norm)


def muon(
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    final_fraction: float = 0.0,
    momentum: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Muon for the matrices of attention and MLP in a transformer's layers, Adam for all other parameters.

    The momentum of a matrix is replaced by the orthogonal matrix next to it (five steps of Newton-Schulz, after which
    singular values lie around 1, not on it), layer by layer, and q, k and v each for itself. Times 0.2 sqrt(max(n, m)),
    an update has the RMS of Adam's (arXiv:2502.16982, section 2.2), so one learning rate serves both.

    Args:
        momentum: of Muon (Nesterov's).
        b1, b2: of Adam.

    Other arguments and errors as `adamw`; `init` raises `ValueError` where there is no such matrix, for instance in a
    tokenizer.
    """
    schedule = _schedule(steps, learning_rate, warmup_steps, final_fraction)
    of_matrices = optax.chain(
        contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_dimension_numbers),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_as_large_as_adams, updates)),
    )
    direction = optax.partition({'matrix': of_matrices, 'other': optax.scale_by_adam(b1, b2)}, _labels)
    return _framed(direction, schedule, weight_decay, clip_norm)


def only(part: str, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` for the top-level entry `part` of the parameters; all others stay as they are and cost no memory."""
    return optax.partition(
        {True: optimizer, False: optax.set_to_zero()}, lambda params: {key: key == part for key in params}
    )


def _schedule(steps: int, learning_rate: float, warmup_steps: int, final_fraction: float) -> optax.Schedule:
    if not 0 <= warmup_steps < steps:
        raise ValueError(f'warmup_steps {warmup_steps} do not fit a run of {steps} steps')
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else learning_rate, learning_rate, warmup_steps, steps, final_fraction * learning_rate
    )


def _framed(
    direction: optax.GradientTransformation, schedule: optax.Schedule, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.chain(
            direction,
            optax.add_decayed_weights(weight_decay, kernels),
            optax.scale_by_learning_rate(schedule),
        ),
    )


def _labels(params):
    labels = jax.tree_util.tree_map_with_path(lambda path, _: 'matrix' if in_out_axes(path) else 'other', params)
    if 'matrix' not in jax.tree.leaves(labels):
        raise ValueError(f'muon is for the layers of a transformer, {STACK!r}; the parameters are {sorted(params)}')
    return labels


def _dimension_numbers(matrices):
    """Of a tree in which all but the matrices are masked."""
    return jax.tree_util.tree_map_with_path(lambda path, _: contrib.MuonDimensionNumbers(*in_out_axes(path)), matrices)


def _as_large_as_adams(path, update):
    sides = [math.prod(update.shape[axis] for axis in axes) for axes in in_out_axes(path)]
    return 0.2 * math.sqrt(max(sides)) * update
