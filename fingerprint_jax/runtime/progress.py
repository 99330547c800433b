"""What a command shows while it works: a bar, the lines of a log, warnings."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from fingerprint_jax.runtime import distributed, files
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.runtime.preemption import Preempted

log = logging.getLogger(__name__)

LOGGED = "FINGERPRINT_LOGGED"  # set where what a command says goes to log.txt by another way, such as srun


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
        own.handlers[0].setLevel(logging.INFO)
        own.propagate = False


@contextlib.contextmanager
def kept_log(folder: Path, ours: Callable[[], bool]) -> Generator[None]:
    """The block whose log, and the error that ends it, are added with times to `log.txt` of a folder.

    Process i > 0 has `log-i.txt`. Nothing is written before the folder is `ours`, nor where standard error is that file already.
    """
    number, own = distributed.index(), logging.getLogger("fingerprint_jax")
    path = folder / (f"log-{number}.txt" if number else "log.txt")
    if os.environ.get(LOGGED) or _on_standard_error(path):
        yield
        return
    handler = _Kept(path, ours)
    handler.setFormatter(_Printable("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    own.addHandler(handler)
    level = own.level
    own.setLevel(level if number else logging.DEBUG)  # with what a terminal shows as a bar
    try:
        yield
    except BaseException as error:  # a Preempted too; who catches it says it on standard error
        known = isinstance(error, (ValueError, OSError, FloatingPointError, MemoryError, Preempted))
        trace = None if known else (type(error), error, error.__traceback__)
        handler.handle(own.makeRecord(own.name, logging.ERROR, "", 0, "%s: %s", (type(error).__name__, error), trace))
        raise
    finally:
        own.setLevel(level)
        own.removeHandler(handler)
        handler.close()


class _Kept(logging.Handler):
    """Lines of the log to a file, those from before it may be written to included."""

    def __init__(self, path: Path, ours: Callable[[], bool]) -> None:
        super().__init__()
        self._path, self._ours = path, ours
        self._file, self._waiting, self._failed = None, list[str](), False

    def emit(self, record: logging.LogRecord) -> None:
        self._waiting.append(self.format(record) + "\n")
        self.flush()

    def flush(self) -> None:
        if self._failed:
            return
        try:
            if self._file is None and self._ours():
                self._file = files.appending(self._path)
            if self._file is not None:
                self._file.writelines(self._waiting)
                self._file.flush()
                self._waiting.clear()
        except (OSError, ValueError) as error:  # a full disk, or no file: a training does not end by its log
            self._failed = True
            log.warning("%s: no line is added any more: %s", self._path, error)

    def close(self) -> None:
        self.flush()
        with contextlib.suppress(OSError):  # of a full disk
            if self._file is not None:
                self._file.close()
        super().close()


def _on_standard_error(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(2), path.stat())
    except OSError:
        return False


@contextlib.contextmanager
def progress(what: str, total: int, units: str = "images") -> Generator[Callable[[], None]]:
    """A bar on a terminal, a line elsewhere; yields what to call after each of the units."""
    log.debug("%s %s %s", what, f"{total:,}", units)
    if not sys.stderr.isatty():
        print(f"{what} {total:,} {units}", file=sys.stderr, flush=True)
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
