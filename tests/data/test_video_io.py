"""Files and pictures: what is written reads back, and the same array gives the same bytes."""

import numpy as np
import pytest
from PIL import Image

from walt.data.contact_sheet import contact_sheet, tile
from walt.data.video_io import read_frames, read_video, write_gif, write_mp4, write_png


@pytest.fixture
def video_THWC():
    """A soft bright spot that crosses a blue canvas: (17, 32, 48, 3)."""
    t, y, x = np.ogrid[:17, :32, :48]
    spot_THW = 200 * np.exp(-((y - 16) ** 2 + (x - 2 * t - 8) ** 2) / 40)
    return np.stack([spot_THW, spot_THW, np.full_like(spot_THW, 90)], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize('write', [write_mp4, write_gif])
def test_same_clip_same_bytes(tmp_path, video_THWC, write):
    for name in 'ab':
        write(tmp_path / name, video_THWC, fps=8)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_bytes_do_not_depend_on_what_was_in_memory_before(tmp_path, rng):
    """Noise in frames that are no multiple of a macroblock, between allocations of every size."""
    video_THWC = rng.integers(256, size=(9, 24, 20, 3), dtype=np.uint8)
    written = set()
    for _ in range(12):
        for size in rng.integers(1_000, 200_000, size=50):
            np.full(size, 255, np.uint8)
        write_mp4(tmp_path / 'a', video_THWC)
        written.add((tmp_path / 'a').read_bytes())
    assert len(written) == 1


def test_same_picture_same_bytes_and_png_is_exact(tmp_path, video_THWC):
    for name in ('a.png', 'b.png'):
        write_png(tmp_path / name, video_THWC[3])
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'a.png')), video_THWC[3])


def test_mp4_reads_back_close_to_what_was_written(tmp_path, video_THWC):
    write_mp4(tmp_path / 'clip.mp4', video_THWC, fps=24)
    again_THWC, fps = read_video(tmp_path / 'clip.mp4')
    assert again_THWC.shape == video_THWC.shape and again_THWC.dtype == np.uint8
    assert np.abs(again_THWC.astype(int) - video_THWC).mean() < 2
    assert fps == pytest.approx(24)


@pytest.mark.parametrize('fps', [8, 23.976, 29.97])
def test_mp4_keeps_its_frame_rate(tmp_path, video_THWC, fps):
    write_mp4(tmp_path / 'clip.mp4', video_THWC, fps)
    assert read_video(tmp_path / 'clip.mp4')[1] == pytest.approx(fps, rel=1e-4)


def test_mp4_is_one_a_browser_plays(tmp_path, video_THWC):
    av = pytest.importorskip('av')
    write_mp4(tmp_path / 'clip.mp4', video_THWC)
    with av.open(str(tmp_path / 'clip.mp4')) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ('h264', 'yuv420p')


def test_gif_keeps_grey_clips_and_every_frame_and_loops_for_ever(tmp_path, video_THWC):
    grey_THWC = np.repeat(video_THWC[..., :1], 3, axis=-1)
    grey_THWC[5] = grey_THWC[4]  # a writer that merges equal frames would lose one
    write_gif(tmp_path / 'clip.gif', grey_THWC, fps=8)
    again_THWC, fps = read_video(tmp_path / 'clip.gif')
    np.testing.assert_array_equal(again_THWC, grey_THWC)
    assert fps == pytest.approx(8, rel=0.01)
    with Image.open(tmp_path / 'clip.gif') as picture:
        assert picture.info['loop'] == 0 and picture.n_frames == 17


def test_gif_of_many_colours_stays_close(tmp_path, video_THWC):
    write_gif(tmp_path / 'clip.gif', video_THWC)
    assert np.abs(read_video(tmp_path / 'clip.gif')[0].astype(int) - video_THWC).mean() < 2


@pytest.mark.parametrize(('write', 'name'), [(write_mp4, 'clip.mp4'), (write_gif, 'clip.gif')])
def test_scale_repeats_pixels(tmp_path, video_THWC, write, name):
    write(tmp_path / name, video_THWC, scale=4)
    again_THWC = read_video(tmp_path / name)[0]
    assert again_THWC.shape == (17, 128, 192, 3)
    assert np.abs(again_THWC[:, 1::4, 1::4].astype(int) - video_THWC).mean() < 2


def test_odd_mp4_is_an_error_that_an_even_scale_cures(tmp_path, video_THWC):
    with pytest.raises(ValueError, match='31x48 at scale 1'):
        write_mp4(tmp_path / 'clip.mp4', video_THWC[:, :31])
    write_mp4(tmp_path / 'clip.mp4', video_THWC[:, :31], scale=2)


def test_read_frames_keeps_the_order_asked_for(tmp_path, video_THWC):
    write_mp4(tmp_path / 'clip.mp4', video_THWC)
    whole_THWC, _ = read_video(tmp_path / 'clip.mp4')
    np.testing.assert_array_equal(read_frames(tmp_path / 'clip.mp4', [9, 2, 9]), whole_THWC[[9, 2, 9]])


@pytest.mark.parametrize('wrong', [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)])
def test_clips_of_another_kind_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=f'{wrong.dtype}'):
        write_mp4(tmp_path / 'clip.mp4', wrong)
    with pytest.raises(ValueError, match=f'{wrong.dtype}'):
        tile(wrong, columns=1)


def test_contact_sheet_shows_first_and_last_frame_of_every_clip(video_THWC):
    clips_NTHWC = np.stack([video_THWC, video_THWC[::-1], 255 - video_THWC])
    sheet_HWC = contact_sheet(clips_NTHWC, frames=3, columns=2, margin=1)
    assert sheet_HWC.shape == (1 + 2 * 33, 1 + 6 * 49, 3)
    cell = {(r, c): sheet_HWC[1 + 33 * r : 33 + 33 * r, 1 + 49 * c : 49 + 49 * c] for r in (0, 1) for c in range(6)}
    for (row, column), frame in {(0, 0): (0, 0), (0, 2): (0, 16), (0, 3): (1, 0), (1, 1): (2, 8)}.items():
        np.testing.assert_array_equal(cell[row, column], clips_NTHWC[frame])
    assert np.ptp(cell[1, 3]) == 0  # no fourth clip
    with pytest.raises(ValueError, match='17 of a clip, got 18'):
        contact_sheet(clips_NTHWC, frames=18)


def test_tile_plays_all_clips_at_once(video_THWC):
    clips_NTHWC = np.stack([video_THWC, video_THWC[::-1], 255 - video_THWC])
    wall_THWC = tile(clips_NTHWC, columns=2, margin=3)
    assert wall_THWC.shape == (17, 3 + 2 * 35, 3 + 2 * 51, 3)
    np.testing.assert_array_equal(wall_THWC[:, 3:35, 54:102], clips_NTHWC[1])
    np.testing.assert_array_equal(wall_THWC[:, 38:70, 3:51], clips_NTHWC[2])


def test_contact_sheet_has_each_caption_above_its_clip(video_THWC):
    clips_NTHWC = np.stack([video_THWC, 255 - video_THWC, video_THWC])
    plain = contact_sheet(clips_NTHWC, frames=3)
    said = contact_sheet(clips_NTHWC, frames=3, captions=['one', 'one', 'the other'])
    rows = np.split(said, 3)
    assert said.shape[1] == plain.shape[1] and all((row[:14] > 200).any() for row in rows)
    text = [row[:14] for row in rows]
    np.testing.assert_array_equal(text[0], text[1])
    assert (text[2][:, : said.shape[1] // 2] > 200).sum() > (text[0] > 200).sum()  # more letters
    np.testing.assert_array_equal(rows[0][14:], contact_sheet(clips_NTHWC[:1], frames=3))
    with pytest.raises(ValueError, match='2 captions for 3 clips'):
        contact_sheet(clips_NTHWC, frames=3, captions=['one', 'two'])
