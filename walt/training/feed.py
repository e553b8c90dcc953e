"""What this process reads of the data, by global batch size, and what it makes of the texts in it."""

from collections.abc import Callable, Mapping, Sequence

import grain
import numpy as np
from jax.sharding import Mesh

from walt.data.pipeline import batches
from walt.parallel.mesh import check_batch
from walt.parallel.shard import process_rows


def process_batches(source, mesh: Mesh, batch_size: int, **options) -> grain.IterDataset:
    """Of batches of `batch_size` rows, those rows that `put_batch` takes from this process; options as
    `data.pipeline.batches`.

    Raises:
        ValueError: if the devices that share a batch do not divide it.
    """
    check_batch(mesh, batch_size)
    return batches(source, batch_size, rows=process_rows(mesh, batch_size), **options)


class Texts:
    """batch -> the same with `text` and `text_mask` in place of `caption`, and so for captions of other names.

    `images_caption` (B, k, T) becomes `images_text` (B, k, T, S, E). Captions seen before are not encoded again.

    Args:
        encode: texts -> (embeddings (N, S, E), mask (N, S)).
        kept: how many captions are remembered.
    """

    def __init__(self, encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]], kept: int = 20_000):
        self._encode, self._kept, self._known = encode, kept, {}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = dict(batch)
        for name in [name for name in batch if name.endswith('caption')]:
            captions = np.asarray(batch.pop(name))
            known = self._embed([str(caption) for caption in captions.ravel()])
            for to, column in zip(('text', 'text_mask'), zip(*known)):
                column = np.stack(column)
                batch[name.removesuffix('caption') + to] = column.reshape(*captions.shape, *column.shape[1:])
        return batch

    def _embed(self, captions: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if len(self._known) + len(new) > self._kept:
            self._known, new = {}, list(dict.fromkeys(captions))
        if new:
            self._known |= zip(new, zip(*self._encode(new)))
        return [self._known[caption] for caption in captions]
