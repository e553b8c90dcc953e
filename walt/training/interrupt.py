"""SIGTERM and Ctrl-C ask a run to stop; it saves, and the same command goes on from there.

One process remembers the signal until the loop looks. Among several processes, of which perhaps only one is told, JAX's
preemption service spreads the word: it watches for SIGTERM itself, and when it was sent to any process, names to all of
them one step that none of them has begun yet. Until then a look costs a read of local memory; no process and no device
waits for another.
"""

import signal

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Within the block a first signal only asks; a second one acts as it would without us.

    Among several processes SIGTERM is JAX's, and asking twice by it is asking once.
    """

    def __init__(self):
        self._signal: signal.Signals | None = None
        self._together = jax.process_count() > 1
        self._watched = (signal.SIGINT,) if self._together else (signal.SIGTERM, signal.SIGINT)

    def asks(self, step: int) -> signal.Signals | None:
        """The signal that asks to stop after `step`, the same in all processes; to be called once in every step."""
        if not self._together:
            return self._signal
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    def __enter__(self) -> 'Interrupt':
        self._before = {number: signal.signal(number, self._ask) for number in self._watched}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        self._signal = signal.Signals(number)
        signal.signal(number, self._before[number])
        if self._together:
            signal.raise_signal(signal.SIGTERM)
