"""Metrics to JSON lines and TensorBoard, pictures to the latter; progress to a bar on a terminal, to plain lines elsewhere."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import image, scalar

from fingerprint_jax.runtime import distributed, files
from fingerprint_jax.training.trackers import Tracker

log = logging.getLogger(__name__)


class Writer:
    """`metrics.jsonl`, `tensorboard/`, the trackers and the progress of one training, by process 0."""

    @distributed.by_first
    def __init__(self, workdir: Path, name: str, start: int, stop: int, tracker: Tracker) -> None:
        keep_lines(workdir / "metrics.jsonl", start)
        self._file = files.appending(workdir / "metrics.jsonl")
        # Not SummaryWriter: it writes from a thread, where a full disk ends in a traceback, and holds semaphores that a kill leaks.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        files.refuse_links(workdir / "tensorboard")  # the name of the file that is written there can be guessed
        self._board, self._flushed = EventsWriter(str(workdir / "tensorboard" / "events")), time.perf_counter()
        self._board.write_event(Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START)))
        self._name, self._stop, self._begin, self._start = name, stop, time.perf_counter(), start
        self._tracker = tracker
        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(name, total=stop, completed=start, text="")

    @distributed.by_first
    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics."""
        with self._named():
            self._file.write(line(step, values))
            self._file.flush()
            self._show(step, [scalar(key, value) for key, value in values.items()])
        self._tracker.metrics(step, values)

    @distributed.by_first
    def pictures(self, step: int, values: dict[str, np.ndarray]) -> None:
        """The images uint8 [N,H,W,1] of each name side by side, as one picture to TensorBoard alone."""
        with self._named():
            self._show(step, [image(key, np.concatenate(list(row), axis=1), dataformats="HWC") for key, row in values.items()])

    def _show(self, step: int, summaries: list) -> None:
        for summary in summaries:
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.perf_counter() - self._flushed > 10:
            self._board.flush()
            self._flushed = time.perf_counter()

    @contextlib.contextmanager
    def _named(self) -> Generator[None]:
        try:
            yield
        except OSError as error:  # Python does not say which file
            raise OSError(f"{self._file.name} or tensorboard/ beside it cannot be written: {error.strerror}") from error

    @distributed.by_first
    def progress(self, step: int, values: dict[str, float]) -> None:
        """Shows a step with its loss, images/s and share of time waiting for input."""
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        seconds = time.perf_counter() - self._begin
        left = seconds / max(step - self._start, 1) * (self._stop - step)
        level = logging.INFO if self._bar is None else logging.DEBUG  # which the log of the run has, and the terminal not
        log.log(level, "%s  step %d/%d  %s  eta %.0f s", self._name, step, self._stop, text, left)

    @distributed.by_first
    def close(self, finished: bool) -> None:
        """Ends the bar and the trackers, and flushes the files."""
        if self._bar is not None:
            self._bar.stop()
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):  # of a full disk, which `write` or the checkpoint has told of
                file.close()
        self._tracker.end(finished)


def line(step: int, values: Mapping[str, float]) -> str:
    """One line of metrics.jsonl, with the time: seconds since the epoch, of 3 decimals."""
    return json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n"


def keep_lines(path: Path, last: float = math.inf) -> int:
    """Drops the lines of steps past `last`, and one that a kill has cut short; the step of the last line kept, -1 for none."""
    if not path.exists():
        return -1
    lines = [each for each in files.read_text(path).splitlines(True) if _step(each) <= last]
    with files.replacing(path) as temporary:
        temporary.write_text("".join(lines))
    return int(_step(lines[-1])) if lines else -1


def _step(line: str) -> float:
    try:
        found = json.loads(line)["step"] if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, int) else math.nan  # which is not before any step
