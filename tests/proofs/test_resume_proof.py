"""`resume.py` in short: one kill inside a save, then on as before and on other devices in two processes."""

import random
import shutil
from types import SimpleNamespace

import pytest
from digits import get_config
from resume import ALL_AXES, ALONE, TOLERANCE, Life, Topology, compare, kill_somewhere, prove
from tiny import binary
from train import tell_samples

STEPS = 5


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """`folder` with a run `unbroken`, and a run `killed` while it saved step 2 or 3; `train(workdir)`."""
    folder, program = tmp_path_factory.mktemp('proof'), binary('train_tokenizer')
    config = get_config('tokenizer').to_dict() | {'steps': STEPS}

    def train(workdir):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, 'fit', program.fit)
            patch.setattr(program, 'process_batches', program.process_batches)
            tell_samples(program)
            program.train(config, str(folder / workdir))

    train('unbroken')
    life = Life('tokenizer', folder / 'killed', ALONE, ['--config.steps=100'])
    alive, saving = kill_somewhere(life, 'save', 2, random.Random(0))
    assert alive and saving
    return SimpleNamespace(folder=folder, train=train)


def test_killed_inside_a_save_and_started_again_it_ends_with_the_same_bits(killed):
    shutil.copytree(killed.folder / 'killed', killed.folder / 'again')
    killed.train('again')
    result = compare(killed.folder / 'again', killed.folder / 'unbroken', STEPS)
    assert result['bitwise equal'] and result['same samples'] and result['steps'] == STEPS


@pytest.mark.slow  # half a minute; tests/parallel/test_two_processes.py has the training and the save of two processes
def test_started_again_in_two_processes_of_four_devices_it_ends_with_the_same_parameters(killed):
    shutil.copytree(killed.folder / 'killed', killed.folder / 'spread')
    Life('tokenizer', killed.folder / 'spread', Topology(2, 4, ALL_AXES), [f'--config.steps={STEPS}']).wait()
    result = compare(killed.folder / 'spread', killed.folder / 'unbroken', STEPS)
    assert 0 < result['all parameters'] < TOLERANCE, result
    assert result['same samples'] and result['steps'] == STEPS


@pytest.mark.slow
def test_killed_on_every_topology_it_ends_with_the_same_parameters(tmp_path):
    """`resume.py` with a quarter of the kills, of the tokenizer."""
    result = prove('tokenizer', tmp_path, kills=5, steps=20, seed=0)
    assert result['same']['bitwise equal'] and result['same']['inside a save'] >= 1
    assert result['changing']['all parameters'] < TOLERANCE
    assert result['same']['same samples'] and result['changing']['same samples']
