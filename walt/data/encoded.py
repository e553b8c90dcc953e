"""Latents that were encoded before, as a data set (see `records`; `python -m walt.encode` writes them).

ROOT/train/       manifest.json, shards, null_text.npz where there are texts, sizes.npy where sizes are mixed
ROOT/validation/  the same
"""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import grain
import numpy as np

from walt.data.records import MANIFEST, unpack

FORMAT = 1
NULL_TEXT = 'null_text.npz'
SIZES = 'sizes.npy'


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Normalised latents from disk: a random-access source in the order of the data set that was encoded.

    Latents of clips of many sizes, which packed rows are made of, have the sizes of their clips.

    Element `i` has
        z      float32 (frames, height, width, channels), whatever it is stored as
        label, caption and other entries of the data set that was encoded, but for its video
        text, text_mask, low and so on, where they were encoded too, in the dtypes of the manifest

    Fields:
        root: the folder that was encoded to
        split: 'train' or 'validation'; a folder below root

    After construction:
        manifest: all that is known of the latents: `tokenizer`, `data`, `keys`, `clips`, `fps`, `num_classes`, ...

    Raises FileNotFoundError where there is no such folder or where shards are missing, with their names; ValueError
    where the folder is of another split or format, or a shard has not the elements that the manifest says.
    """

    root: str | os.PathLike
    split: str

    manifest: dict[str, Any] = dataclasses.field(init=False, repr=False, compare=False)
    _records: grain.sources.ArrayRecordDataSource = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if not os.fspath(self.root):
            raise ValueError('root is empty: give the folder that `python -m walt.encode` wrote to')
        path = self.folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f'no encoded data set in {self.folder}: {path} is missing')
        manifest = json.loads(path.read_text())
        for key, asked in {'format': FORMAT, 'split': self.split}.items():
            if manifest[key] != asked:
                raise ValueError(f'{path} is of {key} {manifest[key]!r}, asked for is {asked!r}')
        files = [self.folder / shard['file'] for shard in manifest['shards']]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of {len(files)} shards are missing in {self.folder}: {missing[0]} ...; '
                'the command that began it goes on'
            )
        for file, shard in zip(files, manifest['shards']):
            count = len(grain.sources.ArrayRecordDataSource([os.fspath(file)]))
            if count != shard['clips']:
                raise ValueError(f'{file} has {count} elements, {MANIFEST} says {shard["clips"]}')
        object.__setattr__(self, 'manifest', manifest)
        object.__setattr__(self, '_records', grain.sources.ArrayRecordDataSource([os.fspath(file) for file in files]))

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.split

    @property
    def num_classes(self) -> int:
        return self.manifest['num_classes']

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(frames, height, width, channels); None for what is not the same in all elements."""
        return tuple(self.manifest['keys']['z']['shape'])

    @functools.cached_property
    def sizes_N3(self) -> np.ndarray:
        """int (clips, 3): frames, height and width of every element's latents."""
        if None in self.latent_shape:
            return np.load(self.folder / SIZES)
        return np.broadcast_to(self.latent_shape[:3], (len(self), 3))

    def __len__(self) -> int:
        return self.manifest['clips']

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} clips')
        element = unpack(self._records[index], self.manifest['keys'])
        return element | {'z': element['z'].astype(np.float32)}

    def null_text(self) -> dict[str, np.ndarray]:
        """`text` (S, D) and `text_mask` (S,) of the empty text; raises FileNotFoundError where no text was encoded."""
        with np.load(self.folder / NULL_TEXT) as arrays:
            return dict(arrays)
