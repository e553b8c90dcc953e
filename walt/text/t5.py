"""T5's encoder with published weights, MT5 and UMT5 among them. W.A.L.T takes T5-XL (section 5.3).

A model is a folder as others publish it: `config.json`, a vocabulary (`tokenizer.json`, or `spiece.model` where there
is no such file), and weights (safetensors, or state dicts of PyTorch; in one file, or in several with an index).
PyTorch is not needed, and a pickle is read without running what it holds (`walt.weights`).
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from walt.text.encoder import Encoded
from walt.text.rows import Rows, by_rows, tokenizer_file
from walt.text.t5_network import T5Encoder, of_encoder, table
from walt.weights import read_named

_INSTALL = "pip install -e '.[t5]' -c launch/constraints.txt"
_VOCABULARIES = ('tokenizer.json', 'spiece.model')
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
_FEED_FORWARD = {
    'gated-gelu': {'activation': jax.nn.gelu, 'gates': 1},
    'relu': {'activation': jax.nn.relu, 'gates': 0},
}


@dataclasses.dataclass(frozen=True, eq=False)
class T5:
    """Last hidden states of the pieces and </s>: a `walt.text.encoder.TextEncoder`, float32 whatever the file holds.

    `width` is the model's own, from its configuration. Weights are read with the first prompts.

    Fields:
        model: a folder, or a name that is fetched from huggingface.co, such as 'google/t5-v1_1-xl'
        length: S, 2 or more; one of them is </s>

    Raises ModuleNotFoundError, with the command that installs it, where a library is not installed; OSError where there
    is no such model, or a file of it is missing; ValueError where it is no T5 or where `length` is out of its range,
    and, with the first prompts, where arrays are missing, not expected, of another shape or not finite, naming each.
    """

    model: str
    length: int = 64

    width: int = dataclasses.field(init=False)
    _module: T5Encoder = dataclasses.field(init=False, repr=False)
    _rows: Rows = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        folder = _folder(self.model, ('config.json', *_VOCABULARIES))
        config = json.loads((folder / 'config.json').read_text())
        module = module_of(config, self.model)
        split = _vocabulary(folder)
        if split('')[-1:] != [config['eos_token_id']]:
            raise ValueError(f'{folder} ends prompts with {split("")}, expected </s>, {config["eos_token_id"]}')
        object.__setattr__(self, '_module', module)
        object.__setattr__(self, 'width', module.width)
        object.__setattr__(self, '_rows', Rows(split, self.length, end_mark=True))

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """See `walt.text.encoder.TextEncoder`."""
        ids_BS, mask_BS = self._rows(prompts)
        return Encoded(by_rows(self._network, ids_BS, mask_BS), mask_BS)

    @functools.cached_property
    def _network(self):
        module, empty = self._module, np.zeros((1, 1), int)
        shapes = jax.eval_shape(module.init, jax.random.key(0), empty, empty > 0)['params']
        arrays = of_encoder(_weights(self.model), self.model)
        params = jax.tree.map(jnp.asarray, table(module).load(arrays, meta.unbox(shapes), self.model))
        return lambda ids_BS, mask_BS: np.asarray(_states(module, params, ids_BS, mask_BS))


@functools.partial(jax.jit, static_argnums=0)
def _states(module, params, ids_BS, mask_BS):
    # TPUs and GPUs would take shorter products, and embeddings would depend on where they were made.
    with jax.default_matmul_precision('highest'):
        return module.apply({'params': params}, ids_BS, mask_BS) * mask_BS[..., None]


def module_of(config: Mapping[str, Any], source) -> T5Encoder:
    """Of a `config.json`; what older files leave out has the values of the paper."""
    if (kind := config['model_type']) not in ('t5', 'mt5', 'umt5'):
        raise ValueError(f'{source} is a {kind!r}, expected a T5')
    feed_forward = config.get('feed_forward_proj', 'relu')
    if feed_forward not in _FEED_FORWARD:
        raise ValueError(f'{source} has feed_forward_proj {feed_forward!r}, known are {sorted(_FEED_FORWARD)}')
    return T5Encoder(
        tokens=config['vocab_size'],
        width=config['d_model'],
        depth=config['num_layers'],
        heads=config['num_heads'],
        head=config['d_kv'],
        hidden=config['d_ff'],
        tables=config['num_layers'] if kind == 'umt5' else 1,
        distances=(config['relative_attention_num_buckets'], config.get('relative_attention_max_distance', 128)),
        epsilon=config['layer_norm_epsilon'],
        **_FEED_FORWARD[feed_forward],
    )


def _vocabulary(folder: Path) -> Callable[[str], list[int]]:
    """text -> ids of its pieces and of </s>."""
    if (path := folder / 'tokenizer.json').is_file():
        return tokenizer_file(path)
    if not (path := folder / 'spiece.model').is_file():
        raise FileNotFoundError(f'{folder} has none of {list(_VOCABULARIES)}')
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{path} needs sentencepiece: {_INSTALL}') from error
    pieces = SentencePieceProcessor(model_file=str(path))
    return lambda text: pieces.encode(str(text), add_eos=True)


def _weights(model: str) -> dict[str, np.ndarray]:
    """All arrays of a model's files, by name."""
    for name in _WEIGHTS:
        stem, suffix = name.split('.')
        folder = _folder(model, (f'{stem}*.{suffix}', f'{name}.index.json'))
        if (index := folder / f'{name}.index.json').is_file():
            parts = sorted(set(json.loads(index.read_text())['weight_map'].values()))
        else:
            parts = [name] if (folder / name).is_file() else []
        if parts:
            return {key: array for part in parts for key, array in read_named(folder / part).items()}
    raise FileNotFoundError(f'{model} has none of {list(_WEIGHTS)}, nor an index of parts')


def _folder(model: str, files: Sequence[str]) -> Path:
    """The folder `model`, or one with these files (patterns) of the model that is published under this name."""
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{model} is no folder; to fetch it by its name: {_INSTALL}') from error
    return Path(snapshot_download(model, allow_patterns=list(files)))
