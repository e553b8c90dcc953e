"""What of a block's forward pass is kept for the backward pass, by name.

    none        all that it needs
    products    what products with parameters put out, and attention; norms, GELU and all between is computed again
    blocks      what goes into the block; the rest is computed again
    attention   that, and what attention puts out: little to keep, much to compute again
    offload     what goes into the block, in the host's memory, from where it comes back when it is needed

Memory falls from line to line, but for `attention`, which lies between `products` and `blocks`; values and gradients
stay.
"""

import jax
from flax import linen as nn
from jax import checkpoint_policies
from jax.ad_checkpoint import checkpoint_name

POLICIES = {
    'products': checkpoint_policies.save_from_both_policies(
        checkpoint_policies.dots_with_no_batch_dims_saveable, checkpoint_policies.save_only_these_names('attention')
    ),
    'blocks': None,
    'attention': checkpoint_policies.save_only_these_names('attention'),
    'offload': checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=['block'],
        offload_src='device',
        offload_dst='pinned_host',
    ),
}
REMATS = ('none', *POLICIES)


def check_remat(remat: str, choices: tuple[str, ...] = REMATS) -> None:
    """Raises `ValueError` on a name that is none of them."""
    if remat not in choices:
        raise ValueError(f'remat is one of {choices}, not {remat!r}')


def rematerialised(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """The class of a block that keeps what `remat` says; its parameters have the same names."""
    return block if remat == 'none' else nn.remat(block, prevent_cse=False, policy=POLICIES[remat])


def of_block(x: jax.Array) -> jax.Array:
    """Marks what goes into a block."""
    return checkpoint_name(x, 'block')


def of_attention(y: jax.Array) -> jax.Array:
    """Marks what attention puts out."""
    return checkpoint_name(y, 'attention')
