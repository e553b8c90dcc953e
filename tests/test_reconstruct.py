"""A video of any length through a trained tokenizer."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny import binary

from walt.data.video_file import VideoFile
from walt.data.video_io import read_video, write_mp4
from walt.parallel.mesh import make_mesh


@pytest.fixture(scope='module')
def program():
    return binary('reconstruct')


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """19 frames of 20x18 pixels."""
    path = tmp_path_factory.mktemp('video') / 'video.mp4'
    write_mp4(path, np.random.default_rng(0).integers(256, size=(19, 20, 18, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize('chunk', [1, 3])
def test_pieces_are_the_whole_clip_and_what_became_of_it(program, video, trained, chunk):
    frozen, _, _ = program.restore.tokenizer(str(trained.folder / 'tokenizer'), make_mesh())
    pieces = program.reconstruct(frozen, VideoFile.open(video), (20, 18), 17, chunk)
    real, fake = (np.concatenate(parts) for parts in zip(*pieces))
    whole = read_video(video)[0][:17, :20, :16]
    np.testing.assert_array_equal(real, whole)
    expected = jax.jit(lambda frozen, clip: frozen.decode(frozen.encode(clip)))(frozen, whole[None])[0]
    np.testing.assert_allclose(fake.astype(int), np.asarray(expected, int), atol=1)


def test_original_and_reconstruction_are_written_side_by_side(program, video, trained, tmp_path, monkeypatch, capfd):
    out = tmp_path / 'out.mp4'
    values = dict(WORKDIR=f'{trained.folder}/tokenizer', VIDEO=str(video), OUT=str(out), SHORT_SIDE=None, CHUNK=2)
    for name, value in values.items():
        monkeypatch.setattr(program, name, SimpleNamespace(value=value))
    program.main([])
    written, _ = read_video(out)
    assert written.shape == (17, 20, 32, 3)
    left, whole = written[:, :, :16].astype(int), read_video(video)[0][:17, :, :16]
    assert np.abs(left - whole).mean() < 0.3 * np.abs(left - whole[::-1]).mean()  # noise, twice through a video coder
    assert '17 frames of 20x16 (the video has 19 of 20x18)' in capfd.readouterr().out
