"""SIGTERM and Ctrl-C ask a run to stop; it saves, and the same command goes on from there."""

import signal


class Interrupt:
    """Within the block a first signal only sets `signal`; a second one acts as it would without us."""

    def __init__(self):
        self.signal: signal.Signals | None = None

    def __enter__(self) -> 'Interrupt':
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, self._before[number])
