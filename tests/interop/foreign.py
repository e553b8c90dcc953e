"""Weights of networks that are not there: drawn from the names and shapes of arrays, alike in every run.

`make_goldens.py` puts them into diffusers' own networks and keeps what these make of them, so that the tests compare
with PyTorch where there is none. `numpy.random.RandomState` draws the same numbers in every version of NumPy.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / 'goldens'


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
