"""Captions of files: read by path, complete or refused, and part of the elements that they describe."""

import numpy as np
import pytest
from PIL import Image

from walt import build
from walt.data.captions import read_captions, write_captions
from walt.data.image_folder import ImageFolder
from walt.data.pipeline import batches
from walt.data.video_folder import VideoFolder
from walt.data.video_io import write_mp4

CAPTIONS = {'jump/b.mp4': 'a frog jumps', 'wave/a.mp4': 'a hand waves, ünruly 👋', 'wave/far/c.mp4': 'a flag waves'}


def make_videos(root, names=tuple(CAPTIONS), frames=8):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_mp4(root / name, np.full((frames, 16, 16, 3), 40 * number, np.uint8))


@pytest.fixture
def folder(tmp_path):
    make_videos(tmp_path)
    write_captions(tmp_path, CAPTIONS)
    return tmp_path


def test_captions_are_read_as_they_were_written(tmp_path):
    write_captions(tmp_path, CAPTIONS)
    assert read_captions(tmp_path, tuple(CAPTIONS)) == CAPTIONS
    assert read_captions(tmp_path, ['wave/a.mp4']) == {'wave/a.mp4': CAPTIONS['wave/a.mp4']}
    assert [path.name for path in tmp_path.iterdir()] == ['captions.json']


def test_a_folder_without_a_file_of_captions_has_none(tmp_path):
    assert read_captions(tmp_path, ['a.mp4']) is None


def test_files_without_a_caption_are_counted_and_named(tmp_path):
    write_captions(tmp_path, CAPTIONS)
    with pytest.raises(ValueError, match=r'captions\.json has no caption for 1 of 2 files: wave/z\.mp4$'):
        read_captions(tmp_path, ['wave/a.mp4', 'wave/z.mp4'])
    with pytest.raises(ValueError, match=r'for 9 of 9 files: 0\.mp4, .*4\.mp4, \.\.\.$'):
        read_captions(tmp_path, [f'{number}.mp4' for number in range(9)])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"a.mp4": 3}', r'caption of a\.mp4 in .* is 3, expected text'),
        ('["a.mp4"]', 'holds a list, expected captions by path'),
        ('{"a.mp4": ', r'captions\.json cannot be read'),
    ],
)
def test_what_are_no_captions_by_path_is_refused(tmp_path, content, message):
    (tmp_path / 'captions.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path, ['a.mp4'])


def test_every_window_of_a_video_has_its_caption(folder):
    data = VideoFolder(folder, 'train', frames=2, size=16, clips_per_file=2)
    assert data.captions == tuple(CAPTIONS.values())
    for index in range(6):
        assert data[index]['caption'] == list(CAPTIONS.values())[index % 3]
        np.testing.assert_allclose(data[index]['video'], 40 * (index % 3), atol=3)


def test_captions_stay_with_their_files_where_one_is_damaged(folder):
    (folder / 'wave' / 'a.mp4').write_bytes(b'damaged')
    data = VideoFolder(folder, 'train', frames=2, size=16)
    assert data.captions == (CAPTIONS['jump/b.mp4'], CAPTIONS['wave/far/c.mp4'])
    assert data[1]['caption'] == 'a flag waves'


def test_a_folder_of_videos_without_captions_has_elements_without(folder):
    (folder / 'captions.json').unlink()
    data = VideoFolder(folder, 'train', frames=2, size=16)
    assert data.captions is None and set(data[0]) == {'video', 'label'}


def test_a_video_without_a_caption_among_others_is_refused(folder):
    make_videos(folder, ['wave/new.mp4'])
    with pytest.raises(ValueError, match=r'1 of 4 files: wave/new\.mp4'):
        VideoFolder(folder, 'train', frames=2, size=16)


def test_every_crop_of_an_image_has_its_caption(tmp_path):
    captions = {f'{number % 2}/{number}.png': f'picture {number}' for number in range(30)}
    for path in captions:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new('RGB', (16, 16)).save(tmp_path / path)
    write_captions(tmp_path, captions)
    for split in ('train', 'validation'):
        data = ImageFolder(tmp_path, split, size=8, validation_fraction=0.4)
        assert data.captions == tuple(captions[path] for path in data.files)
        index = len(data.files) - 1
        assert data[index]['caption'] == captions[data.files[index]]
    (tmp_path / 'captions.json').unlink()
    data = ImageFolder(tmp_path, 'train', size=8)
    assert data.captions is None and set(data[0]) == {'video', 'label'}


def test_captions_become_an_array_of_text_in_batches(folder):
    section = {'name': 'video_folder', 'root': str(folder), 'frames': 2, 'size': 16}
    source = build.source(section, 'train')
    batch = next(iter(batches(source, 3, keys=('video', 'caption'), shuffle=False)))
    assert batch['caption'].dtype.kind == 'U' and batch['caption'].tolist() == list(CAPTIONS.values())


def test_validation_has_a_folder_of_its_own_with_the_classes_of_both(folder, tmp_path_factory):
    apart = tmp_path_factory.mktemp('validation')
    make_videos(apart, ['wave/new.mp4', 'yawn/y.mp4'])
    write_captions(apart, {'wave/new.mp4': 'a queen waves', 'yawn/y.mp4': 'a cat yawns'})
    fields = {'frames': 8, 'size': 16, 'validation_fraction': 0, 'validation_root': str(apart)}
    train, validation = (VideoFolder(str(folder), split, **fields) for split in ('train', 'validation'))
    assert train.class_names == validation.class_names == ('jump', 'wave', 'yawn')
    assert train.captions == tuple(CAPTIONS.values()) and train.labels == (0, 1, 1)
    assert validation.captions == ('a queen waves', 'a cat yawns') and validation.labels == (1, 2)
    assert [file.path for file in validation.files] == [str(apart / 'wave' / 'new.mp4'), str(apart / 'yawn' / 'y.mp4')]


def test_a_folder_for_validation_and_a_part_of_each_file_is_one_too_many(folder):
    with pytest.raises(ValueError, match=r'with a validation_root, .*, validation_fraction must be 0, got 0\.2'):
        VideoFolder(folder, 'train', frames=2, size=16, validation_root=folder)
