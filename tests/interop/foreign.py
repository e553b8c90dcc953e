"""Weights of networks that are not there: drawn from the names and shapes of arrays, alike in every run.

`make_goldens.py` puts them into diffusers' own networks and keeps what these make of them, so that the tests compare
with PyTorch where there is none. `numpy.random.RandomState` draws the same numbers in every version of NumPy.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

GOLDENS = Path(__file__).parent / 'goldens'

# As google/t5-v1_1-xl, which W.A.L.T takes, as the T5 before it, and as UMT5, but for sizes.
_T5 = dict(
    vocab_size=8,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_layers=2,
    num_heads=4,
    relative_attention_num_buckets=32,
    layer_norm_epsilon=1e-6,
    eos_token_id=1,
)
T5_CONFIGS = {
    't5': _T5 | dict(model_type='t5', feed_forward_proj='gated-gelu'),
    't5_relu': _T5 | dict(model_type='t5', feed_forward_proj='relu'),
    'umt5': _T5 | dict(model_type='umt5', feed_forward_proj='gated-gelu'),
}
T5_WORDS = ('<pad>', '</s>', '<unk>', 'a', 'cat', 'kitten', 'walks', 'strolls')
# One is so long that its words are in every bucket of distances.
T5_PROMPTS = ('a cat walks', '', 'a kitten strolls', 50 * 'a cat walks ')


def drawn(name: str, shape) -> np.ndarray:
    """An array of a state dict; activations keep the size of 1, and nothing is 0 or 1 as in an initialisation."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) > 1:
        return noise / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.float32(1) + np.float32(0.2) * noise if name.endswith('weight') else np.float32(0.2) * noise


def weights(shapes: dict) -> dict[str, np.ndarray]:
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f'{name}.npz') as file:
        return dict(file)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays of a network of diffusers."""
    return {key: tuple(shape) for key, shape in json.loads((GOLDENS / f'{name}.json').read_text()).items()}


def without_copies(name: str) -> str:
    """In diffusers' DiT every block has embedders, in published weights all alike: those of the first stand for all."""
    head, _, rest = name.partition('.norm1.emb.')
    return f'transformer_blocks.0.norm1.emb.{rest}' if rest else head


def dit_weights(shapes: dict) -> dict[str, np.ndarray]:
    return {name: drawn(without_copies(name), shape) for name, shape in shapes.items()}


def t5_weights(kind: str) -> dict[str, np.ndarray]:
    """A state dict, in which the table of tokens has two names."""
    arrays = weights(shapes(kind))
    return arrays | {'encoder.embed_tokens.weight': arrays['shared.weight']}


def t5_folder(folder: Path, kind: str) -> Path:
    """Writes a model's configuration and vocabulary, as published; its weights are for the caller to write."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(T5_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'config.json').write_text(json.dumps(T5_CONFIGS[kind]))
    return folder
