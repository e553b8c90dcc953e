"""A denoiser of packed rows, trained and sampled by the programs."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import binary, run_here

from configs import digits_packed, navit_classifier
from walt import build, restore
from walt.parallel.mesh import make_mesh


def tiny_config():
    config = digits_packed.get_config('smoke').to_dict()
    config |= {'batch_size': 2, 'steps': 2, 'checkpoint_every': 1, 'validate_every': 2, 'log_every': 1}
    config['denoiser'] |= {'width': 16, 'depth': 2, 'heads': 1}
    config['sampler'] |= {'steps': 3}
    return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """`workdir` of two steps, `state` after them, `config`."""
    folder, config = tmp_path_factory.mktemp('packed') / 'run', tiny_config()
    return SimpleNamespace(workdir=folder, config=config, state=binary('train_denoiser').train(config, str(folder)))


def test_a_run_tells_how_full_its_rows_are_and_how_many_clips_it_saw(run):
    lines = [json.loads(line) for line in (run.workdir / 'metrics.jsonl').read_text().splitlines()]
    trained = [line for line in lines if 'train/loss' in line]
    assert [line['step'] for line in trained] == [1, 2]
    assert all(line['train/filled'] > 0.8 and line['train/clips'] > 2 for line in trained)
    assert any('validation/loss' in line for line in lines)


def test_a_run_that_goes_on_is_the_unbroken_run(run, tmp_path):
    copy = shutil.copytree(run.workdir, tmp_path / 'run')
    shutil.rmtree(copy / 'checkpoints' / '2')
    again = binary('train_denoiser').train(run.config, str(copy))
    for one, other in zip(*(map(np.asarray, leaves(state.params)) for state in (again, run.state)), strict=True):
        np.testing.assert_array_equal(one, other)


def leaves(tree):
    for value in tree.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


def test_the_program_writes_clips_of_every_shape_and_says_how(run, tmp_path):
    argv = [f'--workdir={run.workdir}', f'--out={tmp_path}', '--shapes=1x16x16,1x8x24', '--labels=3,5', '--rows=1']
    run_here('sample_packed', *argv)
    record = json.loads((tmp_path / 'samples.json').read_text())
    assert record['shapes'] == ['1x16x16', '1x8x24'] and record['labels'] == [3, 5] and record['step'] == 2
    assert record['sampler']['steps'] == 3 and len(record['files']) == 4
    sizes = [Image.open(tmp_path / file).size for file in record['files']]
    assert sizes == [(16, 16)] * 2 + [(24, 8)] * 2
    assert Image.open(tmp_path / '1x8x24.png').size == (28, 22)


def test_what_is_no_shape_is_refused():
    program = binary('sample_packed')
    assert program.read_shape('17x128x224') == (17, 128, 224)
    for text in ('128x224', '1x2xthree'):
        with pytest.raises(ValueError, match=f"FRAMESxHEIGHTxWIDTH, such as 17x128x224, not '{text}'"):
            program.read_shape(text)


def test_runs_of_packed_rows_and_others_are_told_apart(run, trained):
    with pytest.raises(ValueError, match=r'packed rows: sample it with `python -m walt.sample_packed`'):
        restore.stage(str(run.workdir), make_mesh())
    with pytest.raises(ValueError, match='holds a Walt, no denoiser of packed rows'):
        restore.packed_stage(str(trained.folder / 'denoiser'), make_mesh())


def test_a_packed_run_starts_from_another_with_rows_of_another_length(run, tmp_path):
    config = tiny_config() | {'start': {'denoiser_dir': str(run.workdir)}}
    config['denoiser'] |= {'length': 64}
    module = build.denoiser(config['denoiser'], 'float32')
    started = restore.starting_denoiser(config['start'], module, run.state.params, make_mesh())
    for one, other in zip(leaves(started), leaves(run.state.ema), strict=True):
        np.testing.assert_array_equal(one, other)
    other = build.denoiser(config['denoiser'] | {'classes': 7}, 'float32')
    with pytest.raises(ValueError, match='classes: 10 there, 7 here'):
        restore.starting_denoiser(config['start'], other, run.state.params, make_mesh())


@pytest.mark.slow
def test_latents_of_many_sizes_are_encoded_trained_on_and_decoded(trained, tmp_path):
    """The way of `configs/dit_packed.py`: fitted pictures, `walt.encode`, rows of latents, pixels again."""
    tokenizer, config = str(trained.folder / 'tokenizer'), tiny_config()
    digits = {'name': 'mixed_digits', 'pictures': 24}
    sides = {'name': 'uniform', 'low': 8.0, 'high': 20.0}
    config['data'] = {'name': 'fitted', 'source': digits, 'patch': (4, 4), 'most': 32, 'resolution': sides}
    config['denoiser'] |= {'channels': 3, 'patch': 1, 'length': 64, 'most': 8}
    for split in ('train', 'validation'):
        binary('encode').encode(config, tokenizer, str(tmp_path / 'latents'), split)
    encoded = {'name': 'encoded', 'root': str(tmp_path / 'latents')}
    config['data'] = {'name': 'packed', 'source': encoded, 'patch': (1, 1, 1), 'length': 64, 'most': 8}
    program, workdir = binary('train_denoiser'), str(tmp_path / 'run')
    with pytest.raises(ValueError, match="data are latents, and tokenizer_dir is 'none' for pixels alone"):
        program.train(config, workdir)
    program.train(config | {'tokenizer_dir': tokenizer}, workdir)
    stage, _, step = restore.packed_stage(workdir, make_mesh())
    clips = stage.clips([(1, 12, 20), (5, 8, 8)], [1, 2], seed=0, rows=1)
    assert step == 2 and [clip.shape for clip in clips] == [(1, 12, 20, 3), (5, 8, 8, 3)]


@pytest.fixture(scope='module')
def guide(tmp_path_factory):
    """`workdir` of a classifier of noised rows of two steps, `config`; its rows are longer than those it guides."""
    folder, config = tmp_path_factory.mktemp('guide') / 'run', navit_classifier.get_config('smoke').to_dict()
    config |= {'batch_size': 2, 'steps': 2, 'noising': tiny_config()['schedule']}
    config['data'] |= {'length': 256, 'most': 6}
    binary('train_classifier').train(config, str(folder))
    return SimpleNamespace(workdir=folder, config=config)


def test_a_classifier_guides_and_the_record_says_so(run, guide, tmp_path):
    argv = [f'--workdir={run.workdir}', '--shapes=1x16x16', '--labels=3', '--rows=1', '--guidance=0']
    by = [f'--classifier={guide.workdir}', '--classifier_guidance=1e4']
    for name, more in {'plain': [], 'guided': by}.items():
        run_here('sample_packed', *argv, f'--out={tmp_path / name}', *more)
    plain, guided = (np.asarray(Image.open(tmp_path / name / '1x16x16.png'), int) for name in ('plain', 'guided'))
    assert np.abs(plain - guided).max() > 1
    record = json.loads((tmp_path / 'guided' / 'samples.json').read_text())
    assert (record['classifier_workdir'], record['classifier_guidance']) == (str(guide.workdir), 1e4)
    with pytest.raises(ValueError, match=r'classifier_guidance is 2\.0, and there is no classifier'):
        run_here('sample_packed', *argv, f'--out={tmp_path}', '--classifier_guidance=2')


@pytest.mark.parametrize(
    ('section', 'changes', 'told'),
    [
        ('classifier', {'classes': 7}, 'classes: 7 of the classifier, 10 of the denoiser'),
        ('classifier', {'patch': (1, 2, 4)}, r'patch: \(1, 2, 4\) of the classifier, \(1, 4, 4\) of the denoiser'),
        ('classifier', {'channels': 1}, 'channels: 1 of the classifier, 3 of the denoiser'),
        (
            'noising',
            {'name': 'none'},
            "of noised clips guides, and noising of this one is {'name': 'none'}",
        ),
        (
            'noising',
            {'name': 'discrete_linear', 'steps': 500},
            r'schedule: DiscreteLinear\(steps=500.* of the classifier, DiscreteLinear\(steps=1000.* of the denoiser',
        ),
        ('data', {'source': {'name': 'encoded', 'root': 'x'}}, 'clips: latents of the classifier, pixels of'),
        (
            'classifier',
            {'positions': 'learned'},
            r'clips of up to \(128, 128, 128\) tokens, but positions of the classifier are learned for \(1, 24, 24\)',
        ),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_with_both_values(guide, section, changes, told):
    config = guide.config | {section: guide.config[section] | changes if section != 'noising' else changes}
    with pytest.raises(ValueError, match=told):
        restore.check_guide(config, tiny_config())


def test_what_is_no_classifier_does_not_guide(run):
    with pytest.raises(ValueError, match='no run of a classifier: its configuration has'):
        restore.packed_stage(str(run.workdir), make_mesh(), classifier_workdir=str(run.workdir), classifier_guidance=1)


def test_samples_that_a_classifier_guides_are_measured(run, guide, tmp_path):
    argv = [f'--judge={guide.workdir}', f'--classifier={guide.workdir}', '--classifier_guidance=2', '--guidance=0']
    sizes = ['--shapes=1x16x16', '--samples=1', '--held_out=4', '--batch_size=10']
    run_here('evaluate', f'--workdir={run.workdir}', f'--out={tmp_path}/out.json', *argv, *sizes)
    result = json.loads((tmp_path / 'out.json').read_text())
    assert len(result['samples']['1x16x16']['clips_by_class']) == 10
    assert result['protocol']['sampler']['guidance'] == 0 and result['protocol']['classifier_guidance'] == 2
    with pytest.raises(ValueError, match=r'a classifier guides samples of packed rows, and .* makes none'):
        run_here('evaluate', f'--workdir={guide.workdir}', '--classifier_guidance=2')
