"""A folder of images, one sub-folder a class (see `class_folders`), each image whole and as large as it is.

For packed rows, which take pictures of any size and shape; `image_folder` cuts all to one size. Sizes come from the
headers of the files, read once when the source is built and kept in a file, if one is named, for the next time.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from walt.data.draws import element_draws
from walt.data.image_folder import DAMAGED, ImageFolder, read_image


@dataclasses.dataclass(frozen=True)
class WholeImages:
    """A random-access source.

    Element `i` has
        video    uint8 (1, height, width, 3), upright; grey, CMYK and palettes as RGB, what is transparent on white
        label    int32 scalar, the image's class
        caption  str, where root holds `captions.json` (see `captions`)

    Fields:
        root, split, validation_fraction, seed: as those of `ImageFolder`
        flip: whether half of the training images are mirrored, the same half in every epoch
        sizes_file: where the sizes are kept, an .npy file; '' reads the headers at every start. Another list of files
            has them read again

    After construction:
        sizes_N3: int32 (len, 3), 1 and height and width of every image, upright

    Raises FileNotFoundError where `root` is no folder, ValueError where the split has no image or where the header of
    one cannot be read, with its path.
    """

    root: str | os.PathLike
    split: str
    validation_fraction: float = 0.1
    flip: bool = False
    seed: int = 0
    sizes_file: str = ''

    folder: ImageFolder = dataclasses.field(init=False, repr=False, compare=False)
    sizes_N3: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        folder = ImageFolder(
            self.root, self.split, validation_fraction=self.validation_fraction, crops_per_file=1, seed=self.seed
        )
        object.__setattr__(self, 'folder', folder)
        object.__setattr__(self, 'sizes_N3', self._sizes())

    @property
    def num_classes(self) -> int:
        return self.folder.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.folder.class_names

    def __len__(self) -> int:
        return len(self.folder.files)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class).

        Raises IndexError outside 0 .. len - 1, and ValueError, with its path, where an image cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        frame_HWC = np.asarray(read_image(self._path(index)))
        if self.flip and self.split == 'train' and element_draws(self.seed, self.split, index)(2):
            frame_HWC = frame_HWC[:, ::-1]
        element = {'video': frame_HWC[None], 'label': self.folder.labels[index]}
        return element | ({} if self.folder.captions is None else {'caption': self.folder.captions[index]})

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.folder.files[index])

    def _sizes(self) -> np.ndarray:
        """Rows of height and width, and in the file before them, 8 bytes of what the list of files hashes to."""
        mark = np.frombuffer(hashlib.sha256('\n'.join(self.folder.files).encode()).digest()[:8], np.int32)
        path = Path(self.sizes_file)
        if self.sizes_file and path.is_file():
            kept = np.load(path)
            if kept.shape == (1 + len(self), 2) and (kept[0] == mark).all():
                return _with_frames(kept[1:])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            sizes_N2 = np.array(list(pool.map(upright_size, map(self._path, range(len(self))))), np.int32)
        if self.sizes_file:
            unfinished = path.with_name(f'.{path.name}.{os.getpid()}.npy')
            np.save(unfinished, np.concatenate([mark[None], sizes_N2]))
            unfinished.replace(path)
        return _with_frames(sizes_N2)


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) of an image as shown, from its header. Raises ValueError, with its path, on a damaged one."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except DAMAGED as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    return (width, height) if turned else (height, width)


def _with_frames(sizes_N2: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones_like(sizes_N2[:, :1]), sizes_N2], axis=1)
