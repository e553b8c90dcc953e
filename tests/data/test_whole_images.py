"""Folders of images of any size."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from walt.data import whole_images
from walt.data.whole_images import WholeImages


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(10, 30), (25, 12), (16, 16), (7, 9)]):
        folder = tmp_path / ('cat', 'dog')[number % 2]
        folder.mkdir(exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if number == 1 else 1
        picture.save(folder / f'{number}.png', exif=exif)
    return tmp_path


def test_sizes_come_from_headers_upright_and_are_those_of_the_images(root):
    source = WholeImages(root, 'train', validation_fraction=0)
    assert source.sizes_N3.tolist() == [list(source[index]['video'].shape[:3]) for index in range(4)]
    assert [1, 12, 25] in source.sizes_N3.tolist()
    assert source.num_classes == 2 and [int(source[index]['label']) for index in range(4)] == [0, 0, 1, 1]


def test_no_pixel_is_read_for_the_sizes(root, monkeypatch):
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    WholeImages(root, 'train', validation_fraction=0)


def test_sizes_are_kept_in_a_file_until_the_folder_changes(root, tmp_path, monkeypatch):
    file = tmp_path / 'sizes.npy'
    first = WholeImages(root, 'train', validation_fraction=0, sizes_file=str(file))
    monkeypatch.setattr(whole_images, 'upright_size', lambda path: pytest.fail('read again'))
    again = WholeImages(root, 'train', validation_fraction=0, sizes_file=str(file))
    np.testing.assert_array_equal(first.sizes_N3, again.sizes_N3)
    monkeypatch.undo()
    Image.new('RGB', (5, 6)).save(root / 'dog' / 'new.png')
    assert len(WholeImages(root, 'train', validation_fraction=0, sizes_file=str(file)).sizes_N3) == 5


def test_half_of_the_training_images_are_mirrored_always_the_same(root):
    plain, flipped = (WholeImages(root, 'train', validation_fraction=0, flip=flip, seed=1) for flip in (False, True))
    turned = [not np.array_equal(plain[index]['video'], flipped[index]['video']) for index in range(4)]
    assert 0 < sum(turned) < 4
    for index in range(4):
        seen = flipped[index]['video'][:, :, ::-1] if turned[index] else flipped[index]['video']
        np.testing.assert_array_equal(seen, plain[index]['video'])


def test_a_damaged_header_is_told_with_its_path(root):
    (root / 'cat' / 'bad.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'bad\.png cannot be read'):
        WholeImages(root, 'train', validation_fraction=0)
