"""The programs as a user runs them, on a tokenizer and a denoiser of four training steps; most run in this process."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import run_here

from walt import restore
from walt.data.video_io import read_video
from walt.parallel.mesh import make_mesh

ROOT = Path(__file__).parents[1]


def run(program: str, *flags: str) -> subprocess.CompletedProcess:
    """python -m walt.PROGRAM FLAGS, from another folder than the repository's."""
    return subprocess.run(
        [sys.executable, '-m', f'walt.{program}', *flags],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        cwd='/',
        capture_output=True,
        text=True,
        timeout=200,
    )


def succeed(program: str, *flags: str) -> str:
    """What it prints."""
    done = run(program, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    """A digest of every file of pictures."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in ('.mp4', '.gif', '.png')
    }


@pytest.fixture(scope='module')
def sample(trained, tmp_path_factory):
    """sample(*flags) -> the folder that `walt.sample` wrote: two clips of each of the classes 0 and 3."""

    def sample(*flags: str, run=run_here) -> Path:
        out = tmp_path_factory.mktemp('samples')
        run('sample', f'--workdir={trained.folder}/denoiser', '--labels=0,3', '--num=2', f'--out={out}', *flags)
        return out

    return sample


@pytest.fixture(scope='module')
def samples(sample):
    return sample(run=succeed)


CLIPS = ['0000_label0.mp4', '0001_label0.mp4', '0002_label3.mp4', '0003_label3.mp4']


def test_sampling_writes_a_video_of_each_clip_and_pictures_of_all(samples):
    assert list(digests(samples)) == [*CLIPS, 'samples.gif', 'samples.png']
    clips = [read_video(samples / name)[0] for name in CLIPS]
    assert {clip.shape for clip in clips} == {(5, 64, 64, 3)}  # 16 pixels, each shown four times as large
    assert len({clip.tobytes() for clip in clips}) == 4
    gif, _ = read_video(samples / 'samples.gif')
    assert gif.shape == (5, 4 * (2 * 18 + 2), 4 * (2 * 18 + 2), 3)  # two rows of a class, margins of two pixels


def test_samples_json_says_how_they_were_made(samples, trained):
    record = json.loads((samples / 'samples.json').read_text())
    assert record['checkpoint'] == [f'{trained.folder}/denoiser/checkpoints/4'] and record['step'] == [4]
    assert record['labels'] == [0, 0, 3, 3] and record['files'] == CLIPS
    assert record['seed'] == 0 and record['batch_size'] == 10
    assert record['sampler'] == [trained.configs['denoiser']['sampler']]
    assert {'seconds_a_clip', 'seconds_a_batch', 'device'} <= set(record)


def test_the_same_command_writes_the_same_bytes(samples, sample):
    """Also in this process."""
    assert digests(sample()) == digests(samples)


def test_clips_do_not_depend_on_the_batch_size_but_on_seed_and_sampler(samples, sample, trained):
    """A batch of 3 leaves one clip for a second batch."""
    other = sample('--batch_size=3')
    for name in CLIPS:
        clip, twin = (read_video(folder / name)[0].astype(int) for folder in (samples, other))
        assert (np.abs(twin - clip) <= 3).mean() > 0.98  # one grey level, before the video coder
    changed = sample('--seed=1', '--steps=2', '--guidance=1')
    assert not set(digests(changed).values()) & set(digests(samples).values())
    sampler = json.loads((changed / 'samples.json').read_text())['sampler']
    assert sampler == [trained.configs['denoiser']['sampler'] | {'steps': 2, 'guidance': 1.0}]


def test_labels_out_of_range_are_refused_with_the_range(trained, tmp_path):
    with pytest.raises(ValueError, match=r'labels \[10\] are not in 0 .. 9'):
        run_here('sample', f'--workdir={trained.folder}/denoiser', '--labels=3,10', f'--out={tmp_path}/out')
    assert not (tmp_path / 'out').exists()


def test_a_workdir_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'no checkpoints in {tmp_path}/nowhere/checkpoints'):
        run_here('sample', f'--workdir={tmp_path}/nowhere')


def evaluate(workdir: Path, out: Path) -> dict:
    """What `walt.evaluate` writes about a workdir whose data are 16 clips."""
    sizes = ['--held_out=20', '--training=60', '--samples=1', '--batch_size=10', '--steps=2', '--perceptual=none']
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_here('evaluate', f'--workdir={workdir}', f'--out={out}', *sizes)
    result = json.loads(out.read_text())
    assert json.loads(printed.getvalue()) == {key: value for key, value in result.items() if key != 'protocol'}
    return result


@pytest.fixture(scope='module')
def evaluation(trained, tmp_path_factory):
    return evaluate(trained.folder / 'denoiser', tmp_path_factory.mktemp('evaluation') / 'evaluation.json')


def test_evaluation_of_a_denoiser_has_figures_for_tokenizer_judge_and_samples(evaluation):
    assert evaluation['step'] == 4
    assert 0 < evaluation['tokenizer']['psnr_db'] < 60 and -1 < evaluation['tokenizer']['ssim'] < 1
    assert set(evaluation['judge_on_held_out']) == {'clips', 'frames', 'whole_clips'}
    assert all(0 <= evaluation['samples'][name] <= 1 for name in ('clips', 'frames', 'whole_clips'))
    assert len(evaluation['samples']['clips_by_class']) == 10 and len(evaluation['samples']['frames_by_time']) == 5


def test_evaluation_says_by_what_protocol_the_figures_came(evaluation, trained):
    protocol = evaluation['protocol']
    assert protocol['samples_of_each_class'] == 1 and protocol['seed'] == 1
    assert protocol['sampler'] == trained.configs['denoiser']['sampler'] | {'steps': 2}
    assert protocol['data'].items() >= trained.configs['denoiser']['data'].items()


def test_the_protocol_counts_the_clips_that_were_there_not_those_asked_for(evaluation):
    assert evaluation['protocol']['held_out_clips'] == 16
    assert '16 real training clips' in evaluation['protocol']['judge']


def test_evaluation_of_a_tokenizer_has_no_samples(trained, tmp_path):
    result = evaluate(trained.folder / 'tokenizer', tmp_path / 'evaluation.json')
    assert set(result) == {'step', 'tokenizer', 'protocol'}
    assert 0 < result['tokenizer']['psnr_db'] < 60


def test_the_gallery_shows_every_clip_and_every_figure(samples, evaluation, trained, tmp_path):
    """Paths of clips are relative to the page."""
    shutil.copytree(samples, tmp_path / 'denoiser' / 'samples')
    (tmp_path / 'denoiser' / 'evaluation.json').write_text(json.dumps(evaluation))
    (tmp_path / 'seconds').mkdir()
    (tmp_path / 'seconds' / 'sample').write_text('83\n')
    flags = [f'--workdir={tmp_path}/denoiser', f'--seconds={tmp_path}/seconds', f'--out={tmp_path}/index.html']
    printed = succeed('gallery', *flags)
    page = (tmp_path / 'index.html').read_text()
    sources = re.findall('<video src="([^"]*)"', page)
    assert sources == [f'denoiser/samples/{name}' for name in CLIPS]
    for figure in (f'{evaluation["tokenizer"]["psnr_db"]:.1f} dB', f'{evaluation["samples"]["clips"]:.1%}', '1:23 min'):
        assert figure in page and figure in printed


def test_a_denoiser_keeps_the_tokenizer_that_it_was_trained_on(trained):
    """Its own copy: the fixture has deleted the workdir that it came from."""
    assert not (trained.folder / 'borrowed').exists()
    kept, original = (trained.folder / name for name in ('denoiser/tokenizer', 'tokenizer'))
    assert [path.name for path in (kept / 'checkpoints').iterdir()] == ['4'] and (original / 'checkpoints/4').is_dir()
    assert json.loads((trained.folder / 'denoiser' / 'config.json').read_text())['tokenizer_dir']


@pytest.mark.parametrize('task', ['tokenizer', 'denoiser'])
def test_an_average_is_restored_by_its_decay_or_refused_with_those_that_are_there(task, trained):
    """Both runs kept one, of decay 0.99."""
    of_task = {'tokenizer': restore.tokenizer, 'denoiser': restore.stage}[task]
    first, asked = (of_task(str(trained.folder / task), make_mesh(), decay=decay)[0] for decay in (None, 0.99))
    for leaf, twin in zip(jax.tree.leaves(first.params), jax.tree.leaves(asked.params), strict=True):
        np.testing.assert_array_equal(leaf, twin)
    with pytest.raises(ValueError, match=rf'decay 0.5 in .*{task}/checkpoints; there are \[0.99\]'):
        of_task(str(trained.folder / task), make_mesh(), decay=0.5)


def test_a_denoiser_needs_a_tokenizer_at_its_first_start(trained, tmp_path):
    with pytest.raises(ValueError, match='tokenizer_dir is empty'):
        trained.train['denoiser'](tmp_path / 'new')
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/nowhere/checkpoints'):
        trained.train['denoiser'](tmp_path / 'new', tokenizer_dir=str(tmp_path / 'nowhere'))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'latent_shape': (2, 8, 8, 3)}, r'\(2, 4, 4, 3\), denoiser.latent_shape is \(2, 8, 8, 3\)'),
        ({'classes': 11}, 'the data has 10 classes, but denoiser.classes is 11'),
    ],
    ids=str,
)
def test_data_tokenizer_and_denoiser_that_do_not_fit_are_refused_at_the_door(fields, message, trained, tmp_path):
    """And no tokenizer stays behind, which the corrected command would then take for its own."""
    section = trained.configs['denoiser']['denoiser'] | fields
    with pytest.raises(ValueError, match=message):
        trained.train['denoiser'](tmp_path / 'new', tokenizer_dir=f'{trained.folder}/tokenizer', denoiser=section)
    assert not (tmp_path / 'new' / 'tokenizer').exists()


@pytest.mark.parametrize('task', ['tokenizer', 'denoiser'])
def test_a_workdir_of_another_configuration_is_refused_and_left_as_it_was(task, trained, tmp_path):
    workdir = shutil.copytree(trained.folder / task, tmp_path / task)
    before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
    with pytest.raises(ValueError, match=r'written by another configuration:\n  seed: 0 there, 5 now'):
        trained.train[task](workdir, seed=5)
    assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before


@pytest.mark.parametrize('task', ['tokenizer', 'denoiser'])
def test_keys_that_a_configuration_lacks_or_has_too_many_are_refused_before_anything_is_written(
    task, trained, tmp_path
):
    with pytest.raises(ValueError, match=r"unknown: \['stpes'\]"):
        trained.train[task](tmp_path / 'new', stpes=3)
    assert not (tmp_path / 'new').exists()


def test_clips_that_do_not_fit_the_tokenizer_are_refused_before_anything_is_written(trained, tmp_path):
    data = trained.configs['tokenizer']['data'] | {'frames': 6}
    with pytest.raises(ValueError, match=r'6 frames are not 1 \+ k \* 4'):
        trained.train['tokenizer'](tmp_path / 'new', data=data)
    assert not (tmp_path / 'new').exists()


def test_a_key_that_the_configuration_does_not_have_is_refused_on_the_command_line(tmp_path):
    config = f'--config={ROOT}/configs/quickstart_tokenizer.py:smoke'
    done = run('train_tokenizer', config, f'--workdir={tmp_path}/new', '--config.stpes=3')
    assert done.returncode != 0 and 'stpes' in done.stderr
    assert not (tmp_path / 'new').exists()
