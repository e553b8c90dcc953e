"""Says where a run hangs: stacks of all threads when nothing has happened for long.

On a pod a hang is the usual way to fail: one host waits for data, or died, and all others wait for it in a collective,
without an error. A message costs nothing and changes nothing, so one limit does for all that may take long (compiling,
validation, saving): the stacks tell which it is, and a slow one is told of at doubling intervals, not again and again.

    silence  0 -------- 600 s ---- 1,200 s ------------- 2,400 s --->
                         |           |                      |        a message with stacks, from each process
"""

import faulthandler
import sys
import threading
import time
from typing import TextIO

import jax


class Heartbeat:
    """Within the block a thread watches that `beat` is called, and writes to stderr when it was not for `seconds`.

    Args:
        seconds: of silence before the first message; the next come after twice, four times, ... as many.
        file: where messages go, with a file descriptor of its own; by default the stderr that the process was started
            with, whatever may stand in for `sys.stderr`.

    Raises:
        ValueError: if `seconds` is not positive.
    """

    def __init__(self, seconds: float = 600.0, file: TextIO | None = None):
        if seconds <= 0:
            raise ValueError(f'seconds of a heartbeat must be positive, got {seconds}')
        self._seconds, self._file = seconds, file or sys.__stderr__
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name='heartbeat', daemon=True)

    def beat(self, step: int, doing: str = 'training') -> None:
        """`step` is finished, and what comes next is called `doing`."""
        self._last = time.monotonic(), step, doing  # one assignment, so the thread sees all of it or nothing

    def _watch(self) -> None:
        seen, limit = self._last, self._seconds
        while not self._done.wait(max(seen[0] + limit - time.monotonic(), 0)):
            if self._last is not seen:
                seen, limit = self._last, self._seconds
                continue
            since, step, doing = seen
            silence = time.monotonic() - since
            if silence < limit:
                continue
            what = f'nothing finished for {silence:.0f} s, in {doing} after step {step}'
            print(f'\n{self._process}: {what}. All threads are at:', file=self._file, flush=True)
            faulthandler.dump_traceback(self._file)
            limit *= 2

    def __enter__(self) -> 'Heartbeat':
        self._process = f'process {jax.process_index()} of {jax.process_count()}'
        self._last = time.monotonic(), 0, 'starting'
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
