"""SIGTERM and SIGINT: a training saves the step it is at and ends with a status that says: run me again."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

RUN_AGAIN = 75  # EX_TEMPFAIL of BSD's sysexits.h, "the user is invited to retry"; 1 is a mistake to mend
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(BaseException):
    """The process was asked to stop, and the same command continues the run.

    No Exception, as KeyboardInterrupt is none: it can come out of any line, and a library that catches Exception is to let it by.
    """


def stop_at_once() -> None:
    """From here on a signal raises Preempted: between trainings all that is done is on disk."""
    show = sys.unraisablehook
    came: list[int] = []

    def stop(number, frame):
        came.append(number)
        raise Preempted(f"{signal.Signals(number).name}: the same command continues the run")

    def again(unraisable):
        if isinstance(unraisable.exc_value, Preempted):
            threading.Timer(0.01, os.kill, (os.getpid(), came[-1])).start()
        else:
            show(unraisable)

    for number in SIGNALS:
        signal.signal(number, stop)
    # Python drops what is raised within a __del__ or a callback of the garbage collector (JAX has one): the signal is sent anew.
    sys.unraisablehook = again


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], str]]:
    """Within the block the first signal only sets a mark, a second one acts as before; yields name of the signal or ''."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    seen: list[str] = []

    def mark(number, frame):
        seen.append(signal.Signals(number).name)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in SIGNALS:
        signal.signal(number, mark)
    try:
        yield lambda: seen[0] if seen else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
