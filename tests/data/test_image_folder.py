"""ImageFolder on images that the tests write: where crops lie, who is held out, odd images, damaged ones named."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from walt import build
from walt.data.image_folder import ImageFolder
from walt.data.pipeline import batches

HEIGHT, WIDTH = 60, 100
ALL = {'train': 0, 'validation': 1}  # the validation_fraction that gives every image to a split


def chart(height=HEIGHT, width=WIDTH):
    """An image whose red and green say where a pixel is: they rise by 2 a pixel to the right and downwards."""
    image_HWC = np.zeros((height, width, 3), np.uint8)
    image_HWC[..., 0] = 2 * np.arange(width)
    image_HWC[..., 1] = 2 * np.arange(height)[:, None]
    return Image.fromarray(image_HWC)


def seen(element):
    """Of a crop of the chart: (top, bottom, left, right), in pixels of the chart, by its inner gradient."""
    image_HWC = element['video'][0].astype(np.float64)
    edges = []
    for rising_N in (image_HWC[:, :, 1].mean(1), image_HWC[:, :, 0].mean(0)):
        count = len(rising_N)
        inner = np.arange(3, count - 3)  # cubic interpolation bends the border
        slope, start = np.polyfit(inner + 0.5, rising_N[inner] / 2 + 0.5, 1)
        edges += [start, start + slope * count]
    return edges


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images."""
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
    chart().save(tmp_path / 'dog' / 'a.png')
    chart().save(tmp_path / 'dog' / 'b.JPEG', quality=95)
    chart().save(tmp_path / 'cat' / 'c.webp', lossless=True)
    return tmp_path


def test_an_element_is_a_clip_of_one_frame_with_the_class_of_its_folder(folder):
    chart().save(folder / 'd.bmp')
    for size, shape in ((16, (16, 16)), ((24, 40), (24, 40))):
        for split, fraction in ALL.items():
            data = ImageFolder(folder, split, size=size, validation_fraction=fraction)
            assert data.class_names == ('', 'cat', 'dog') and data.num_classes == 3
            assert data.files == ('cat/c.webp', 'd.bmp', 'dog/a.png', 'dog/b.JPEG')
            for index, label in enumerate((1, 0, 2, 2)):
                element = data[index]
                assert element['video'].shape == (1, *shape, 3) and element['video'].dtype == np.uint8
                assert element['label'] == label and element['label'].dtype == np.int32


def test_construction_opens_no_image(folder, monkeypatch):
    monkeypatch.setattr(Image, 'open', lambda *_: pytest.fail('opened'))
    assert len(ImageFolder(folder, 'train', validation_fraction=0).files) == 3


def test_every_image_comes_as_often_as_any_other(folder):
    assert len(ImageFolder(folder, 'train', validation_fraction=0, crops_per_file=7)) == 21
    validation = ImageFolder(folder, 'validation', validation_fraction=1, crops_per_file=7)
    assert len(validation) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match=f'index {index} of 3'):
            validation[index]


def test_same_index_same_crop(folder):
    fields = {'size': (16, 24), 'flip': True, 'validation_fraction': 0}
    data = ImageFolder(folder, 'train', **fields)
    videos = [data[i]['video'] for i in range(12)]
    again = ImageFolder(folder, 'train', **fields)
    for index in reversed(range(12)):
        np.testing.assert_array_equal(again[index]['video'], videos[index])
    assert (videos[0] != videos[3]).any()  # of the same image
    other = ImageFolder(folder, 'train', seed=1, **fields)
    assert any((other[i]['video'] != videos[i]).any() for i in range(12))


@pytest.mark.parametrize('size', [30, (30, 80), (60, 20), 90])
def test_training_crops_keep_the_shape_and_lie_anywhere_in_the_image(tmp_path, size):
    chart().save(tmp_path / 'a.png')
    data = ImageFolder(tmp_path, 'train', size=size, validation_fraction=0)
    height, width = data[0]['video'].shape[1:3]
    top, bottom, left, right = np.transpose([seen(data[i]) for i in range(100)])
    np.testing.assert_allclose((bottom - top) / (right - left), height / width, rtol=0.05)
    share = (bottom - top) / height / min(HEIGHT / height, WIDTH / width)
    assert 0.79 < share.min() < 0.82 and 0.98 < share.max() < 1.01
    assert -0.5 < top.min() < 1 and HEIGHT - 1 < bottom.max() < HEIGHT + 0.5
    assert -0.5 < left.min() < 1 and WIDTH - 1 < right.max() < WIDTH + 0.5


def test_crop_says_how_large_training_crops_are(tmp_path):
    chart().save(tmp_path / 'a.png')
    data = ImageFolder(tmp_path, 'train', size=30, crop=(0.5, 0.5), validation_fraction=0)
    for index in range(20):
        top, bottom, left, right = seen(data[index])
        assert bottom - top == pytest.approx(HEIGHT / 2, abs=0.7) == right - left
    whole = ImageFolder(tmp_path, 'train', size=(HEIGHT, WIDTH), crop=(1, 1), validation_fraction=0)
    np.testing.assert_array_equal(whole[5]['video'][0], np.asarray(chart()))


def test_validation_crops_are_the_largest_from_the_centre(tmp_path):
    chart().save(tmp_path / 'a.png')
    for size, expected in ((30, [0, 60, 20, 80]), ((30, 80), [11.25, 48.75, 0, 100]), ((60, 20), [0, 60, 40, 60])):
        data = ImageFolder(tmp_path, 'validation', size=size, flip=True, validation_fraction=1)
        np.testing.assert_allclose(seen(data[0]), expected, atol=0.5)


def test_flip_mirrors_about_half_of_the_training_crops_only(folder):
    def mirrored(split, flip):
        data = ImageFolder(folder, split, size=8, flip=flip, validation_fraction=ALL[split])
        crops = [data[i % len(data)]['video'][0] for i in range(99)]
        return sum(int(crop[4, 0, 0]) > int(crop[4, -1, 0]) for crop in crops)

    assert 30 < mirrored('train', True) < 70
    assert mirrored('train', False) == mirrored('validation', True) == 0


def test_splits_share_out_the_images_and_additions_move_none(tmp_path):
    def splits(**fields):
        return [ImageFolder(tmp_path, split, **fields) for split in ALL]

    for number in range(400):
        (tmp_path / f'{number % 4}').mkdir(exist_ok=True)
        (tmp_path / f'{number % 4}' / f'{number}.png').touch()
    (tmp_path / 'alone').mkdir()
    (tmp_path / 'alone' / 'x.png').touch()
    train, validation = splits(validation_fraction=0.25)
    assert set(train.files).isdisjoint(validation.files) and len(train.files) + len(validation.files) == 401
    assert 75 < len(validation.files) < 125
    assert train.class_names == validation.class_names == ('0', '1', '2', '3', 'alone')
    for data in (train, validation):
        assert [data.class_names[label] for label in data.labels] == [path.split('/')[0] for path in data.files]
    for number in range(400, 500):
        (tmp_path / '0' / f'{number}.png').touch()
    more_train, more_validation = splits(validation_fraction=0.25)
    assert set(train.files) < set(more_train.files) and set(validation.files) < set(more_validation.files)
    assert set(more_validation.files) < set(splits(validation_fraction=0.5)[1].files)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'CMYK'])
def test_images_of_every_kind_become_rgb(tmp_path, mode):
    colour = Image.new('RGB', (20, 20), (51, 102, 204))
    pictures = {
        '1': (Image.new('1', (20, 20), 1), (255, 255, 255)),
        'L': (Image.new('L', (20, 20), 77), (77, 77, 77)),
        'LA': (Image.new('LA', (20, 20), (0, 0)), (255, 255, 255)),
        'P': (colour.quantize(4), (51, 102, 204)),
        'RGB': (colour, (51, 102, 204)),
        'RGBA': (Image.new('RGBA', (20, 20), (0, 100, 200, 102)), (153, 193, 233)),  # 0.4 of it and 0.6 of white
        'I;16': (Image.fromarray(np.full((20, 20), 77 * 256 + 9, np.uint16)), (77, 77, 77)),
        'CMYK': (Image.new('CMYK', (20, 20), (204, 153, 51, 0)), (51, 102, 204)),
    }
    picture, expected = pictures[mode]
    path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    picture.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    video = ImageFolder(tmp_path, 'train', size=16, validation_fraction=0)[0]['video']
    np.testing.assert_allclose(video, np.broadcast_to(expected, video.shape), atol=2)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_stand_upright(tmp_path, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    chart().save(tmp_path / 'a.png', exif=tags)
    with Image.open(tmp_path / 'a.png') as stored:
        upright = ImageOps.exif_transpose(stored)
    data = ImageFolder(tmp_path, 'validation', size=(upright.height, upright.width), validation_fraction=1)
    np.testing.assert_array_equal(data[0]['video'][0], np.asarray(upright))


def test_an_image_that_cannot_be_read_is_named_when_it_is_read(folder):
    whole = (folder / 'dog' / 'a.png').read_bytes()
    (folder / 'dog' / 'a.png').write_bytes(whole[: len(whole) // 2])
    (folder / 'cat' / 'noise.jpg').write_bytes(bytes(range(256)))
    (folder / 'cat' / 'gone.jpg').symlink_to(folder / 'nowhere')
    data = ImageFolder(folder, 'train', validation_fraction=0)
    unreadable = {'dog/a.png', 'cat/noise.jpg', 'cat/gone.jpg'}
    for index, path in enumerate(data.files):
        if path in unreadable:
            with pytest.raises(ValueError, match=f'{folder / path} cannot be read: .'):
                data[index]
        else:
            data[index]
    assert unreadable < set(data.files)


def test_a_split_without_images_says_so(tmp_path):
    (tmp_path / 'a.txt').touch()
    with pytest.raises(ValueError, match=r'none of 0 images .*\.png.* is for train'):
        ImageFolder(tmp_path, 'train')
    chart().save(tmp_path / 'a.png')
    with pytest.raises(ValueError, match=r'none of 1 images .* is for validation, at validation_fraction 0$'):
        ImageFolder(tmp_path, 'validation', validation_fraction=0)
    with pytest.raises(FileNotFoundError, match=r'no folder of images at .*nowhere'):
        ImageFolder(tmp_path / 'nowhere', 'train')
    with pytest.raises(ValueError, match='root is empty'):
        ImageFolder('', 'train')


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'split': 'test'}, "'test'"),
        ({'size': (0, 8)}, r'size .* \(0, 8\)'),
        ({'crop': (0.9, 0.8)}, r'crop .* \(0.9, 0.8\)'),
        ({'crop': (0, 1)}, r'crop .* \(0, 1\)'),
        ({'crop': (0.8, 1.2)}, r'crop .* \(0.8, 1.2\)'),
        ({'validation_fraction': -0.1}, '-0.1'),
        ({'crops_per_file': 0}, 'crops_per_file .* 0'),
        ({'seed': -1}, 'seed .* -1'),
    ],
)
def test_fields_out_of_range_are_named(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(folder, **{'split': 'train', **fields})


def test_images_are_a_source_of_batches(folder):
    section = {'name': 'image_folder', 'root': str(folder), 'size': 16, 'crop': [0.5, 1.0], 'validation_fraction': 0}
    batch = next(iter(batches(build.source(section, 'train'), 4)))
    assert batch['video'].shape == (4, 1, 16, 16, 3) and batch['label'].dtype == np.int32
