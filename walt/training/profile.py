"""Traces of a few steps, for TensorBoard's profiler or Perfetto: `--profile=START:STOP`.

    step    START - 1 | START | ... | STOP - 1 | STOP
    trace             |========================|          -> workdir/profile, by process 0

A step of the trace reaches from asking for its batch to the end of its dispatch; the trace waits for the device after
the last one, so that it holds the work of all of them. The first step of a run compiles: START is better later.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
from tqdm import tqdm

T = TypeVar('T')


def parse_steps(text: str) -> range:
    """'START:STOP' -> the steps START to STOP - 1, as the loop counts them, from 1; '' -> none.

    Raises:
        ValueError: where the text is anything else, or there is no step between the two.
    """
    if not text:
        return range(0)
    if not re.fullmatch(r'\d+:\d+', text):
        raise ValueError(f"profile is START:STOP, two step numbers, not '{text}'")
    start, stop = map(int, text.split(':'))
    if not 1 <= start < stop:
        raise ValueError(f'profile is START:STOP with 1 <= START < STOP, got START {start} and STOP {stop}')
    return range(start, stop)


class Profile:
    """Within the block, `traced` runs steps, and traces those of `steps` into `workdir/profile`.

    A run that goes on from a step in their midst traces the rest; one that ends there, by an error too, keeps what it
    has; one that comes to none of them says so at its end. What is computed is the same with and without.
    """

    def __init__(self, workdir: str | Path, steps: range):
        self._folder = Path(workdir) / 'profile'
        self._steps = steps if jax.process_index() == 0 else range(0)
        self._tracing = self._traced = False
        self._first: int | None = None
        self._last: int | None = None

    def traced(self, step: int, run: Callable[[], T]) -> T:
        """run(), the whole of a step; returns what it does."""
        self._first, self._last = self._first or step, step
        if step not in self._steps:
            return run()
        if not self._traced:
            jax.profiler.start_trace(self._folder)
            self._tracing = self._traced = True
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
            result = run()
        if step == self._steps[-1]:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, *_) -> None:
        if self._tracing:
            self._stop()
        elif self._steps and not self._traced:
            made = f'made steps {self._first} to {self._last}' if self._first else 'made none'
            asked = f'{self._steps[0]} to {self._steps[-1]}'
            tqdm.write(f'no profile: asked for steps {asked}, and this run {made}', file=sys.stderr)
