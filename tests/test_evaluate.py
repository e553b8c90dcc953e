"""What walt.evaluate says of trained runs."""

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image
from tiny import DATA, binary, run_here

from configs import navit_classifier
from walt import build
from walt.data.captions import write_captions
from walt.data.moving_digits import MovingDigits
from walt.data.video_io import write_mp4_for_training
from walt.evaluation.quality import psnr
from walt.features.perceptual import squeezenet_distance


@pytest.fixture(scope='module')
def program():
    return binary('evaluate')


@pytest.mark.slow
def test_super_resolution_stands_beside_bicubic_pixels(conditioned, letters, tmp_path):
    run_here(
        'evaluate',
        f'--workdir={conditioned.folder}/finer',
        '--held_out=5',
        '--training=60',
        '--batch_size=2',
        '--perceptual=none',
        '--rollout=5',
        f'--out={tmp_path}/out.json',
    )
    result = json.loads((tmp_path / 'out.json').read_text())
    source = MovingDigits('validation', **{key: DATA[key] for key in ('frames', 'clips')}, size=32, digit_size=20)
    videos = np.stack([source[i]['video'] for i in range(5)])
    small = videos.reshape(5, 5, 16, 2, 16, 2, 3).mean((3, 5)).round().astype(np.uint8)
    bicubic = [[Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC) for frame in clip] for clip in small]
    expected = psnr(np.array([[np.asarray(frame) for frame in clip] for clip in bicubic]), videos).mean()
    assert result['upsampling']['bicubic_psnr_db'] == pytest.approx(expected, abs=0.02)
    assert 0 < result['upsampling']['psnr_db'] < expected  # after four steps


def test_a_run_is_asked_what_it_was_trained_with(conditioned, letters, tmp_path):
    run_here(
        'evaluate',
        f'--workdir={conditioned.folder}/base',
        '--held_out=6',
        '--training=60',
        '--batch_size=3',
        '--perceptual=none',
        '--rollout=9',
        f'--out={tmp_path}/out.json',
    )
    result = json.loads((tmp_path / 'out.json').read_text())
    assert {'prompts', 'prediction'} <= set(result) and not {'samples', 'upsampling'} & set(result)
    assert result['prompts']['real']['direction'] > 0.5 and math.isfinite(result['prediction']['border_jump'])
    assert result['protocol']['data'] == conditioned.configs['base']['data']['clips']


def test_texts_of_other_clips_are_ranked_among_real_clips(conditioned, letters, tmp_path, monkeypatch, program):
    """Captions that speak of no moving digit: the run is the same, its data another."""
    for split in ('train', 'validation'):
        (tmp_path / split).mkdir()
        source = MovingDigits(split, frames=5, size=16, digit_size=10, clips=4)
        for i in range(4):
            write_mp4_for_training(tmp_path / split / f'{i}.mp4', source[i]['video'], 8)
        write_captions(tmp_path / split, {f'{i}.mp4': f'picture {i}' for i in range(4)})
    folders = {'root': str(tmp_path / 'train'), 'validation_root': str(tmp_path / 'validation')}
    data = {'name': 'video_folder', 'frames': 5, 'size': 16, 'validation_fraction': 0.0, 'clips_per_file': 2} | folders
    config = conditioned.configs['base'] | {'data': data}
    monkeypatch.setattr(program, 'saved_config', lambda workdir: config)
    distance = squeezenet_distance()
    small = dataclasses.replace(distance, smallest=16, features=lambda weights, x_NHWC: (x_NHWC,))
    monkeypatch.setitem(build.PERCEPTUAL, 'squeezenet', lambda dtype: small)
    arguments = ('--held_out=4', '--batch_size=2', '--perceptual=none', '--rollout=5', f'--out={tmp_path}/out.json')
    run_here('evaluate', f'--workdir={conditioned.folder}/base', *arguments)
    result = json.loads((tmp_path / 'out.json').read_text())
    assert 'prompts' not in result and 'judge_on_held_out' not in result
    for split in ('held_out', 'training'):
        assert result['retrieval'][split]['gallery'] == 4 and 1 <= result['retrieval'][split]['median_rank'] <= 4


@pytest.fixture(scope='module')
def classifier_dir(tmp_path_factory):
    """A classifier of ten classes that was trained for four steps."""
    workdir = tmp_path_factory.mktemp('classifier')
    binary('train_classifier').train(navit_classifier.get_config('smoke').to_dict() | {'batch_size': 4}, str(workdir))
    return workdir


def test_a_classifier_is_measured_on_held_out_pictures_by_their_shape(classifier_dir, tmp_path):
    run_here('evaluate', f'--workdir={classifier_dir}', f'--out={tmp_path}/out.json', '--held_out=30')
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['step'] == 4 and result['classifier']['clips'] == 30
    assert set(result['classifier']['accuracy_by_shape']) == {'tall', 'wide', 'square'}
    assert 0 <= result['classifier']['accuracy'] <= 1 and result['protocol']['data']['name'] == 'mixed_digits'


def test_a_trained_classifier_may_be_the_judge_of_samples(classifier_dir, trained, tmp_path):
    sizes = ['--held_out=8', '--samples=1', '--batch_size=10', '--steps=1', '--perceptual=none']
    run_here(
        'evaluate', f'--workdir={trained.folder}/denoiser', f'--judge={classifier_dir}', f'--out={tmp_path}/o', *sizes
    )
    result = json.loads((tmp_path / 'o').read_text())
    assert f'NaViT of {classifier_dir}, step 4, trained on mixed_digits' in result['protocol']['judge']
    assert set(result['judge_on_held_out']) == {'clips', 'frames', 'whole_clips'}
    assert len(result['samples']['clips_by_class']) == 10


def test_what_is_no_classifier_does_not_judge(trained, tmp_path):
    sizes = ['--held_out=4', '--perceptual=none']
    with pytest.raises(ValueError, match='tokenizer holds no classifier'):
        run_here('evaluate', f'--workdir={trained.folder}/denoiser', f'--judge={trained.folder}/tokenizer', *sizes)
