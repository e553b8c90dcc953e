"""Two processes of four virtual devices train as one process of one device does, and stop together."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from walt.parallel.distributed import initialize
from walt.training.checkpoints import latest_step

HERE = Path(__file__).parent


# A tokenizer too is trained in two processes by `test_resume_proof.py`.
@pytest.fixture(
    scope='module', params=[['denoiser'], pytest.param(['tokenizer', 'denoiser'], marks=pytest.mark.slow)], ids=' '.join
)
def two(request, trained, tmp_path_factory):
    """What both processes wrote: `folder`, and `results`, one of each; `tasks` that they trained."""
    folder = tmp_path_factory.mktemp('two')
    if 'tokenizer' not in request.param:
        shutil.copytree(trained.folder / 'tokenizer', folder / 'tokenizer')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {'PYTHONPATH': f'{HERE.parents[1]}:{HERE.parent}', 'JAX_NUM_CPU_DEVICES': '4'}
    command = [sys.executable, HERE / 'two_processes.py', port]
    logs = [(folder / f'{process}.log').open('w') for process in range(2)]
    processes = [
        subprocess.Popen([*command, str(number), folder, *request.param], env=environment, stdout=log, stderr=log)
        for number, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], [(folder / f'{process}.log').read_text()[-3000:] for process in range(2)]
    results = [json.loads((folder / f'{process}.json').read_text()) for process in range(2)]
    return SimpleNamespace(folder=folder, results=results, tasks=request.param)


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != 'train/steps_per_second'} for row in rows]


def test_losses_and_validation_are_those_of_one_device(two, trained):
    """Also the denoiser's, whose tokenizer and latents went through the disk; and each line is written once."""
    for task in two.tasks:
        ours, theirs = metrics(two.folder / task), metrics(trained.folder / task)
        assert [(row['step'], sorted(row)) for row in ours] == [(row['step'], sorted(row)) for row in theirs]
        for row, other in zip(ours, theirs):
            np.testing.assert_allclose(list(row.values()), [other[key] for key in row], rtol=3e-6, atol=1e-6)


def test_parameters_were_split_between_the_processes(two):
    assert [result['whole here'] for result in two.results] == [False, False]


@pytest.mark.parametrize('mesh', ['straight', 'crossed', 'shared'])
def test_a_step_has_the_same_samples_in_the_same_rows_however_devices_are_arranged(two, mesh):
    first, second = (result[mesh] for result in two.results)
    assert first['given'] == second['given'] == two.results[0]['straight']['given']
    assert len({n for step in first['given'][:2] for n in step}) == 16
    reads = {'straight': (range(4), range(4, 8)), 'crossed': (range(0, 8, 2), range(1, 8, 2)), 'shared': [range(8)] * 2}
    assert [first['read'], second['read']] == [list(rows) for rows in reads[mesh]]


def test_when_one_is_told_to_stop_both_save_one_step_and_exit_with_143(two):
    assert [result['code'] for result in two.results] == [143, 143]
    assert latest_step(two.folder / 'stopped') >= 3
    assert 'SIGTERM at step' in (two.folder / '0.log').read_text()
    assert 'SIGTERM at step' not in (two.folder / '1.log').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'auto': True, 'processes': 2}, r"automatically or they are told: auto, and {'processes': 2}"),
        ({'coordinator': 'host:1', 'process': 0}, r"come together, but only {'coordinator': 'host:1', 'process': 0}"),
        ({'coordinator': 'host:1', 'processes': 2, 'process': 2}, 'process 2 must be one of 2 processes'),
    ],
)
def test_processes_that_are_told_by_halves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        initialize(**arguments)
