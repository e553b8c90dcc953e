"""Equal-length arrays as a data set: row i of each is element i. Encoded latents are kept so.

On disk a data set is a folder with one .npy file an array, read through memory maps. The folder is written in
another place and renamed when it is complete, so it is there whole or not at all.
"""

import os
import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np


class Arrays:
    """A random-access source over arrays, e.g. {'z': float32 (M, t, h, w, c), 'label': int32 (M,)}.

    Element `i` is the dict of the arrays' rows `i`. Raises ValueError where there are no arrays, where two differ in
    length, or where one holds Python objects or has a key that cannot be a file name.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        if not arrays:
            raise ValueError('no arrays')
        for key, array in arrays.items():
            if not key.isidentifier():
                raise ValueError(f'{key!r} is no identifier, so no name for an array')
            if not array.ndim or array.dtype.hasobject:
                raise ValueError(f'{key!r} needs rows of numbers or text, got {array.dtype} {array.shape}')
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'arrays differ in length: {lengths}')
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns row `index` of every array; raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} rows')
        return {key: np.asarray(array[index]) for key, array in self.arrays.items()}

    @classmethod
    def load(cls, folder: str | os.PathLike) -> 'Arrays':
        """Opens a saved data set through memory maps. Raises FileNotFoundError where the folder is missing or empty."""
        paths = sorted(pathlib.Path(folder).glob('*.npy'))
        if not paths:
            raise FileNotFoundError(f'no .npy files in {folder}')
        return cls({path.stem: np.load(path, mmap_mode='r') for path in paths})

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the arrays as a new folder, all or nothing. Raises FileExistsError where there is one."""
        folder = pathlib.Path(folder)
        if folder.exists():
            raise FileExistsError(f'{folder} exists; arrays are saved to a new folder')
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'.{folder.name}-') as scratch:
            whole = pathlib.Path(scratch) / folder.name
            whole.mkdir()
            for key, array in self.arrays.items():
                np.save(whole / f'{key}.npy', array)
            whole.rename(folder)
