"""Signals: marked within a training, raised outside of it."""

import os
import signal

import pytest

from fingerprint_jax import preemption


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_marked_once_and_a_second_one_stops_at_once(number):
    preemption.stop_at_once()
    with preemption.deferred() as signalled:
        assert signalled() == ""
        os.kill(os.getpid(), number)
        assert signalled() == number.name
        with pytest.raises(preemption.Preempted, match=f"{number.name}: the same command"):
            os.kill(os.getpid(), number)
    with pytest.raises(preemption.Preempted):
        os.kill(os.getpid(), number)


def test_the_handlers_before_come_back():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with preemption.deferred():
        assert [signal.getsignal(number) for number in preemption.SIGNALS] != before
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
