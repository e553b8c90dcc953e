"""The page and the table of a run."""

import json
from pathlib import Path

import pytest
from tiny import binary


@pytest.fixture(scope='module')
def gallery():
    return binary('gallery')


EVALUATION = {
    'tokenizer': {'psnr_db': 25.04, 'ssim': 0.9123},
    'judge_on_held_out': {'clips': 0.993},
    'samples': {'clips': 0.915, 'frames': 0.83},
}


def test_table_names_every_figure_and_the_total_time(gallery):
    rows = dict(gallery.figures(EVALUATION, {'tokenizer': 61, 'denoiser': 125}))
    assert rows['held-out reconstruction, PSNR'] == '25.0 dB'
    assert rows['samples read as the class asked for'] == '91.5%'
    assert rows['frames of samples read so'] == '83.0%'
    assert rows['time: tokenizer'] == '1:01 min'
    assert rows['time: in all'] == '3:06 min'


def test_page_refers_to_every_clip_by_a_path_relative_to_itself(gallery, tmp_path):
    workdir, out = tmp_path / 'denoiser', tmp_path / 'index.html'
    samples = {'step': 7, 'files': ['0000_label3.mp4', '0001_label8.mp4'], 'labels': [3, 8], 'seed': 0}
    page = gallery.page(workdir, out, gallery.figures(EVALUATION, {}), samples, EVALUATION)
    for name in samples['files']:
        assert f'src="{Path("denoiser/samples") / name}"' in page
    assert json.dumps('seed')[1:-1] in page
    assert 'step 7' in page
