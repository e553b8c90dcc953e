"""Training a classifier: it resumes exactly, on any mesh, and says what does not fit before it begins."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import binary

from configs import navit_classifier
from walt import restore
from walt.parallel.mesh import make_mesh


def config(**changes):
    made = navit_classifier.get_config('smoke').to_dict() | {'batch_size': 4}
    return made | changes


@pytest.fixture(scope='module')
def program():
    return binary('train_classifier')


@pytest.fixture(scope='module')
def trained(program, tmp_path_factory):
    """(workdir, last state)."""
    workdir = tmp_path_factory.mktemp('classifier')
    return workdir, program.train(config(), str(workdir))


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_a_run_resumes_exactly(trained, program, tmp_path):
    workdir, state = trained
    half = shutil.copytree(workdir, tmp_path / 'half')
    shutil.rmtree(half / 'checkpoints' / '4')
    same(program.train(config(), str(half)), state)


def test_the_run_tells_of_packing_and_of_held_out_clips(trained):
    rows = [json.loads(line) for line in (trained[0] / 'metrics.jsonl').read_text().splitlines()]
    train = next(row for row in rows if 'train/loss' in row)
    assert {'accuracy', 'filled', 'clips_a_row', 'tokens_a_row', 'dropped', 'gradient_norm'} <= {
        name.removeprefix('train/') for name in train
    }
    assert train['train/filled'] > 0.9 and train['train/dropped'] > 0
    held_out = next(row for row in rows if 'validation/loss' in row)
    assert 0 <= held_out['validation/accuracy'] <= 1


def test_the_workdir_is_all_that_is_needed_to_read_with_it(trained):
    workdir, state = trained
    classifier, there, step = restore.classifier(str(workdir), make_mesh())
    assert step == 4 and there['data'] == json.loads(json.dumps(config()['data']))
    same(classifier.params, state.ema)


@pytest.mark.slow
def test_a_classifier_of_noised_pictures_and_clips_trains(program, tmp_path):
    clips = {'name': 'moving_digits', 'frames': 3, 'size': 16, 'digit_size': 10, 'clips': 32}
    both = {'name': 'pictures_and_clips', 'pictures': {'name': 'mixed_digits', 'pictures': 32}, 'clips': clips}
    data = config()['data'] | {'source': both}
    noising = {'name': 'discrete_linear', 'steps': 100}
    program.train(config(data=data, noising=noising, steps=2, ema_decay=[0.9, 0.5]), str(tmp_path))
    (held_out,) = [line for line in (tmp_path / 'metrics.jsonl').read_text().splitlines() if 'validation' in line]
    assert {'validation/accuracy', 'validation/accuracy_clean'} <= set(json.loads(held_out))
    assert restore.classifier(str(tmp_path), make_mesh())[0].module.timed


def test_what_does_not_fit_is_said_before_training(program, tmp_path):
    def refused(match, **changes):
        made = config()
        made |= {
            name: value if len(value) == 1 and 'name' in value else made[name] | value
            for name, value in changes.items()
        }
        with pytest.raises(ValueError, match=match):
            program.train(made, str(tmp_path / 'no'))

    refused('classes: 10 of the data, 7 of the classifier', classifier={'classes': 7})
    refused('numbers in a token: 48 of the data, 16 of the classifier', classifier={'channels': 1})
    learned = {'positions': 'learned', 'extent': (1, 4, 4)}
    refused(r'clips may have \(1, \d+, \d+\) tokens, but positions are learned', classifier=learned)
    refused(r"unknown dropping 'some'; choices: \['beta', 'by_resolution'", data={'dropping': {'name': 'some'}})
    refused('patch: .1, 4, 4. of the data, .1, 2, 8. of the classifier', classifier={'patch': (1, 2, 8)})
    refused("data named 'packed', not MovingDigits", data={'name': 'moving_digits'})
    assert not (tmp_path / 'no').exists()
