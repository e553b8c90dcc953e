"""Encoding a data set once, so that epochs over it cost no tokenizer passes."""

import itertools
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from walt.data.arrays import Arrays
from walt.data.pipeline import epoch
from walt.tokenizer.frozen import FrozenTokenizer


def encoded(frozen: FrozenTokenizer, source, batch_size: int, folder: str | Path, clips: int | None = None) -> Arrays:
    """The normalised latents `z` and labels of a source, from `folder` if it holds them already.

    Args:
        batch_size: clips encoded together.
        clips: how many, from the first on; all by default.
    """
    if not Path(folder).is_dir():
        encode = jax.jit(lambda frozen, video: frozen.encode(video))
        batches = -(-min(clips or len(source), len(source)) // batch_size)
        some = itertools.islice(epoch(source, batch_size), batches)
        rows = [
            {'z': np.asarray(encode(frozen, batch['video'])), 'label': batch['label']}
            for batch in tqdm(some, 'encode', batches, unit='batch', mininterval=5)
        ]
        Arrays({key: np.concatenate([row[key] for row in rows]) for key in ('z', 'label')}).save(folder)
    return Arrays.load(folder)
