"""What a command shows while it works: a bar, the lines of a log, warnings."""

import contextlib
import logging
import sys
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import Progress

from fingerprint_jax.runtime.names import printable


class _Printable(logging.Formatter):
    """A line of the log, whatever the names in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Of one line or several."""
        return "\n".join(map(printable, super().format(record).splitlines()))


def show_log() -> None:
    """Lines of this package on standard error, as they are; of other libraries only warnings."""
    logging.getLogger().setLevel(logging.WARNING)
    # Of a save that fails Orbax logs pages, and its threads call into loops that it has closed; `checkpoint` says it in one line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Files that a full disk has cut short are flushed once more as they go, and Python 3.13 tells of it.
    said = ("loop is closed", "No space left on device")
    sys.unraisablehook = lambda args: None if any(text in str(args.exc_value) for text in said) else sys.__unraisablehook__(args)
    own = logging.getLogger("fingerprint_jax")
    own.setLevel(logging.INFO)
    if not own.handlers:
        own.addHandler(logging.StreamHandler())
        own.handlers[0].setFormatter(_Printable())
        own.propagate = False


@contextlib.contextmanager
def progress(what: str, total: int, units: str = "images") -> Generator[Callable[[], None]]:
    """A bar on a terminal, a line elsewhere; yields what to call after each of the units."""
    if not sys.stderr.isatty():
        print(f"{what} {total:,} {units}", file=sys.stderr, flush=True)
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
