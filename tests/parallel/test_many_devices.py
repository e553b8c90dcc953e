"""Eight devices compute what one does. Virtual ones, in a process of their own: JAX counts its devices once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(program, *args):
    """What a program of this folder prints, JSON in its last line."""
    environment = os.environ | {'PYTHONPATH': str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, HERE / program, *args], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_step_on_eight_devices_has_the_loss_of_one():
    """Parameters and batch split over data 2 x fsdp 2 x tensor 2; the second loss tests the first step's gradients."""
    result = run('eight_devices.py')
    for task in ('tokenizer', 'denoiser'):
        *losses, split_on_one = result[f'{task} on one']
        *same, split_on_eight = result[f'{task} on eight']
        assert split_on_one == 0 and split_on_eight > 5
        assert all(abs(a - b) < 1e-5 * max(1, abs(a)) for a, b in zip(losses, same)), result
        assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.slow
def test_adafactor_and_muon_are_split_over_eight_devices_and_move_parameters_as_on_one():
    for name, result in run('eight_devices_optimizers.py').items():
        assert result['layout fits the state'], name
        assert result['share'] < 0.65, (name, result)
        assert 0 < result['difference'] < 1e-6 + 1e-4 * result['moved'], (name, result)
