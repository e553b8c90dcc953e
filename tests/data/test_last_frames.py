"""What a video goes on from: the last frames of a file, of the size that is needed."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from walt.data.last_frames import last_frames
from walt.data.video_io import write_gif, write_mp4


def ramp(frames, height=16, width=16) -> np.ndarray:
    """A video whose frame t is grey 20 t all over."""
    greys = np.arange(0, 20 * frames, 20, dtype=np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy()


def greys(frames_THWC) -> list[int]:
    """The number of each frame of a ramp."""
    return np.round(frames_THWC.astype(float).mean((1, 2, 3)) / 20).astype(int).tolist()


@pytest.mark.parametrize(
    ('length', 'most', 'stride', 'expected'),
    [
        (12, 5, 4, [7, 8, 9, 10, 11]),
        (12, 9, 4, [3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (12, 8, 4, [7, 8, 9, 10, 11]),  # eight are no 1 + 4 k
        (7, 9, 4, [2, 3, 4, 5, 6]),
        (3, 5, 4, [2]),
        (3, 3, 1, [0, 1, 2]),
    ],
)
def test_the_last_frames_of_a_video_are_1_and_whole_strides_as_many_as_it_has(length, most, stride, expected, tmp_path):
    write_mp4(tmp_path / 'a.mp4', ramp(length))
    found, told = last_frames(tmp_path / 'a.mp4', most, stride, (16, 16))
    assert greys(found) == expected and found.dtype == np.uint8
    assert told == f'the last {len(expected)} frame(s) of {tmp_path}/a.mp4'


def test_an_image_is_one_frame_and_an_animation_a_video(tmp_path, rng):
    picture = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / 'a.png')
    found, _ = last_frames(tmp_path / 'a.png', 5, 4, (16, 16))
    np.testing.assert_array_equal(found, picture[None])
    write_gif(tmp_path / 'a.gif', ramp(6))
    assert greys(last_frames(tmp_path / 'a.gif', 5, 4, (16, 16))[0]) == [1, 2, 3, 4, 5]


def test_an_image_is_turned_upright_and_has_white_behind_it(tmp_path):
    """As the camera held it, and as pages show it."""
    picture = np.zeros((8, 16, 4), np.uint8)
    picture[:, :8] = [255, 0, 0, 255]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise
    Image.fromarray(picture).save(tmp_path / 'a.png', exif=exif)
    (found,), _ = last_frames(tmp_path / 'a.png', 1, 4, (16, 8))
    assert (found[:8] == [255, 0, 0]).all() and (found[8:] == 255).all()


def test_another_size_is_scaled_until_it_covers_cropped_around_the_middle_and_said_so(tmp_path):
    """A 16x48 video of three squares: the middle one is what a square shows."""
    video = np.zeros((2, 16, 48, 3), np.uint8)
    video[:, :, 16:32], video[:, :, 32:] = 120, 240
    write_mp4(tmp_path / 'a.mp4', video)
    found, told = last_frames(tmp_path / 'a.mp4', 1, 4, (8, 8))
    assert found.shape == (1, 8, 8, 3) and np.abs(found[:, :, 2:-2].astype(int) - 120).max() < 6
    assert told == f'the last 1 frame(s) of {tmp_path}/a.mp4, from 16x48 scaled and cropped to 8x8'


def test_any_size_can_be_cropped_to_any_other(tmp_path):
    """Where division rounds up, the crop would stick out by a part of a pixel, which Pillow refuses."""
    for tall, wide in [(31, 7), (7, 31), (49, 10), (13, 13)]:
        Image.new('RGB', (wide, tall), 'white').save(tmp_path / 'a.png')
        for size in [(9, 17), (17, 9), (49, 3), (16, 16), (11, 15)]:
            found, _ = last_frames(tmp_path / 'a.png', 1, 1, size)
            assert found.shape == (1, *size, 3) and (found == 255).all()


def test_what_is_neither_image_nor_video_is_refused_and_what_is_not_there_is_named(tmp_path):
    (tmp_path / 'a.txt').write_text('a street')
    with pytest.raises(ValueError, match=r'a\.txt is neither an image nor a video: '):
        last_frames(tmp_path / 'a.txt', 5, 4, (16, 16))
    with pytest.raises(FileNotFoundError, match=r'no file .*nowhere'):
        last_frames(tmp_path / 'nowhere', 5, 4, (16, 16))
    Image.new('RGB', (64, 64)).save(tmp_path / 'a.png')
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'a.png').read_bytes()[:-30])
    with pytest.raises(ValueError, match=r'cut\.png cannot be read'):
        last_frames(tmp_path / 'cut.png', 5, 4, (16, 16))
