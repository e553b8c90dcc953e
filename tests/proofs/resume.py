"""A run that is killed again and again ends as one that was left alone.

python tests/proofs/resume.py [--kills=20] [--seed=0] [--out=DIR]

Trains a tokenizer and a denoiser three times each, by their real programs: unbroken; killed by SIGKILL and started
again, on the same devices; and killed and started again on other devices and in other processes every time. The moments
of the kills are drawn from `--seed`: one in five at any time before training begins, two in five in training, two in
five while a save is under way. Compares parameters, averages and optimizer to the last bit in the second case, by the
norm of their differences in the third; in both, the samples of all steps, row by row.

Prints a table, writes it to DIR/resume.json, and fails where the two do not agree.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

TOLERANCE = 1e-6
"""Of the norm of the difference of all parameters, relative to their norm.

Not of every array alone: Adam divides each gradient by its own size, so the roundings of a gradient that nearly cancels
out, as that of a small bias, are as large a part of its updates. The array that differs most is in the table.
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Processes with so many devices each, and the mesh over all of them."""

    processes: int
    devices: int
    mesh: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f'{self.processes}x{self.devices}' + ''.join(f' {axis} {size}' for axis, size in self.mesh)


ALL_AXES = (('data', 2), ('fsdp', 2), ('tensor', 2))
ALONE = Topology(1, 1)
CHANGING = (Topology(1, 8), Topology(2, 4), ALONE, Topology(2, 4, ALL_AXES), Topology(1, 8, ALL_AXES))


class Life:
    """The processes of one start of a training program."""

    def __init__(self, task: str, workdir: Path, topology: Topology, flags: Sequence[str]):
        self.workdir, self.born, self.before = workdir, time.time(), len(_lines(workdir))
        workdir.mkdir(parents=True, exist_ok=True)
        self.log = (workdir.parent / f'{workdir.name}.log').open('a')
        environment = os.environ | {
            'JAX_PLATFORMS': 'cpu',
            'JAX_NUM_CPU_DEVICES': str(topology.devices),
            'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
        }
        command = [sys.executable, HERE / 'train.py', task, f'--config={HERE}/digits.py:{task}', f'--workdir={workdir}']
        command += [*flags, *(f'--config.mesh.{axis}={size}' for axis, size in topology.mesh)]
        self.processes = [
            subprocess.Popen(
                [*command, *distributed], env=environment, cwd=ROOT, stdout=self.log, stderr=subprocess.STDOUT
            )
            for distributed in _distributed(topology.processes)
        ]

    def alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def wait(self) -> None:
        """Raises `RuntimeError` if a process fails."""
        codes = [process.wait(timeout=600) for process in self.processes]
        if any(codes):
            raise RuntimeError(f'processes ended with {codes}; see {self.log.name}')

    def kill(self, rng: random.Random) -> None:
        """One after another, in any order."""
        for process in rng.sample(self.processes, len(self.processes)):
            process.send_signal(signal.SIGKILL)
            time.sleep(rng.choice((0, 0.2)))
        for process in self.processes:
            process.wait()

    def saving(self) -> bool:
        """Whether there is an unfinished checkpoint of this life."""
        unfinished = (self.workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp')
        with contextlib.suppress(FileNotFoundError):  # it is finished by now
            return any(path.stat().st_mtime > self.born for path in unfinished)
        return False

    def step(self) -> int:
        """The step that was begun last; 0 before the first of this life."""
        lines = _lines(self.workdir)[self.before :]
        return json.loads(lines[-1])['step'] if lines else 0


def _lines(workdir: Path) -> list[str]:
    """What the lives in a workdir wrote of their samples; a line that a kill cut short is none."""
    path = workdir / 'samples.jsonl'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.startswith('{') and line.endswith('}\n')]


def _distributed(processes: int) -> list[list[str]]:
    if processes == 1:
        return [[]]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = [f'--coordinator=127.0.0.1:{port}', f'--processes={processes}']
    return [[*shared, f'--process={number}'] for number in range(processes)]


def kill_somewhere(life: Life, how: str, target: int, rng: random.Random) -> tuple[bool, bool]:
    """Kills a run at its start, or after it began step `target`. Returns (whether it was alive, and within a save)."""
    if how == 'start':
        time.sleep(rng.uniform(0, 6))
    else:
        while life.alive() and not (life.step() >= target and (how == 'step' or life.saving())):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3 if how == 'step' else 0.03))
    alive = life.alive()
    life.kill(rng)
    return alive, life.saving()


def broken_run(
    task: str, workdir: Path, topologies: Iterator[Topology], kills: int, steps: int, flags: Sequence[str], seed: int
) -> dict:
    """A run with `kills` kills in it, the steps at which they come spread over its length."""
    rng, counts = random.Random(f'{task} {workdir.name} {seed}'), {'kills': 0, 'inside a save': 0, 'topologies': []}
    hows = ['start', 'step', 'step', 'save', 'save']
    targets = sorted(rng.randint(1, steps - 1) for _ in range(kills))
    while counts['kills'] < kills:
        how, topology = hows[counts['kills'] % len(hows)], next(topologies)
        life = Life(task, workdir, topology, flags)
        alive, saving = kill_somewhere(life, how, targets[counts['kills']], rng)
        if not alive:
            raise RuntimeError(f'a run ended before it was killed; see {life.log.name}')
        counts['kills'] += 1
        counts['inside a save'] += saving
        counts['topologies'].append(str(topology))
        there = sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit())
        inside = ', inside a save' * saving
        print(f'  kill {counts["kills"]:2} of {topology}, step {life.step()}{inside}; complete: {there}', flush=True)
    life = Life(task, workdir, next(topologies), flags)
    life.wait()
    return counts


def samples(workdir: Path) -> dict[int, list[int]]:
    """Step -> the numbers of its clips. Raises `AssertionError` if a step that was taken twice had other rows then."""
    found = {}
    for row in map(json.loads, _lines(workdir)):
        assert found.setdefault(row['step'], row['rows']) == row['rows'], f'step {row["step"]} had other samples'
    return found


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, by their place in it."""
    arrays, reader = {}, ocp.PyTreeCheckpointer()
    for item in ('state', 'ema'):
        folder = workdir / 'checkpoints' / str(step) / item
        tree = reader.metadata(folder).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        for path, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(folder, restore_args=how)):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def compare(workdir: Path, unbroken: Path, steps: int) -> dict:
    """How the last checkpoints and the samples of two runs differ."""
    ours, theirs = saved(workdir, steps), saved(unbroken, steps)
    assert list(ours) == list(theirs)
    floats = [name for name, array in theirs.items() if array.dtype.kind == 'f']
    norms = {name: np.linalg.norm(theirs[name]) for name in floats}
    differences = {name: np.linalg.norm(ours[name].astype(np.float64) - theirs[name]) for name in floats}
    relative = {name: float(differences[name] / norms[name]) if norms[name] else 0.0 for name in floats}
    worst = max(relative, key=relative.get)
    of_params = [name for name in floats if name.startswith("state['params']")]
    total, change = (np.linalg.norm([values[name] for name in of_params]) for values in (norms, differences))
    return {
        'bitwise equal': all(ours[name].tobytes() == theirs[name].tobytes() for name in ours),
        'all parameters': float(change / total),
        'worst array': [worst, relative[worst]],
        'worst parameter': max(relative[name] for name in of_params),
        'same samples': samples(workdir) == samples(unbroken),
        'steps': len(samples(unbroken)),
    }


def prove(task: str, out: Path, kills: int, steps: int, seed: int, flags: Sequence[str] = ()) -> dict:
    """The three runs of a task, and how they compare."""
    flags = [*flags, f'--config.steps={steps}']
    Life(task, out / f'{task}_unbroken', ALONE, flags).wait()
    result = {}
    for name, topologies in {'same': (ALONE,), 'changing': CHANGING}.items():
        print(f'{task}, {name} topology, seed {seed}', flush=True)
        workdir, start = out / f'{task}_{name}', time.monotonic()
        endless = (topologies[n % len(topologies)] for n in range(10**9))
        result[name] = broken_run(task, workdir, endless, kills, steps, flags, seed)
        result[name] |= compare(workdir, out / f'{task}_unbroken', steps)
        result[name]['seconds'] = round(time.monotonic() - start)
        print(json.dumps(result[name], indent=2), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20, help='of each of the four broken runs')
    parser.add_argument('--steps', type=int, default=40, help='of each run')
    parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
    parser.add_argument('--out', type=Path, help='folder to keep the runs in; by default they are removed')
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    out = arguments.out or Path(tempfile.mkdtemp())
    options = (out, arguments.kills, arguments.steps, arguments.seed)
    results = {'tokenizer': prove('tokenizer', *options)}
    results['denoiser'] = prove('denoiser', *options, [f'--config.tokenizer_dir={out}/tokenizer_unbroken'])
    (out / 'resume.json').write_text(json.dumps(results, indent=2) + '\n')
    if not arguments.out:
        shutil.rmtree(out)
    same, changing = ([result[name] for result in results.values()] for name in ('same', 'changing'))
    assert all(row['same samples'] for row in same + changing)
    assert all(row['bitwise equal'] for row in same)
    assert all(row['all parameters'] < TOLERANCE for row in changing)


if __name__ == '__main__':
    main()
