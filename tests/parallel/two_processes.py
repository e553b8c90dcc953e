"""One of two processes of four devices each, of which `test_two_processes.py` starts both.

    two_processes.py PORT PROCESS FOLDER TASK...

Trains as the programs do: a denoiser on FOLDER/tokenizer, and that before it if it is a TASK too. Writes what
the test looks at to FOLDER/PROCESS.json.
"""

import gc
import itertools
import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from tiny import binary, denoiser_config, tokenizer_config

from walt.parallel.distributed import fetch, initialize
from walt.parallel.mesh import AXES, make_mesh
from walt.parallel.rules import replicated
from walt.parallel.shard import process_rows, put_batch
from walt.training.feed import process_batches
from walt.training.guard import keep_finite
from walt.training.loop import fit
from walt.training.state import State

MESH = {'data': 2, 'fsdp': 2, 'tensor': 2}


def samples(order, data: int, tensor: int) -> dict:
    """What three steps are given on a mesh of the devices in this order, and which rows this process reads."""
    shape = [{'data': data, 'tensor': tensor}.get(axis, 1) for axis in AXES]
    mesh = Mesh(np.array(jax.devices())[order].reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    numbers = [{'n': n} for n in np.arange(20)]
    feed = itertools.islice(process_batches(numbers, mesh, 8, keys=('n',), seed=3), 3)
    return {'read': process_rows(mesh, 8), 'given': [fetch(put_batch(mesh, batch))['n'].tolist() for batch in feed]}


def count_until_stopped(workdir: Path, told: bool) -> int:
    """Training that counts its steps, ended by SIGTERM, of which one process is told in its third; the exit code."""
    mesh = make_mesh(**MESH)
    count = {'count': jnp.zeros(())}
    state = jax.device_put(State(jnp.zeros((), jnp.int32), count, (), count), replicated(mesh))

    @jax.jit
    def step(state, batch, key):
        count = {'count': state.params['count'] + 1}
        new = state.replace(step=state.step + 1, params=count, ema=count)
        return keep_finite(state, new, {'loss': batch['n'].mean()}, count)

    def put(rows):
        if told and next(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return put_batch(mesh, rows)

    steps, rows = itertools.count(1), [{'n': n} for n in np.arange(16, dtype=np.float32)]
    config = {'seed': 0, 'steps': 10**6, 'non_finite': 'stop', 'log_every': 1}
    try:
        fit(
            step,
            state,
            lambda start: iter(process_batches(rows, mesh, 8, keys=('n',), seed=0, start=start)),
            workdir=str(workdir),
            config=config | {'validate_every': 10**6, 'checkpoint_every': 10**6},
            put_batch=put,
            validate=lambda state: {},
        )
    except SystemExit as stop:
        return stop.code
    return 0


def main(port: str, process: int, folder: Path, tasks: list[str]) -> None:
    gc.disable()  # it takes a tenth of the time of tracing
    initialize(coordinator=f'127.0.0.1:{port}', processes=2, process=process)
    result = {
        'straight': samples(range(8), 8, 1),
        'crossed': samples([0, 4, 1, 5, 2, 6, 3, 7], 8, 1),
        'shared': samples(range(8), 1, 8),
    }
    if 'tokenizer' in tasks:
        binary('train_tokenizer').train(tokenizer_config() | {'mesh': MESH}, str(folder / 'tokenizer'))
    config = denoiser_config() | {'mesh': MESH, 'tokenizer_dir': str(folder / 'tokenizer')}
    state = binary('train_denoiser').train(config, str(folder / 'denoiser'))
    result['whole here'] = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state.params))
    result['code'] = count_until_stopped(folder / 'stopped', told=process == 1)
    (folder / f'{process}.json').write_text(json.dumps(result))


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
