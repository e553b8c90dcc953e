"""Signals that ask a run to stop."""

import signal

import pytest
from jax.experimental import multihost_utils

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


def test_among_several_processes_ctrl_c_becomes_the_sigterm_that_jax_watches_for(monkeypatch):
    monkeypatch.setattr('jax.process_count', lambda: 2)
    told, agreed = [], iter([False, True])
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', lambda step: next(agreed))
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(signal.SIGTERM))
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert told == [signal.SIGTERM]
            assert interrupt.asks(1) is None and interrupt.asks(2) == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
