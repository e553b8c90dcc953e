"""Signals that ask a run to stop."""

import signal

import pytest

from walt.training.interrupt import Interrupt


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_only_remembered_and_the_second_acts(number):
    acted = []
    before = signal.signal(number, lambda *_: acted.append(number))
    try:
        with Interrupt() as interrupt:
            assert interrupt.asks(1) is None
            signal.raise_signal(number)
            assert interrupt.asks(2) == number and not acted
            signal.raise_signal(number)
            assert acted == [number]
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
