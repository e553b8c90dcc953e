"""What walt.evaluate says of samples, with samples of which the answer is known, and of trained runs."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import DATA, binary, run_here

from configs import navit_classifier
from walt import build
from walt.data.captions import write_captions
from walt.data.moving_digits import MovingDigits
from walt.data.video_io import write_mp4_for_training
from walt.evaluation.judge import Judge
from walt.evaluation.quality import psnr
from walt.features.perceptual import squeezenet_distance


@pytest.fixture(scope='module')
def program():
    return binary('evaluate')


@pytest.fixture(scope='module')
def held_out(program):
    """Real clips of 9 frames, fast enough to tell where they go."""
    return program.read_clips(MovingDigits('validation', frames=9, size=24, digit_size=14, clips=40), 40)


@pytest.fixture(scope='module')
def judge():
    source = MovingDigits('train', frames=9, size=24, digit_size=14, clips=300)
    clips = [source[i] for i in range(300)]
    return Judge(10).fit(np.stack([clip['video'] for clip in clips]), np.array([clip['label'] for clip in clips]))


@pytest.mark.parametrize(
    ('files', 'clips', 'expected'),
    [(3, 12, [0, 1, 2, 3]), (9, 18, [0, 2, 4, 6]), (0, 12, [0, 1, 2, 3]), (3, 3, [0, 1, 2])],
)
def test_clips_are_of_files_from_all_over_a_folder(files, clips, expected, program):
    """Clip i of a folder is of file i modulo their number, and files are in order of class."""

    class Folder(list):
        pass

    source = Folder({'video': np.zeros((1, 2, 2, 3), np.uint8), 'label': number} for number in range(clips))
    source.files = (None,) * files
    np.testing.assert_array_equal(program.read_clips(source, 4).labels, expected)


def sampler_of(monkeypatch, program, videos):
    """What is sampled are these clips, whatever is asked for; returns the requests."""
    requests = []

    def sample_clips(stage, request, seed, batch_size, frames=None):
        requests.append(request)
        return videos

    monkeypatch.setattr(program, 'sample_clips', sample_clips)
    return requests


def test_real_clips_as_samples_are_as_good_as_real_clips(program, held_out, judge, monkeypatch):
    requests = sampler_of(monkeypatch, program, held_out.videos)
    result = program.measure_prompts(None, judge, held_out, lead=4, seed=0, batch_size=8)
    assert result['samples'] == result['real'] and result['real']['direction'] > 0.9 and result['real']['digit'] > 0.8
    assert list(requests[0].prompts) == held_out.captions and len(set(held_out.captions)) > 20


def test_clips_that_run_backwards_or_show_another_digit_are_seen(program, held_out, judge, monkeypatch):
    sampler_of(monkeypatch, program, held_out.videos[:, ::-1])
    backwards = program.measure_prompts(None, judge, held_out, lead=4, seed=0, batch_size=8)
    assert backwards['samples']['direction'] < 0.2 and backwards['samples']['digit'] == backwards['real']['digit']
    sampler_of(monkeypatch, program, held_out.videos[::-1])
    others = program.measure_prompts(None, judge, held_out, lead=4, seed=0, batch_size=8)
    assert others['samples']['digit'] < 0.4


def test_real_clips_are_found_by_their_captions_and_others_are_not(program, held_out, monkeypatch):
    """One clip a caption, in order of the captions, is what is sampled and what is ranked."""
    network = squeezenet_distance()
    captions, first_N = np.unique(held_out.captions, return_index=True)
    assert len(captions) < len(held_out.captions)
    requests = sampler_of(monkeypatch, program, held_out.videos[first_N])
    found = program.measure_retrieval(None, held_out, network, seed=0, batch_size=8)
    assert found['gallery'] == len(captions) and found['first'] == 1
    assert list(requests[0].prompts) == captions.tolist()
    sampler_of(monkeypatch, program, np.roll(held_out.videos[first_N], 7, axis=0))
    assert program.measure_retrieval(None, held_out, network, seed=0, batch_size=8)['first'] == 0


STAGE = SimpleNamespace(
    denoiser=SimpleNamespace(conditions={'frames': (3, 6, 6, 3)}),
    clip_shape=(9, 24, 24, 3),
    most_given=2,
    frozen=SimpleNamespace(module=SimpleNamespace(clip_shape=lambda *extent: (5, 1, 1, 3))),
)


def test_prediction_is_measured_where_the_mass_should_have_gone(program, held_out, monkeypatch):
    requests = sampler_of(monkeypatch, program, held_out.videos)
    right = program.measure_prediction(STAGE, held_out, 0, 8, frames=9)
    assert right['centre_off_pixels'] == 0 and right['border_jump'] is None
    np.testing.assert_array_equal(requests[0].frames_NTHWC, held_out.videos[:, :5])
    still = np.repeat(held_out.videos[:, 4:5], 9, axis=1)
    sampler_of(monkeypatch, program, still)
    stopped = program.measure_prediction(STAGE, held_out, 0, 8, frames=9)
    assert stopped['centre_off_pixels'] == stopped['centre_off_pixels_if_still'] > 1


def test_rollouts_are_told_by_their_seams(program, held_out, monkeypatch):
    """Chunks of 9 frames after 5: a border after frame 8."""
    rollouts = np.concatenate([held_out.videos, 255 - held_out.videos[:, :4]], axis=1)
    sampler_of(monkeypatch, program, rollouts)
    assert program.measure_prediction(STAGE, held_out, 0, 8, frames=13)['border_jump'] > 5


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


def test_packed_samples_are_counted_by_shape_and_class(program):
    """Of two classes, the judge sees the first in all pictures that are wide."""
    asked = []

    def clips(shapes, labels, seed, rows):
        asked.extend(zip(shapes, labels))
        return [np.zeros((*shape, 3), np.uint8) for shape in shapes]

    stage = SimpleNamespace(denoiser=SimpleNamespace(classes=2), clips=clips)
    judge = SimpleNamespace(read_clips=lambda clips: np.array([int(c.shape[1] >= c.shape[2]) for c in clips]))
    found = program.measure_packed_samples(stage, judge, ['1x8x16', '1x16x8'], samples=3, seed=0, rows=1)
    assert found == {
        '1x8x16': {'clips': 0.5, 'clips_by_class': [1, 0]},
        '1x16x8': {'clips': 0.5, 'clips_by_class': [0, 1]},
    }
    assert asked[:6] == [((1, 8, 16), 0)] * 3 + [((1, 8, 16), 1)] * 3
