"""The loop: knows steps, metrics and checkpoints; knows no model.

The metrics of step n are read after step n + 1 was dispatched, so that an accelerator never waits for the host.
"""

import functools
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
from walt.training.guard import Guard, what_was_bad
from walt.training.heartbeat import Heartbeat
from walt.training.interrupt import Interrupt
from walt.training.metrics import Metrics, means
from walt.training.profile import Profile
from walt.training.state import State

TrainStep = Callable[[State, Any, jax.Array], tuple[State, Mapping[str, jax.Array]]]
"""(state, batch, key) -> what `guard.keep_finite` returns: the next state, and metrics by name, among them `loss`."""


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
    profile: range = range(0),
) -> State:
    """Trains to `config['steps']` from the newest checkpoint in `workdir`, or from `state` if there is none.

    Args:
        batches: how many to leave out -> the rows of this process, batch after batch. A step takes one, so the step of
            a checkpoint is the position in the data too.
        config: of the run; read here: `seed`, `steps`, `non_finite` (a policy of `Guard`), and in steps `log_every`,
            `validate_every`, `checkpoint_every`.
        put_batch: host rows -> arrays on the mesh.
        validate: state -> metrics on held-out data, and pictures, as `Metrics.write` takes them.
        before_save: measures what a checkpoint keeps beside the parameters (`State.measured`).
        profile: the steps to trace.

    Returns:
        the last state, saved.

    Raises:
        FloatingPointError: if loss or gradient of a step is not finite, naming step, value and tensor, and `non_finite`
            is 'stop' or too many steps are; nothing is saved from then on.
        CheckpointError: if a checkpoint cannot be read, or at the step by which one could not be written.
        SystemExit: with code 128 + signal number, after saving, if SIGTERM or Ctrl-C asked to stop. Among several
            processes it is enough that one is asked: all save at one step and end with 143.
    """
    steps, key = config['steps'], jax.random.key(config['seed'])
    guard = Guard(config['non_finite'])
    with Checkpoints(workdir, config) as checkpoints, Interrupt() as interrupt:
        state = checkpoints.restore_latest(state)
        first = int(state.step)
        rows = batches(first)
        with (
            Metrics(workdir, first, write=first_process()) as metrics,
            _progress(first, steps) as bar,
            Profile(workdir, profile) as profiler,
            Heartbeat() as heartbeat,
        ):
            window = Window(metrics, bar, config['log_every'], state.params)

            def settled(state: State, done: int, next_up: str = 'training') -> State:
                """What to go on from, once the pending step is read; `done` steps are, and `next_up` comes now."""
                bad = window.flush()
                heartbeat.beat(done, next_up)
                if bad is None:
                    return state
                bar.write(bad)
                return guard.after_bad(bad, state, checkpoints.restore_latest)

            def advance(state: State, step: int):
                return train_step(state, put_batch(next(rows)), stream(key, 'train', step))

            heartbeat.beat(first, 'the first step, which compiles')
            for step in range(first + 1, steps + 1):
                last = step == steps
                checkpoints.check()
                state, values = profiler.traced(step, functools.partial(advance, state, step))
                state = settled(state, step - 1)
                window.push(step, values)
                if last or step % config['validate_every'] == 0:
                    state = settled(state, step, 'validation')
                    metrics.write(step, {f'validation/{name}': value for name, value in validate(state).items()})
                stop = interrupt.asks(step)
                if last or step % config['checkpoint_every'] == 0 or stop:
                    state = settled(state, step, 'saving')
                    if last or stop:
                        window.write(step)
                    state = before_save(state)
                    checkpoints.save(state)
                    guard.saved()
                if stop and not last:
                    checkpoints.wait()
                    if first_process():
                        bar.write(f'{stop.name} at step {step}, which is saved; the same command goes on from there')
                    raise SystemExit(128 + stop)
    return state


class Window:
    """The metrics of the last steps: checked one by one, shown in the bar, written as means every `log_every` steps.

    Of `params` only names and shapes are read.
    """

    def __init__(self, metrics: Metrics, bar: tqdm, log_every: int, params: Any):
        self._metrics, self._bar, self._log_every = metrics, bar, log_every
        self._params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._values: list[dict[str, np.ndarray]] = []
        self._start = time.perf_counter()

    def push(self, step: int, values: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that was just dispatched, when those of the step before were read."""
        assert self._pending is None
        self._pending = step, values

    def flush(self) -> str | None:
        """Reads what is pending, if anything is. Returns what was not finite in a bad step, which it leaves out."""
        if self._pending is None:
            return None
        (step, values), self._pending = self._pending, None
        values = jax.device_get(dict(values))
        self._bar.update()
        bad = what_was_bad(step, values, self._params) if values['bad'] else None
        if bad is None:
            self._values.append({name: value for name, value in values.items() if not name.startswith('bad')})
            self._bar.set_postfix(loss=f'{values["loss"]:.4f}', refresh=False)
        if step % self._log_every == 0:
            self.write(step)
        return bad

    def write(self, step: int) -> None:
        """Writes the means of what was read since the last time, if anything was."""
        if not self._values:
            return
        rate = len(self._values) / (time.perf_counter() - self._start)
        found = {f'train/{name}': value for name, value in means(self._values).items()}
        self._metrics.write(step, found | {'train/steps_per_second': rate})
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
