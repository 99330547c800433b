"""Signals: marked within a training, raised outside of it."""

import os
import signal
import sys
import time

import pytest

from fingerprint_jax.runtime import preemption


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_marked_once_and_a_second_one_stops_at_once(number):
    preemption.stop_at_once()
    with pytest.raises(preemption.Preempted, match=f"{number.name}: the same command"), preemption.deferred() as signalled:
        assert signalled() == ""
        os.kill(os.getpid(), number)
        assert signalled() == number.name
        os.kill(os.getpid(), number)
        raise AssertionError("nothing stopped")
    with pytest.raises(preemption.Preempted):
        os.kill(os.getpid(), number)


class _Gone:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # where the handler runs, and Python drops what it raises


@pytest.mark.parametrize("within_training", [False, True])
def test_a_signal_that_comes_while_an_object_is_removed_is_not_lost(within_training):
    preemption.stop_at_once()
    thing = _Gone()
    del thing
    with pytest.raises(preemption.Preempted, match="SIGINT: the same command"):
        if within_training:
            with preemption.deferred() as signalled:
                time.sleep(0.2)
                assert signalled() == "SIGINT"
        else:
            time.sleep(5)


def test_what_else_is_dropped_is_shown_as_before():
    shown = []
    sys.unraisablehook = lambda unraisable: shown.append(unraisable.exc_value)
    preemption.stop_at_once()

    class Wrong:
        def __del__(self):
            raise KeyError("something else")

    thing = Wrong()
    del thing
    assert [type(error) for error in shown] == [KeyError]


def test_a_signal_that_came_too_late_for_the_block_acts_after_it():
    preemption.stop_at_once()
    with pytest.raises(preemption.Preempted, match="^SIGUSR1: the same command continues the run$"):
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(preemption.Preempted, match="^saved$"):  # the block made use of it
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise preemption.Preempted("saved")


def test_the_handlers_before_come_back():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with preemption.deferred():
        assert [signal.getsignal(number) for number in preemption.SIGNALS] != before
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
