"""One of two processes of four devices each; `test_two_processes.py` starts both: two_processes.py PORT PROCESS FOLDER.

Trains as the programs do, and writes what the test looks at to FOLDER/PROCESS.json.
"""

import itertools
import json
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from tiny import binary, denoiser_config, tokenizer_config

from walt.parallel.distributed import fetch, initialize
from walt.parallel.mesh import AXES
from walt.parallel.shard import process_rows, put_batch
from walt.training.feed import process_batches

MESH = {'data': 2, 'fsdp': 2, 'tensor': 2}


def samples(order, data: int, tensor: int) -> dict:
    """What three steps are given on a mesh of the devices in this order, and which rows this process reads."""
    shape = [{'data': data, 'tensor': tensor}.get(axis, 1) for axis in AXES]
    mesh = Mesh(np.array(jax.devices())[order].reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    numbers = [{'n': n} for n in np.arange(20)]
    feed = itertools.islice(process_batches(numbers, mesh, 8, keys=('n',), seed=3), 3)
    return {'read': process_rows(mesh, 8), 'given': [fetch(put_batch(mesh, batch))['n'].tolist() for batch in feed]}


def train_until_stopped(program, config, workdir: str, told: bool) -> int:
    """Ends by SIGTERM, of which one process is told in its third step; returns the exit code."""
    fit = program.fit

    def told_fit(train_step, *args, put_batch, **rest):
        steps = itertools.count(1)

        def put(rows):
            if told and next(steps) == 3:
                signal.raise_signal(signal.SIGTERM)
            return put_batch(rows)

        return fit(train_step, *args, put_batch=put, **rest)

    program.fit = told_fit
    try:
        program.train(config | {'steps': 10**6, 'checkpoint_every': 10**6, 'validate_every': 10**6}, workdir)
    except SystemExit as stop:
        return stop.code
    finally:
        program.fit = fit
    return 0


def main(port: str, process: int, folder: Path) -> None:
    initialize(coordinator=f'127.0.0.1:{port}', processes=2, process=process)
    result = {
        'straight': samples(range(8), 8, 1),
        'crossed': samples([0, 4, 1, 5, 2, 6, 3, 7], 8, 1),
        'shared': samples(range(8), 1, 8),
    }
    tokenizer, denoiser = binary('train_tokenizer'), binary('train_denoiser')
    tokenizer_dir = {'tokenizer_dir': str(folder / 'tokenizer')}
    state = tokenizer.train(tokenizer_config() | {'mesh': MESH}, str(folder / 'tokenizer'))
    denoiser.train(denoiser_config() | {'mesh': MESH} | tokenizer_dir, str(folder / 'denoiser'))
    result['whole here'] = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state.params))
    result['code'] = train_until_stopped(
        tokenizer, tokenizer_config() | {'mesh': MESH}, str(folder / 'stopped'), told=process == 1
    )
    (folder / f'{process}.json').write_text(json.dumps(result))


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
