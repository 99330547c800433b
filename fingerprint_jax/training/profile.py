"""What a step of a training takes: a trace of a few steps and one page of figures, where `main --profile` asks for them."""

import logging
import statistics
import time
from pathlib import Path

import jax

from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files, targets
from fingerprint_jax.training import cost

log = logging.getLogger(__name__)

# Dispatches after the one that compiles: first some are timed, then some traced, which makes them slower.
TIMED, TRACED = 20, 5


class Profiler:
    """Looks on at the dispatches of a training, which it neither waits for nor changes; does nothing where none was asked for.

    Args:
        run: the run that is trained; `profile` of it says whether one is asked for.
        dispatches: how many there will be.
    """

    def __init__(self, run: Run, dispatches: int) -> None:
        self._folder: Path | None = None
        if run.profile and not run.profile.begun:
            run.profile.begun = True
            self._folder = None if jax.process_index() else run.profile.folder
        self._run, self._tracing, self._count = run, False, 0
        self._traced = min(TRACED, max(1, (dispatches - 1) // 4))
        self._timed = max(min(TIMED, dispatches - 1 - self._traced), 1)
        for folder in (self._folder, *self._folder.rglob("*")) if self._folder else ():
            files.refuse_links(folder)  # a trace would go where one leads
        self._compile = self._wait = 0.0
        self._last: float | None = None
        self._times: list[tuple[float, float]] = []  # seconds of a dispatch, and those of it that were spent waiting for input

    def dispatched(self, waited: float, seconds: float) -> bool:
        """Called after each dispatch with the seconds that its batch and the call took; True where this took time itself."""
        if self._folder is None:
            return False
        self._count, self._wait = self._count + 1, waited
        if self._count == 1:
            self._compile = seconds
        elif self._count == 1 + self._timed:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._count == 1 + self._timed + self._traced:
            self.finish()
        else:
            return False
        return True

    def read(self, between: bool = False) -> None:
        """Called when a dispatch is known to be done, `between` where something else than training follows it."""
        now = time.perf_counter()
        if self._folder is not None and self._last is not None and not self._tracing:
            self._times.append((now - self._last, self._wait))
        self._last, self._wait = None if between else now, 0.0

    def close(self) -> None:
        """Ends the trace."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def finish(self) -> None:
        """Ends the trace and writes the page, once."""
        self.close()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_text(folder / "summary.md", self._page())
            log.info("profile: %s", folder / "summary.md")

    def _page(self) -> str:
        steps, devices = self._run.config.steps_per_dispatch, jax.device_count()
        kind = jax.devices()[0].device_kind
        flops, top = cost.flops(self._run), targets.peak(kind)
        rows = [
            ("devices", f"{devices} x {kind}"),
            ("images a step", f"{sum(self._run.config.data.streams.values()):,}"),
            ("steps a dispatch", f"{steps}"),
            ("first dispatch", f"{self._compile:.2f} s, compilation included, or its reading from the cache"),
            ("FLOPs a step", f"{flops:.4g}, as XLA counts them"),
        ]
        times = sorted(seconds / steps for seconds, _ in self._times)
        if not times:
            rows.append(("time of a step", "not known: too few steps in one go"))
        else:
            median = statistics.median(times)
            spread = f"{1e3 * times[0]:.3g} to {1e3 * times[-1]:.3g} ms over {len(times)} dispatches"
            waiting = sum(waited for _, waited in self._times) / sum(seconds for seconds, _ in self._times)
            share = f"{flops / median / (top * devices):.2%} of {top * devices:.4g}" if top else f"not known for {kind}"
            rows += [
                ("time of a step", f"median {1e3 * median:.3g} ms, {spread}"),
                ("input wait", f"{waiting:.2%} of the time"),
                ("achieved", f"{flops / median:.4g} FLOP/s"),
                ("of the peak in bfloat16", share),
            ]
        table = "\n".join(f"| {what} | {figure} |" for what, figure in rows)
        return (
            f"# Profile of {self._run.workdir}\n\n| | |\n|---|---|\n{table}\n\n"
            "Times are those of the loop, from one dispatch done to the next, without evaluation and checkpoints. The trace in\n"
            f"`plugins/profile/` is of the {self._traced} after them; TensorBoard's profile plugin and Perfetto show it.\n"
        )
