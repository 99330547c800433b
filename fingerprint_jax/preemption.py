"""SIGTERM and SIGINT: a training saves the step it is at and ends with a status that says: run me again."""

import contextlib
import signal
from collections.abc import Callable, Iterator

RUN_AGAIN = 75  # EX_TEMPFAIL of BSD's sysexits.h, "the user is invited to retry"; 1 is a mistake to mend
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):
    """The process was asked to stop, and the same command continues the run."""


def stop_at_once() -> None:
    """From here on a signal raises Preempted: between trainings all that is done is on disk."""

    def stop(number, frame):
        raise Preempted(f"{signal.Signals(number).name}: the same command continues the run")

    for number in SIGNALS:
        signal.signal(number, stop)


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
