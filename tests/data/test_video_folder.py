"""VideoFolder on files that the tests write: exact frames, windows inside their split, damaged files named."""

import logging

import av
import numpy as np
import pytest

from walt.data.video_file import VideoFile
from walt.data.video_folder import VideoFolder
from walt.data.video_io import write_gif, write_mp4
from walt.data.windows import split_windows

HEIGHT, WIDTH = 32, 64


def numbered(frames):
    """Clip uint8 (frames, 32, 64, 3) that shows each frame's number as eight bars, the lowest bit on the left."""
    bits_TN = np.arange(frames)[:, None] >> np.arange(8) & 1
    bars_TW = np.repeat(255 * bits_TN, WIDTH // 8, axis=1).astype(np.uint8)
    return np.broadcast_to(bars_TW[:, None, :, None], (frames, HEIGHT, WIDTH, 3)).copy()


def numbers_shown(video_THWC):
    """The frame numbers that a clip of 8 or more columns shows, int (T,)."""
    _, height, width, _ = video_THWC.shape
    bars_TN = video_THWC[:, height // 2, width // 16 :: width // 8, 1] > 127
    return bars_TN @ (1 << np.arange(8))


def write(path, video_THWC, codec, rate=8, pixel_format='yuv420p', **options):
    """Any file that FFmpeg can write; `video_io` writes MP4 and GIF only."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = video_THWC.shape[1:3]
        stream.pix_fmt = pixel_format
        for frame in video_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        container.mux(stream.encode())


def patched_box(data, name, offset, values):
    """The bytes of an MP4 with big-endian int32 `values` at `offset` into the content of its only box `name`."""
    start = data.index(name) + 4 + offset
    new = np.array(values, '>i4').tobytes()
    return data[:start] + new + data[start + len(new) :]


@pytest.fixture
def folder(tmp_path):
    """Two classes, three files of 40 numbered frames."""
    for name in ('jump', 'wave'):
        (tmp_path / name).mkdir()
    write_mp4(tmp_path / 'wave' / 'a.mp4', numbered(40))
    write_gif(tmp_path / 'jump' / 'b.gif', numbered(40))
    write(tmp_path / 'wave' / 'c.webm', numbered(40), 'libvpx-vp9', deadline='realtime')
    return tmp_path


OPEN_GOP = {'x264-params': 'open-gop=1:keyint=10:bframes=3:scenecut=0'}


@pytest.mark.parametrize(
    ('name', 'codec', 'options'),
    [
        ('a.mp4', 'libx264', {'g': '12'}),
        ('b.mp4', 'libx264', OPEN_GOP),
        ('c.mkv', 'libx264', OPEN_GOP),
        ('d.webm', 'libvpx-vp9', {'g': '12', 'deadline': 'realtime'}),
        ('e.mov', 'mpeg4', {'bf': '2'}),
        ('f.avi', 'mpeg4', {}),
        ('g.avi', 'libx264', {}),  # timestamps of the decoding order
        ('h.ts', 'libx264', OPEN_GOP),
        ('i.mpg', 'mpeg1video', {'rate': 25, 'bf': '2'}),  # seeks go astray
        ('j.gif', 'gif', {'pixel_format': 'rgb8'}),  # no index
    ],
)
def test_every_frame_is_read_exactly_in_any_order(tmp_path, name, codec, options):
    video_THWC = numbered(50)
    video_THWC[:, :8] = np.random.default_rng(0).integers(0, 256, (50, 8, WIDTH, 3))  # noise: a file of some size
    write(tmp_path / name, video_THWC, codec, **options)
    file = VideoFile.open(tmp_path / name)
    assert len(file) == 50 and (file.height, file.width) == (HEIGHT, WIDTH)
    whole_THWC = file.read(range(50))
    assert numbers_shown(whole_THWC).tolist() == list(range(50))
    for first in range(49, -1, -7):
        indices = [first, first // 2]
        np.testing.assert_array_equal(file.read(indices), whole_THWC[indices])
    for index in range(50):
        np.testing.assert_array_equal(file.read([index]), whole_THWC[[index]])


def test_reader_seeks_where_the_file_has_an_index(tmp_path, monkeypatch):
    write(tmp_path / 'a.mp4', numbered(50), 'libx264', g='12')
    file = VideoFile.open(tmp_path / 'a.mp4')
    decoded, decode = [], VideoFile._index
    monkeypatch.setattr(
        VideoFile, '_index', lambda self, timestamp: decoded.append(decode(self, timestamp)) or decoded[-1]
    )
    file.read([45])
    assert 0 < len(decoded) <= 12 and decoded[-1] == 45


def test_frames_out_of_range_are_named(tmp_path):
    write_mp4(tmp_path / 'a.mp4', numbered(5))
    for indices in ([5], [-1], []):
        with pytest.raises(IndexError, match='which has 5'):
            VideoFile.open(tmp_path / 'a.mp4').read(indices)


def test_picture_of_a_phone_held_upright_stands_upright(tmp_path):
    path = tmp_path / 'a.mp4'
    write_mp4(path, numbered(3))
    lying = VideoFile.open(path).read([2])[0]
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]  # the track's 3x3 matrix: a quarter turn clockwise
    path.write_bytes(patched_box(path.read_bytes(), b'tkhd', 40, turned))
    file = VideoFile.open(path)
    assert (file.height, file.width) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(file.read([2])[0], np.rot90(lying, -1))
    assert file.read([2], size=(20, 10)).shape == (1, 20, 10, 3)


def test_frames_cut_away_by_an_edit_list_do_not_count(tmp_path):
    path = tmp_path / 'a.mp4'
    write(path, numbered(20), 'libx264', bf='0')
    data = path.read_bytes()
    ticks = int(16384 / 8)  # of a frame, in the muxer's unit of time at 8 frames a second
    path.write_bytes(patched_box(data, b'elst', 12, [5 * ticks]))  # version, count and duration come before the start
    file = VideoFile.open(path)
    assert numbers_shown(file.read(range(len(file)))).tolist() == list(range(5, 20))
    assert numbers_shown(file.read([3])).tolist() == [8]


def test_classes_are_sub_folders_in_order_of_name(folder):
    data = VideoFolder(folder, 'train', frames=3, size=16, clips_per_file=2)
    assert data.class_names == ('jump', 'wave') and data.num_classes == 2
    assert len(data) == 6 and [int(data[i]['label']) for i in range(6)] == [0, 1, 1, 0, 1, 1]
    assert data[0]['label'].dtype == np.int32


def test_files_directly_in_root_are_the_class_without_a_name(folder):
    write_mp4(folder / 'd.mp4', numbered(40))
    (folder / '._d.mp4').write_bytes(b'left by another system')
    data = VideoFolder(folder, 'train', frames=3, size=16)
    assert data.class_names == ('', 'jump', 'wave') and len(data.files) == 4 and not data.unreadable


def test_same_index_same_window(folder):
    fields = {'frames': 3, 'size': (16, 24), 'flip': True}
    data = VideoFolder(folder, 'train', **fields)
    videos = [data[i]['video'] for i in range(12)]
    again = VideoFolder(folder, 'train', **fields)
    for index in reversed(range(12)):
        np.testing.assert_array_equal(again[index]['video'], videos[index])
    other = VideoFolder(folder, 'train', seed=1, **fields)
    assert any((other[i]['video'] != videos[i]).any() for i in range(12))


@pytest.mark.parametrize(('split', 'first', 'last'), [('train', 0, 31), ('validation', 32, 39)])
def test_random_windows_lie_inside_the_split(folder, split, first, last):
    data = VideoFolder(folder, split, frames=3, size=(HEIGHT, WIDTH), stride=2, clips_per_file=40)
    shown = np.array([numbers_shown(data[i]['video']) for i in range(len(data))])
    assert (np.diff(shown, axis=1) == 2).all()
    assert shown.min() == first and shown.max() == last


def test_all_of_a_file_can_be_for_one_split(folder):
    assert VideoFolder(folder, 'train', frames=40, size=16, validation_fraction=0).windows[0].end == 40
    assert VideoFolder(folder, 'validation', frames=40, size=16, validation_fraction=1).windows[0].first == 0


def test_frame_rate_is_changed_by_taking_the_nearest_frames(tmp_path):
    write_mp4(tmp_path / 'a.mp4', numbered(60), fps=30)
    for fps, stride, step in ((10, 1, 3), (15, 2, 4), (60, 1, 0.5)):
        data = VideoFolder(tmp_path, 'train', frames=5, size=(HEIGHT, WIDTH), fps=fps, stride=stride)
        shown = numbers_shown(data[1]['video'])
        np.testing.assert_allclose(shown - shown[0], step * np.arange(5), atol=0.5)


def test_windows_of_a_file_with_rounded_timestamps_are_those_of_its_frames():
    exact = np.arange(17) / 30
    for seconds in (exact, exact.round(3), exact.round(2)):
        windows = split_windows(seconds, 'train', 0, frames=17, stride=1, fps=30)
        assert len(windows) == 1 and windows[0].tolist() == list(range(17))
    assert len(split_windows(exact[:16], 'train', 0, frames=17, stride=1, fps=30)) == 0


def test_windows_of_an_uneven_file_follow_the_time():
    seconds = np.array([0, 1, 2, 3, 10, 11, 12, 13.0])  # the fourth picture stands for seven seconds
    windows = split_windows(seconds, 'train', 0, frames=3, stride=5, fps=1)
    assert [windows[n].tolist() for n in range(len(windows))] == [[0, 3, 4], [1, 3, 5], [2, 4, 6], [3, 4, 7]]


def test_no_window_of_an_uneven_file_crosses_the_cut():
    seconds = np.array([0, 0.9, 10, 10.5, 11])  # the last frame is validation's, and nearest to 0.9 + 10
    windows = split_windows(seconds, 'train', 0.2, frames=2, stride=10, fps=1)
    assert [windows[n].tolist() for n in range(len(windows))] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(('size', 'shape'), [(16, (16, 16)), ((8, 40), (8, 40)), ((48, 48), (48, 48))])
def test_frames_are_scaled_to_cover_the_size_and_cropped(folder, size, shape):
    for split in ('train', 'validation'):
        assert VideoFolder(folder, split, frames=2, size=size)[0]['video'].shape == (2, *shape, 3)


def test_validation_crops_the_centre_and_training_anywhere(tmp_path):
    ramp_THWC = np.broadcast_to(np.arange(WIDTH, dtype=np.uint8)[:, None] * 3, (20, HEIGHT, WIDTH, 3)).copy()
    write_gif(tmp_path / 'a.gif', ramp_THWC)
    fields = {'frames': 2, 'size': HEIGHT, 'validation_fraction': 0.5}
    validation = VideoFolder(tmp_path, 'validation', **fields)
    assert {int(validation[i]['video'][0, 0, 0, 0]) // 3 for i in range(20)} == {(WIDTH - HEIGHT) // 2}
    train = VideoFolder(tmp_path, 'train', clips_per_file=200, **fields)
    assert {int(train[i]['video'][0, 0, 0, 0]) // 3 for i in range(200)} == set(range(WIDTH - HEIGHT + 1))


def test_flip_mirrors_about_half_of_the_training_clips_only(tmp_path):
    ramp_THWC = np.broadcast_to(np.arange(WIDTH, dtype=np.uint8)[:, None] * 3, (20, HEIGHT, WIDTH, 3)).copy()
    write_gif(tmp_path / 'a.gif', ramp_THWC)

    def mirrored(split, flip):
        data = VideoFolder(tmp_path, split, frames=2, size=(HEIGHT, WIDTH), flip=flip, validation_fraction=0.5)
        return sum(int(data[i]['video'][0, 0, 0, 0] > data[i]['video'][0, 0, -1, 0]) for i in range(100))

    assert 30 < mirrored('train', True) < 70
    assert mirrored('train', False) == mirrored('validation', True) == 0


def test_damaged_and_short_files_are_named_and_the_others_used(folder, caplog):
    whole = (folder / 'wave' / 'a.mp4').read_bytes()
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'half.mp4').write_bytes(whole[: len(whole) // 2])
    (folder / 'jump' / 'noise.webm').write_bytes(bytes(range(256)) * 9)
    write_mp4(folder / 'jump' / 'short.mp4', numbered(4))
    (folder / 'jump' / 'readme.txt').write_text('no video, not mentioned')
    with caplog.at_level(logging.WARNING):
        data = VideoFolder(folder, 'train', frames=5, size=16)
    assert len(data.files) == 3 and data[2]['video'].shape == (5, 16, 16, 3)
    names = ('half.mp4', 'noise.webm', 'short.mp4')
    assert sorted(path.rsplit('/')[-1] for path in data.unreadable) == sorted(names)
    assert 'too short: the train part has 3 of 4 frames' in data.unreadable[str(folder / 'jump' / 'short.mp4')]
    assert all(name in caplog.text for name in names) and '3 of 6 video files' in caplog.text
    assert data.class_names == ('broken', 'jump', 'wave')  # labels do not shift


def test_file_cut_off_is_used_as_far_as_it_goes(tmp_path):
    write(tmp_path / 'a.mkv', numbered(40), 'libx264', g='8')
    data = (tmp_path / 'a.mkv').read_bytes()
    (tmp_path / 'a.mkv').write_bytes(data[: int(len(data) * 0.7)])
    file = VideoFile.open(tmp_path / 'a.mkv')
    assert 10 < len(file) < 40 and numbers_shown(file.read([len(file) - 1])).tolist() == [len(file) - 1]


def test_damage_in_the_middle_of_a_file_names_the_file(tmp_path):
    write(tmp_path / 'a.avi', numbered(40), 'mjpeg', pixel_format='yuvj420p')
    data = bytearray((tmp_path / 'a.avi').read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2500] = bytes(2500)
    (tmp_path / 'a.avi').write_bytes(data)
    file = VideoFile.open(tmp_path / 'a.avi')
    with pytest.raises(ValueError, match=r'a\.avi'):
        file.read(range(len(file)))


def test_folder_without_a_usable_video_says_why(tmp_path):
    with pytest.raises(ValueError, match='0 of 0 video files'):
        VideoFolder(tmp_path, 'train')
    write_mp4(tmp_path / 'short.mp4', numbered(4))
    with pytest.raises(ValueError, match=r'0 of 1 video files can be used\n.*short.mp4: too short'):
        VideoFolder(tmp_path, 'train')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        VideoFolder(tmp_path / 'nowhere', 'train')


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'split': 'test'}, "'test'"),
        ({'frames': 0}, 'frames .* 0'),
        ({'stride': 0}, 'stride .* 0'),
        ({'size': (0, 8)}, r'size .* \(0, 8\)'),
        ({'fps': 0}, 'fps .* 0'),
        ({'clips_per_file': 0}, 'clips_per_file .* 0'),
        ({'validation_fraction': 1.5}, '1.5'),
    ],
)
def test_fields_out_of_range_are_named(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        VideoFolder(folder, **{'split': 'train', **fields})


def test_an_empty_root_is_not_taken_for_the_current_folder():
    with pytest.raises(ValueError, match='root is empty'):
        VideoFolder('', 'train')
