"""Eight devices compute what one does. Virtual ones, in a process of their own: JAX counts its devices once."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name('eight_devices.py')


def test_a_step_on_eight_devices_has_the_loss_of_one():
    """Parameters and batch split over data 2 x fsdp 2 x tensor 2; the second loss tests the first step's gradients."""
    environment = os.environ | {'PYTHONPATH': str(PROGRAM.parents[2])}
    done = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    for task in ('tokenizer', 'denoiser'):
        *losses, split_on_one = result[f'{task} on one']
        *same, split_on_eight = result[f'{task} on eight']
        assert split_on_one == 0 and split_on_eight > 5
        assert all(abs(a - b) < 1e-5 * max(1, abs(a)) for a, b in zip(losses, same)), result
        assert abs(losses[0] - losses[1]) > 1e-3
