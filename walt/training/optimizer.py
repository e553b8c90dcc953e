"""AdamW behind a global gradient clip, with linear warm-up and cosine decay; optimizers of a part of the parameters."""

import jax
import optax


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
    """The optimizer of a run of `steps` steps.

    Args:
        learning_rate: its peak, reached after `warmup_steps`.
        final_fraction: where the cosine ends, as a fraction of the peak; 1 keeps the peak.
        weight_decay: decoupled, on kernels only: not on biases, scales, tables of embeddings.

    Raises:
        ValueError: if the warm-up takes the whole run.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(f'warmup_steps {warmup_steps} do not fit a run of {steps} steps')
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else learning_rate, learning_rate, warmup_steps, steps, final_fraction * learning_rate
    )

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.DictKey('kernel'), params)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=kernels),
    )


def only(part: str, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` for the top-level entry `part` of the parameters; all others stay as they are and cost no memory."""
    return optax.partition(
        {True: optimizer, False: optax.set_to_zero()}, lambda params: {key: key == part for key in params}
    )
