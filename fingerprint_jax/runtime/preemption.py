"""SIGTERM, SIGINT and SIGUSR1: a training saves the step it is at and ends with a status that says: run me again."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Never

RUN_AGAIN = 75  # EX_TEMPFAIL of BSD's sysexits.h, "the user is invited to retry"; 1 is a mistake to mend
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is what `sbatch --signal=USR1@60` sends before the end

_stall = 0.0  # seconds


class Preempted(BaseException):
    """The process was asked to stop, and the same command continues the run.

    No Exception, as KeyboardInterrupt is none: it can come out of any line, and a library that catches Exception is to let it by.
    """


def stop_at_once() -> None:
    """From here on a signal raises Preempted: between trainings all that is done is on disk."""
    show = sys.unraisablehook
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> Never:
        came.append(number)
        raise Preempted(f"{signal.Signals(number).name}: the same command continues the run")

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, Preempted):
            threading.Timer(0.01, os.kill, (os.getpid(), came[-1])).start()
        else:
            show(unraisable)

    for number in SIGNALS:
        signal.signal(number, stop)
    # Python drops what is raised within a __del__ or a callback of the garbage collector (JAX has one): the signal is sent anew.
    sys.unraisablehook = again


def watch_steps(seconds: float) -> None:
    """From here on a step of a training that takes longer than this shows the stacks of all threads; 0: none does."""
    global _stall
    _stall = seconds


def step_begins() -> None:
    """The step before is not stalled; called within `deferred`."""
    if _stall:
        faulthandler.dump_traceback_later(_stall, file=2)  # of the process: what stands for sys.stderr may be no file


@contextlib.contextmanager
def deferred() -> Generator[Callable[[], str]]:
    """Within the block the first signal only sets a mark, a second one acts as before; yields name of the signal or ''.

    A signal that was of no use to the block, which ends without an error, acts as before after it.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    seen: list[str] = []

    def mark(number: int, frame: FrameType | None) -> None:
        seen.append(signal.Signals(number).name)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in SIGNALS:
        signal.signal(number, mark)
    try:
        yield lambda: seen[0] if seen else ""
    finally:
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        signal.raise_signal(getattr(signal, seen[0]))
