"""Stable Diffusion's autoencoder in the names of diffusers' AutoencoderKL <-> `walt.tokenizer.autoencoder_kl`.

Their levels count from where data comes in: `decoder.up_blocks.0` is the coarsest. Kernels are (out, in, height, width)
there, and matrices (out, in).
"""

import re
from collections.abc import Mapping

import numpy as np

from walt.interop.table import Row, Table
from walt.tokenizer.autoencoder_kl import AutoencoderKl

LATENT_SCALE = 0.18215
"""What Stable Diffusion, and DiT after it, multiply the latents by: 1 / std over its training data."""

# The attention's projections until diffusers 0.12.
_OLDER = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def table(module: AutoencoderKl) -> Table:
    rows, coarsest = [], len(module.multipliers) - 1
    for side, blocks in {'encoder': module.blocks, 'decoder': module.blocks + 1}.items():
        rows += _convolution(f'{side}.conv_in', f'{side}/stem')
        rows += _convolution(f'{side}.conv_out', f'{side}/head')
        rows += _norm(f'{side}.conv_norm_out', f'{side}/head_norm')
        rows += _middle(f'{side}.mid_block', side)
        for level in range(coarsest + 1):
            down = side == 'encoder'
            theirs = f'{side}.down_blocks.{level}' if down else f'{side}.up_blocks.{coarsest - level}'
            for block in range(blocks):
                width = module.multipliers[level]
                before = module.multipliers[max(level - 1, 0) if down else min(level + 1, coarsest)]
                rows += _residual(
                    f'{theirs}.resnets.{block}', f'{side}/level{level}_block{block}', not block and before != width
                )
            if level < coarsest and down:
                rows += _convolution(f'{theirs}.downsamplers.0.conv', f'{side}/level{level}_down')
            if level > 0 and not down:
                rows += _convolution(f'{theirs}.upsamplers.0.conv', f'{side}/level{level}_up')
    rows += _convolution('quant_conv', 'encoder/moments')
    rows += _convolution('post_quant_conv', 'decoder/from_latent')
    return Table(rows, slots={'S': ('q', 'k', 'v')}, sizes={'N': 1})


def _convolution(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f'{theirs}.weight', f'{ours}/kernel', 'O I H W -> 1 H W I O'),
        Row(f'{theirs}.bias', f'{ours}/bias', 'O -> O'),
    ]


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row(f'{theirs}.weight', f'{ours}/scale', 'C -> C'), Row(f'{theirs}.bias', f'{ours}/bias', 'C -> C')]


def _residual(theirs: str, ours: str, shortcut: bool) -> list[Row]:
    rows = []
    for number in (1, 2):
        rows += _norm(f'{theirs}.norm{number}', f'{ours}/norm{number}')
        rows += _convolution(f'{theirs}.conv{number}', f'{ours}/conv{number}')
    return rows + (_convolution(f'{theirs}.conv_shortcut', f'{ours}/shortcut') if shortcut else [])


def _middle(theirs: str, ours: str) -> list[Row]:
    attention, inner = f'{theirs}.attentions.0', f'{ours}/middle_attention/attention'
    return [
        *_residual(f'{theirs}.resnets.0', f'{ours}/middle_block0', False),
        *_residual(f'{theirs}.resnets.1', f'{ours}/middle_block1', False),
        *_norm(f'{attention}.group_norm', f'{ours}/middle_attention/norm'),
        Row(f'{attention}.to_{{S}}.weight', f'{inner}/qkv/kernel', 'S (N K) D -> D S N K'),
        Row(f'{attention}.to_{{S}}.bias', f'{inner}/qkv/bias', 'S (N K) -> S N K'),
        Row(f'{attention}.to_out.0.weight', f'{inner}/out/kernel', 'D (N K) -> N K D'),
        Row(f'{attention}.to_out.0.bias', f'{inner}/out/bias', 'D -> D'),
    ]


def newer(arrays: Mapping[str, np.ndarray], source) -> dict[str, np.ndarray]:
    """The names of today in place of those that older files have, and matrices where these have 1x1 convolutions.

    Raises:
        ValueError: if a file has an array under both names.
    """
    found = {}
    for name, array in arrays.items():
        match = re.fullmatch(r'(.*\.attentions\.\d+\.)(\w+|to_out\.0)(\.weight|\.bias)', name)
        if match:
            prefix, part, kind = match.groups()
            name = f'{prefix}{_OLDER.get(part, part)}{kind}'
            array = array[..., 0, 0] if array.ndim == 4 and array.shape[2:] == (1, 1) else array
        if name in found:
            raise ValueError(f'{source} has {name} twice, under the older name as well')
        found[name] = array
    return found
