"""A folder of images, one sub-folder a class (see `class_folders`), as ImageNet is laid out: clips of one frame.

A crop has the shape that is asked for, so that nothing is stretched. The largest one that fits an image is scaled by a
random number between 80 and 100 % and placed at random, which is the augmentation of MAGVIT-v2 (arXiv:2310.05737,
appendix A.2); validation takes the largest one from the centre.

     image 4:3                    size 1:1
    +----------------+           +----------+
    |     +---------+|   scaled  |          |
    |     |  crop   ||   ----->  |          |
    |     +---------+|           +----------+
    +----------------+

Which images are for validation is decided by a hash of their names. So each is chosen independently of all others, and
an image that is added later moves none to the other split. Whoever has separate folders for the two gives `root/train`
a validation_fraction of 0 and `root/val` one of 1.
"""

import dataclasses
import hashlib
import os
import struct

import numpy as np
from PIL import ExifTags, Image, ImageOps

from walt.data.captions import read_captions
from walt.data.class_folders import class_of, find_files, height_width
from walt.data.draws import check_stream, element_draws

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')

# What Pillow raises on damaged files, found by damaging files.
DAMAGED = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)

# What makes a picture upright, by its orientation tag: where its first row and first column are as shown (EXIF).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Random fractions are whole multiples of this part of 1.
_STEPS = 2**16


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Crops of images: a random-access source; an index gives the same crop every time.

    Element `i` comes from image `i` modulo the number of images, and has
        video    uint8 (1, height, width, 3), upright; grey, CMYK and palettes as RGB, what is transparent on white
        label    int32 scalar, the image's class
        caption  str, where root holds `captions.json` (see `captions`)

    Construction lists names and opens no file, so it takes about ten seconds for a million images.

    Fields:
        root: the folder, searched to any depth for files with one of SUFFIXES; names with a leading dot are passed over
        split: 'train' (crops at random) or 'validation' (crops from the centre)
        size: (height, width) of an element in pixels, or one number for both
        crop: least and greatest size of a training crop, as a share of the largest one that fits the image, by side
        flip: whether half of the training crops are mirrored (they are in MAGVIT-v2); their captions stay as they are
        validation_fraction: about which part of the images is for validation; with 0 and 1 it is exact
        crops_per_file: crops drawn from each image for training; for validation every image comes once
        seed: another seed draws other crops

    After construction:
        files: paths of the split's images, relative to root, in order
        labels: int32 (len(files),), the class of each
        captions: the caption of each, or None where there are none

    Raises FileNotFoundError where `root` is no folder, ValueError where the split has no image, where some images have
    captions and others none, or where a field is out of its range.
    """

    root: str | os.PathLike
    split: str
    size: int | tuple[int, int] = 64
    crop: tuple[float, float] = (0.8, 1.0)
    flip: bool = False
    validation_fraction: float = 0.1
    crops_per_file: int = 100
    seed: int = 0

    class_names: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    files: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    labels: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)
    captions: tuple[str, ...] | None = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        check_stream(self.seed, self.split)
        height_width(self.size)
        least, greatest = self.crop
        if not 0 < least <= greatest <= 1:
            raise ValueError(f'crop must rise from above 0 to at most 1, got {self.crop}')
        if not 0 <= self.validation_fraction <= 1:
            raise ValueError(f'validation_fraction must be between 0 and 1, got {self.validation_fraction}')
        if self.crops_per_file < 1:
            raise ValueError(f'crops_per_file must be 1 or more, got {self.crops_per_file}')
        found = find_files(self.root, SUFFIXES, 'images')
        files = tuple(path for path in found if self._held_out(path) == (self.split == 'validation'))
        if not files:
            raise ValueError(
                f'{self.root}: none of {len(found)} images ({", ".join(SUFFIXES)}) is for {self.split}, '
                f'at validation_fraction {self.validation_fraction}'
            )
        # Classes come from the names of both splits, so that they have the same numbers in both.
        class_names = tuple(sorted({class_of(path) for path in found}))
        numbers = {name: number for number, name in enumerate(class_names)}
        object.__setattr__(self, 'class_names', class_names)
        object.__setattr__(self, 'files', files)
        object.__setattr__(self, 'labels', np.array([numbers[class_of(path)] for path in files], np.int32))
        captions = read_captions(self.root, found)
        object.__setattr__(self, 'captions', None if captions is None else tuple(captions[path] for path in files))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files) * (self.crops_per_file if self.split == 'train' else 1)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class).

        Raises IndexError outside 0 .. len - 1, and ValueError, with its path, where an image cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} crops')
        number = index % len(self.files)
        path = os.path.join(self.root, self.files[number])
        draw = element_draws(self.seed, self.split, index)
        image = read_image(path)
        height, width = height_width(self.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, self._box(image.height, image.width, draw))
        if self.flip and self.split == 'train' and draw(2):
            image = ImageOps.mirror(image)
        element = {'video': np.asarray(image)[None], 'label': self.labels[number]}
        return element if self.captions is None else element | {'caption': self.captions[number]}

    def _held_out(self, path: str) -> bool:
        if self.validation_fraction in (0, 1):
            return bool(self.validation_fraction)
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        return int.from_bytes(digest) < self.validation_fraction * 2**64

    def _box(self, image_height: int, image_width: int, draw) -> tuple[float, float, float, float]:
        """The crop of an image: its left, top, right and bottom edge, in pixels and parts of pixels."""
        if self.split == 'train':
            share, across, down = (draw(_STEPS + 1) / _STEPS for _ in range(3))
            least, greatest = self.crop
            share = least + (greatest - least) * share
        else:
            share, across, down = 1.0, 0.5, 0.5
        height, width = height_width(self.size)
        scale = share * min(image_height / height, image_width / width)
        tall, wide = min(image_height, scale * height), min(image_width, scale * width)
        left, top = across * (image_width - wide), down * (image_height - tall)
        return left, top, min(image_width, left + wide), min(image_height, top + tall)


def read_image(path: str | os.PathLike) -> Image.Image:
    """Any image as RGB, upright. Raises ValueError, with its path, where it cannot be read."""
    try:
        with Image.open(path) as file:
            return _upright(_rgb(file), file.getexif().get(ExifTags.Base.Orientation))
    except DAMAGED as error:
        raise ValueError(f'{path} cannot be read: {error}') from error


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any image as RGB, with white behind what is transparent."""
    if image.mode.startswith('I'):  # 16 bits of grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if 'A' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')
