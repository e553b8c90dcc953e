"""DiT's weights, in the names of the published code and in those of diffusers <-> `walt.denoiser.dit`.

Matrices are (out, in) there, and the convolution that makes tokens is (out, in, row, column). Of the six vectors of a
layer they have (shift, scale, gate) of attention and then of the MLP, we scale, shift and gate of both in turn; their
head has (shift, scale). The table of positions is a parameter without gradient there, and part of every file: it must
be ours, but for what 400,000 updates of a moving average in float32 make of a constant, which is 2e-4.

In diffusers every block has embedders of its own for time and label. Those of published weights are copies of one, and
must be, because we have one.
"""

from walt.denoiser.dit import Dit, sine_positions
from walt.interop.table import Fixed, Row, Table

_VECTORS = {'V': (1, 4, 0, 3, 2, 5)}
_OF_HEAD = {'V': (1, 0)}


def original(module: Dit) -> Table:
    """In the names of the published code (facebookresearch/DiT)."""
    embedders = {'label': 'y_embedder', 'first': 't_embedder.mlp.0', 'second': 't_embedder.mlp.2'}
    positions_HWD = sine_positions(*module.grid[1:], module.width)
    return Table(
        [
            *_tokens(module, 'x_embedder.proj', embedders),
            Row('blocks.{L}.attn.qkv.weight', 'blocks/global/attention/qkv/kernel', 'L (S N K) D -> L D S N K'),
            Row('blocks.{L}.attn.qkv.bias', 'blocks/global/attention/qkv/bias', 'L (S N K) -> L S N K'),
            *_layers('blocks.{L}', modulation='adaLN_modulation.1', out='attn.proj', up='mlp.fc1', down='mlp.fc2'),
            *_head('final_layer.adaLN_modulation.1', 'final_layer.linear'),
        ],
        _slots(module),
        _sizes(module) | {'S': 3},
        [Fixed('pos_embed', positions_HWD.reshape(1, -1, module.width), tolerance=1e-3)],
    )


def diffusers(module: Dit) -> Table:
    """In the names of diffusers' DiTTransformer2DModel."""
    inside = 'transformer_blocks.{L}.norm1.emb'
    embedders = {
        'label': f'{inside}.class_embedder',
        'first': f'{inside}.timestep_embedder.linear_1',
        'second': f'{inside}.timestep_embedder.linear_2',
    }
    block, qkv = 'transformer_blocks.{L}', 'blocks/global/attention/qkv'
    return Table(
        [
            *_tokens(module, 'pos_embed.proj', embedders, copies='L '),
            Row(f'{block}.attn1.to_{{S}}.weight', f'{qkv}/kernel', 'L S (N K) D -> L D S N K'),
            Row(f'{block}.attn1.to_{{S}}.bias', f'{qkv}/bias', 'L S (N K) -> L S N K'),
            *_layers(block, modulation='norm1.linear', out='attn1.to_out.0', up='ff.net.0.proj', down='ff.net.2'),
            *_head('proj_out_1', 'proj_out_2'),
        ],
        _slots(module) | {'S': ('q', 'k', 'v')},
        _sizes(module),
    )


def _slots(module: Dit) -> dict[str, tuple[str, ...]]:
    return {'L': tuple(map(str, range(module.depth)))}


def _sizes(module: Dit) -> dict[str, int]:
    return {'N': module.heads, 'E': module.width, 'p': module.patch, 'q': module.patch}


def _tokens(module: Dit, patch: str, embedders: dict[str, str], copies: str = '') -> list[Row]:
    rows = [
        Row(f'{patch}.weight', 'patch/kernel', 'O C p q -> (p q C) O'),
        Row(f'{patch}.bias', 'patch/bias', 'O -> O'),
    ]
    for layer in ('first', 'second'):
        rows.append(Row(f'{embedders[layer]}.weight', f'time/mlp/{layer}/kernel', f'{copies}O I -> I O'))
        rows.append(Row(f'{embedders[layer]}.bias', f'time/mlp/{layer}/bias', f'{copies}O -> O'))
    table = Row(f'{embedders["label"]}.embedding_table.weight', 'label/table', f'{copies}C D -> C D')
    return rows + ([table] if module.classes else [])


def _layers(block: str, modulation: str, out: str, up: str, down: str) -> list[Row]:
    ours = 'blocks/global'
    rows = [
        Row(f'{block}.{modulation}.weight', f'{ours}/modulation/linear/kernel', 'L (V E) D -> L D V E', _VECTORS),
        Row(f'{block}.{modulation}.bias', f'{ours}/modulation/linear/bias', 'L (V E) -> L V E', _VECTORS),
        Row(f'{block}.{out}.weight', f'{ours}/attention/out/kernel', 'L D (N K) -> L N K D'),
        Row(f'{block}.{out}.bias', f'{ours}/attention/out/bias', 'L D -> L D'),
    ]
    for theirs, name in ((up, 'up'), (down, 'down')):
        rows.append(Row(f'{block}.{theirs}.weight', f'{ours}/mlp/{name}/kernel', 'L O I -> L I O'))
        rows.append(Row(f'{block}.{theirs}.bias', f'{ours}/mlp/{name}/bias', 'L O -> L O'))
    return rows


def _head(modulation: str, linear: str) -> list[Row]:
    return [
        Row(f'{modulation}.weight', 'head/modulation/linear/kernel', '(V E) D -> D V E', _OF_HEAD),
        Row(f'{modulation}.bias', 'head/modulation/linear/bias', '(V E) -> V E', _OF_HEAD),
        Row(f'{linear}.weight', 'head/linear/kernel', 'O D -> D O'),
        Row(f'{linear}.bias', 'head/linear/bias', 'O -> O'),
    ]
