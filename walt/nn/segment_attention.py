"""Attention in packed rows: a token sees the tokens of its own row with the same id, and no others.

    y_i = sum over j with ids_j = ids_i of softmax_j(q_i k_j^T / sqrt(K)) v_j,        y_i = 0 where ids_i = 0 (padding)

One number a token says it all: that of its clip for attention within clips, of its window for attention within windows.

    row     clip 1 . . . . .   clip 2 . . .   padding       a row of the attention matrix, # where ids agree:
    ids     1 1 1   2 2 2      3 3   4 4      0 0           ...###......

Padding sees padding, so that no softmax is over nothing, and what it sees is then replaced by zeros: no gradient comes
back from there. One way on every platform, chosen by what the program is for and by nothing else:

    cpu   a mask on the logits of all pairs of a row
    gpu   the flash attention of JAX's Pallas kernels for Triton: logits stay on the chip
    tpu   splash attention, likewise

All of them go over all of a row's logits, also where no pair has the same id: attention costs L^2 for a row, however
many clips share it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.pallas.ops.gpu import attention as triton
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from walt.nn.window_attention import platform

BLOCK = 128
"""Kernels take rows of a multiple of so many tokens."""


def segment_attention(q_BLNK, k_BLNK, v_BLNK, ids_BL):
    """(B, L, N, K) three times, int32 (B, L) -> (B, L, N, K), zeros where the id is 0. Devices may share B and N.

    Raises:
        ValueError: for a platform other than those above; on GPUs and TPUs for a row that is not a multiple of `BLOCK`.
    """
    if platform() not in WAYS:
        raise ValueError(f'attention in packed rows is there for {sorted(WAYS)}, not for {platform()!r}')
    attend = WAYS[platform()]
    of_tokens, of_ids = ('batch', None, 'heads', None), ('batch', None)
    if attend is by_mask or jax.sharding.get_abstract_mesh().empty:
        y_BLNK = attend(q_BLNK, k_BLNK, v_BLNK, ids_BL)
    else:  # the compiler cannot see into kernels, so each device is told its part
        tokens, ids = nn.logical_to_mesh_axes(of_tokens), nn.logical_to_mesh_axes(of_ids)
        of_device = jax.shard_map(attend, in_specs=(tokens, tokens, tokens, ids), out_specs=tokens, check_vma=False)
        y_BLNK = of_device(q_BLNK, k_BLNK, v_BLNK, ids_BL)
    return jnp.where(ids_BL[..., None, None] > 0, y_BLNK, 0)


def by_mask(q_BLNK, k_BLNK, v_BLNK, ids_BL):
    """Dense attention under a mask; runs anywhere."""
    mask_B1LL = (ids_BL[:, :, None] == ids_BL[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q_BLNK, k_BLNK, v_BLNK, mask=mask_B1LL)


def by_triton(q_BLNK, k_BLNK, v_BLNK, ids_BL, interpret: bool = False):
    """The kernel for GPUs; `interpret` runs it anywhere, slowly."""
    _check(q_BLNK)
    return triton.mha(q_BLNK, k_BLNK, v_BLNK, ids_BL, q_BLNK.shape[-1] ** -0.5, interpret=interpret)


def by_splash(q_BLNK, k_BLNK, v_BLNK, ids_BL, interpret: bool = False):
    """The kernel for TPUs, which scales nothing by itself; `interpret` runs it anywhere, slowly."""
    _check(q_BLNK)
    attend = _splash(*q_BLNK.shape[1:3], interpret)
    q_BLNK = (q_BLNK.astype(jnp.float32) * q_BLNK.shape[-1] ** -0.5).astype(q_BLNK.dtype)
    q_BNLK, k_BNLK, v_BNLK = (x.swapaxes(1, 2) for x in (q_BLNK, k_BLNK, v_BLNK))
    y_BNLK = jax.vmap(attend)(q_BNLK, k_BNLK, v_BNLK, splash.SegmentIds(ids_BL, ids_BL))
    return y_BNLK.swapaxes(1, 2)


WAYS: dict[str, Callable] = {'cpu': by_mask, 'gpu': by_triton, 'tpu': by_splash}
"""Platform -> (q_BLNK, k_BLNK, v_BLNK, ids_BL) -> y_BLNK, which says nothing of padding."""


def _splash(length: int, heads: int, interpret: bool):
    """The kernel for one row: (N, L, K) three times and ids -> (N, L, K)."""
    block = next(size for size in (4 * BLOCK, 3 * BLOCK, 2 * BLOCK, BLOCK) if length % size == 0)
    names = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')
    sizes = splash.BlockSizes(**dict.fromkeys((*names, 'block_q_dq', 'block_kv_dq'), block))
    mask = splash.MultiHeadMask([splash.FullMask((length, length))] * heads)
    return splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret)


def _check(q_BLNK) -> None:
    if q_BLNK.shape[1] % BLOCK:
        raise ValueError(f'packed rows of {q_BLNK.shape[1]} tokens, but kernels take multiples of {BLOCK}')
