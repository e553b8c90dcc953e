"""The loop: knows steps, metrics and checkpoints; knows no model.

The metrics of step n are read after step n + 1 was dispatched, so that an accelerator never waits for the host.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from walt.parallel.distributed import first_process
from walt.randomness import stream
from walt.training.checkpoints import Checkpoints
from walt.training.interrupt import Interrupt
from walt.training.metrics import Metrics
from walt.training.state import State

TrainStep = Callable[[State, Any, jax.Array], tuple[State, Mapping[str, jax.Array]]]
"""(state, batch, key) -> (next state, scalar metrics by name, among them `loss`)."""


def fit(
    train_step: TrainStep,
    state: State,
    batches: Callable[[int], Iterator[Any]],
    *,
    workdir: str,
    config: Mapping[str, Any],
    put_batch: Callable[[Any], Any],
    validate: Callable[[State], Mapping[str, float | np.ndarray]],
    before_save: Callable[[State], State] = lambda state: state,
) -> State:
    """Trains to `config['steps']` from the newest checkpoint in `workdir`, or from `state` if there is none.

    Args:
        batches: how many to leave out -> the rows of this process, batch after batch. A step takes one, so the step of
            a checkpoint is the position in the data too.
        config: of the run; read here: `seed`, `steps`, and in steps `log_every`, `validate_every`, `checkpoint_every`.
        put_batch: host rows -> arrays on the mesh.
        validate: state -> metrics on held-out data, and pictures, as `Metrics.write` takes them.
        before_save: measures what a checkpoint keeps beside the parameters (`State.measured`).

    Returns:
        the last state, saved.

    Raises:
        FloatingPointError: if a metric of a step is not finite, naming step and value; nothing is saved from then on.
        CheckpointError: if a checkpoint cannot be read, or at the step by which one could not be written.
        SystemExit: with code 128 + signal number, after saving, if SIGTERM or Ctrl-C asked to stop. Among several
            processes it is enough that one is asked: all save at one step and end with 143.
    """
    steps, key = config['steps'], jax.random.key(config['seed'])
    with Checkpoints(workdir, config) as checkpoints, Interrupt() as interrupt:
        state = checkpoints.restore_latest(state)
        first = int(state.step)
        rows = batches(first)
        with Metrics(workdir, first, write=first_process()) as metrics, _progress(first, steps) as bar:
            window = Window(metrics, bar, config['log_every'])
            for step in range(first + 1, steps + 1):
                last = step == steps
                checkpoints.check()
                state, values = train_step(state, put_batch(next(rows)), stream(key, 'train', step))
                window.push(step, values)
                if last or step % config['validate_every'] == 0:
                    window.flush()
                    metrics.write(step, {f'validation/{name}': value for name, value in validate(state).items()})
                stop = interrupt.asks(step)
                if last or step % config['checkpoint_every'] == 0 or stop:
                    window.flush()
                    if last or stop:
                        window.write(step)
                    state = before_save(state)
                    checkpoints.save(state)
                if stop and not last:
                    checkpoints.wait()
                    if first_process():
                        bar.write(f'{stop.name} at step {step}, which is saved; the same command goes on from there')
                    raise SystemExit(128 + stop)
    return state


class Window:
    """The metrics of the last steps: checked one by one, shown in the bar, written as means every `log_every` steps."""

    def __init__(self, metrics: Metrics, bar: tqdm, log_every: int):
        self._metrics, self._bar, self._log_every = metrics, bar, log_every
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._values: list[dict[str, float]] = []
        self._start = time.perf_counter()

    def push(self, step: int, values: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that was just dispatched, and reads those of the step before."""
        self.flush()
        self._pending = step, values

    def flush(self) -> None:
        """Reads what is pending. Raises `FloatingPointError` if its loss, or another metric, is not finite."""
        if self._pending is None:
            return
        (step, values), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        for name in ('loss', *values):
            if not math.isfinite(values[name]):
                raise FloatingPointError(f'the {name} of step {step} is {values[name]}')
        self._values.append(values)
        self._bar.set_postfix(loss=f'{values["loss"]:.4f}', refresh=False)
        self._bar.update()
        if step % self._log_every == 0:
            self.write(step)

    def write(self, step: int) -> None:
        """Writes the means of what was read since the last time, if anything was."""
        if not self._values:
            return
        names = self._values[0]
        means = {f'train/{name}': sum(row[name] for row in self._values) / len(self._values) for name in names}
        rate = len(self._values) / (time.perf_counter() - self._start)
        self._metrics.write(step, means | {'train/steps_per_second': rate})
        self._values, self._start = [], time.perf_counter()


def _progress(first: int, steps: int) -> tqdm:
    """A bar with rate, loss and time left; a line every 15 seconds where nobody watches a terminal."""
    return tqdm(
        initial=first,
        total=steps,
        desc='train',
        unit='step',
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        disable=not first_process(),
    )
