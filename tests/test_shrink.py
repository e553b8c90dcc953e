"""The program that makes videos small: the same frames at the same times, whatever it is run on."""

import os
from types import SimpleNamespace

import av
import numpy as np
import pytest
from absl import app
from tiny import binary

from walt.data.video_file import VideoFile
from walt.data.video_folder import VideoFolder
from walt.data.video_io import write_gif, write_mp4

HEIGHT, WIDTH = 48, 96


@pytest.fixture(scope='module')
def program():
    return binary('shrink')


@pytest.fixture
def run(program, monkeypatch, capsys):
    """run(source, target, short_side) -> (exit status, what it printed)."""

    def run(source, target, short_side=16):
        for name, value in {'SOURCE': source, 'TARGET': target, 'SHORT_SIDE': short_side}.items():
            monkeypatch.setattr(program, name, SimpleNamespace(value=str(value) if name != 'SHORT_SIDE' else value))
        status = program.main([])
        return status, capsys.readouterr().out

    return run


def moving(frames, height=HEIGHT, width=WIDTH):
    """A smooth picture that moves, uint8 (frames, height, width, 3); no two frames are alike."""
    time, row, column = np.ogrid[:frames, :height, :width]
    waves = [np.sin(column / 9 + time / 3), np.sin(row / 7 - time / 5), np.sin((row + column) / 11 + time)]
    return (128 + 100 * np.stack(np.broadcast_arrays(*waves), axis=-1)).astype(np.uint8)


def differences(one_THWC, other_THWC):
    return np.abs(one_THWC.astype(int) - other_THWC)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'source'
    for name in ('jump', 'wave'):
        (folder / name / 'deep').mkdir(parents=True)
    write_mp4(folder / 'wave' / 'a.mp4', moving(40), fps=30)
    write_gif(folder / 'jump' / 'deep' / 'b.gif', moving(17), fps=8)
    return folder


def test_small_videos_have_the_frames_and_times_of_the_large_ones(run, source, tmp_path):
    status, printed = run(source, tmp_path / 'small')
    assert status == 0 and '2 videos: 2 written, 0 there already, 0 skipped' in printed
    for name, small_name in (('wave/a.mp4', 'wave/a.mp4'), ('jump/deep/b.gif', 'jump/deep/b.gif.mp4')):
        large, small = VideoFile.open(source / name), VideoFile.open(tmp_path / 'small' / small_name)
        assert (small.height, small.width, len(small)) == (16, 32, len(large))
        np.testing.assert_allclose(small.seconds, large.seconds, atol=1e-4)
        assert small.fps == pytest.approx(large.fps, rel=1e-4) and small.timestamps is not None
        every = range(len(large))
        found = differences(small.read(every), large.read(every, (16, 32)))
        assert found.mean() < 2 and found.max() < 20


def test_video_folder_finds_the_same_classes_and_windows(run, source, tmp_path):
    run(source, tmp_path / 'small')
    large, small = (VideoFolder(root, 'train', frames=3, size=16) for root in (source, tmp_path / 'small'))
    assert small.class_names == large.class_names and small.labels == large.labels
    for index in range(6):
        found = differences(small[index]['video'], large[index]['video'])
        assert found.mean() < 2


def test_uneven_times_are_kept(run, tmp_path):
    ticks = [0, 1, 2, 9, 10, 25]  # tenths of a second
    (tmp_path / 'source').mkdir()
    with av.open(str(tmp_path / 'source' / 'a.mkv'), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, 'yuv420p'
        for tick, picture in zip(ticks, moving(6)):
            frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
            frame.pts = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    run(tmp_path / 'source', tmp_path / 'small')
    small = VideoFile.open(tmp_path / 'small' / 'a.mkv.mp4')
    np.testing.assert_allclose(small.seconds, np.array(ticks) / 10, atol=1e-4)


@pytest.mark.parametrize(
    ('shape', 'expected'), [((96, 48), (32, 16)), ((48, 50), (16, 17)), ((10, 31), (10, 31)), ((16, 32), (16, 32))]
)
def test_the_shorter_side_shrinks_and_nothing_grows(run, tmp_path, shape, expected):
    (tmp_path / 'source').mkdir()
    write_gif(tmp_path / 'source' / 'a.gif', moving(3, *shape))
    assert run(tmp_path / 'source', tmp_path / 'small')[0] == 0
    small = VideoFile.open(tmp_path / 'small' / 'a.gif.mp4')
    assert (small.height, small.width) == expected


def test_a_phone_held_upright_gives_an_upright_picture(run, tmp_path):
    (tmp_path / 'source').mkdir()
    path = tmp_path / 'source' / 'a.mp4'
    write_mp4(path, moving(3))
    data = path.read_bytes()
    start = data.index(b'tkhd') + 4 + 40  # the track's 3x3 matrix: a quarter turn clockwise
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], '>i4').tobytes()
    path.write_bytes(data[:start] + turned + data[start + len(turned) :])
    run(tmp_path / 'source', tmp_path / 'small')
    small, large = VideoFile.open(tmp_path / 'small' / 'a.mp4'), VideoFile.open(path)
    assert (small.height, small.width) == (32, 16)
    assert differences(small.read(range(3)), large.read(range(3), (32, 16))).mean() < 2


def test_files_done_before_are_left_and_others_made_anew(run, source, tmp_path):
    run(source, tmp_path / 'small')
    made = tmp_path / 'small' / 'wave' / 'a.mp4'
    os.utime(made, (1, 1))
    write_mp4(source / 'wave' / 'c.mp4', moving(5))
    assert '3 videos: 1 written, 2 there already' in run(source, tmp_path / 'small')[1]
    assert made.stat().st_mtime == 1
    assert '3 videos: 3 written, 0 there already' in run(source, tmp_path / 'small', short_side=8)[1]
    assert VideoFile.open(made).height == 8
    made.write_bytes(made.read_bytes()[:500])
    assert '3 videos: 1 written, 2 there already' in run(source, tmp_path / 'small', short_side=8)[1]
    assert len(VideoFile.open(made)) == 40


def test_files_that_cannot_be_read_are_named_and_leave_nothing(run, source, tmp_path):
    whole = (source / 'wave' / 'a.mp4').read_bytes()
    (source / 'wave' / 'half.mp4').write_bytes(whole[: len(whole) // 2])
    with av.open(str(source / 'wave' / 'holes.avi'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=8)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, 'yuvj420p'
        for picture in moving(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')))
        container.mux(stream.encode())
    holes = bytearray((source / 'wave' / 'holes.avi').read_bytes())
    middle = len(holes) // 2
    holes[middle : middle + 2500] = bytes(2500)
    (source / 'wave' / 'holes.avi').write_bytes(holes)
    status, printed = run(source, tmp_path / 'small')
    assert status == 1 and '4 videos: 2 written, 0 there already, 2 skipped' in printed
    assert 'skipped wave/half.mp4: ' in printed and 'skipped wave/holes.avi: ' in printed
    files = sorted(str(path.relative_to(tmp_path / 'small')) for path in (tmp_path / 'small').rglob('*.*'))
    assert files == ['jump/deep/b.gif.mp4', 'wave/a.mp4']


def test_a_file_that_gives_fewer_or_more_frames_than_it_lists_is_not_written(
    run, program, source, tmp_path, monkeypatch
):
    frames = program.VideoFile.frames
    for count in (16, 18):  # of 17 in the gif
        monkeypatch.setattr(program.VideoFile, 'frames', lambda *args, count=count: list(2 * [*frames(*args)])[:count])
        status, printed = run(source / 'jump', tmp_path / 'small')
        reason = f'damaged: {count} of 17 frames decode' if count < 17 else 'more frames decode than the 17'
        assert status == 1 and f'skipped deep/b.gif: {reason}' in printed
    assert not [*(tmp_path / 'small').rglob('*.*')]


def test_folders_that_make_no_sense_are_refused(run, source, tmp_path):
    for target in (source, source / 'small'):
        with pytest.raises(app.UsageError, match='inside of --source'):
            run(source, target)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(app.UsageError, match='no video in'):
        run(tmp_path / 'empty', tmp_path / 'small')
    with pytest.raises(FileNotFoundError, match='no folder of videos'):
        run(tmp_path / 'nowhere', tmp_path / 'small')
