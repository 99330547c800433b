"""Runs the rows of a sweep on this machine; the same command goes on where it stopped.

python -m launch.local --sweep=sweeps/lr --split=heldout --jobs=2

`launch.slurm` and `launch.kubernetes` start it for one row each.
"""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax import Config, methods
from fingerprint_jax.evaluation.results import figures, scored_on
from fingerprint_jax.runs import start
from fingerprint_jax.runs.config import config_hash, from_json, walk
from fingerprint_jax.runtime import cli, files, paths, plugins, progress
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.runtime.preemption import RUN_AGAIN, SIGNALS, Preempted
from launch import sweep

# Exit status of a child that a signal stopped; with 128 added where srun tells of it.
STOPPED = (RUN_AGAIN, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS))


class Launcher:
    """The children that run, and whether they were asked to stop.

    `through` is the command that starts each binary, such as srun. A SIGUSR1 is passed on to it, as srun passes it on to the
    binaries; of another signal, which would end srun itself, it is not told: who sends that to this process sends it to the
    binaries, too. Where each process of a row has a launcher of its own, that of process 0 tells of failures.
    """

    def __init__(self, output: Path, data_dir: str, split: str, through: Sequence[str] = ()) -> None:
        self.output, self.data_dir, self.split, self.through = output, data_dir, split, through
        self.process = int(os.environ.get("FINGERPRINT_PROCESS") or 0)
        self.stopping = threading.Event()
        self.passed_on = 0 if through else signal.SIGTERM  # what a child is told to stop by
        self.children: set[subprocess.Popen] = set()

    def stop(self, number: int = signal.SIGTERM, *_: object) -> None:
        """Asks every child to save and end; no other starts."""
        if self.through:
            self.passed_on = number if number == signal.SIGUSR1 else 0
        self.stopping.set()
        for child in tuple(self.children):
            self._tell(child)

    def _tell(self, child: subprocess.Popen) -> None:
        if self.passed_on:
            child.send_signal(self.passed_on)

    def fit_and_evaluate(self, row: sweep.Row) -> str:
        """One row through both binaries -> finished | failed | stopped."""
        workdir = self.output / row.name
        if finished(workdir, self.split):
            return "finished"
        where = [f"--workdir={workdir}"]
        data = [f"--config.data_dir={self.data_dir}"] if self.data_dir and "data_dir" not in row.overrides else []

        def commands() -> Iterator[list[str]]:  # the second stands on what the first has written
            yield ["fingerprint_jax.main", *row.flags, *data, *where]
            yield ["fingerprint_jax.evaluate", *where, f"--split={self.split}", *own_code([workdir])]

        if changed := sweep.changed(row):
            return self.failed(row, next(commands()), 1, changed)
        for command in commands():
            if self.stopping.is_set():
                return "stopped"
            status = self.call(command, workdir)
            if status in STOPPED or (status and self.stopping.is_set()):
                if not self.stopping.is_set():  # else the others have been told, and a second signal ends what is saving
                    self.stop()  # whoever stops one child wants the machine back
                return "stopped"
            if status:
                return self.failed(row, command, status, ended_by(status) or last_line(self.log(workdir)))
        print(f"finished  {row.name}", flush=True)
        return "finished"

    def failed(self, row: sweep.Row, command: list[str], status: int, error: str) -> str:
        """Says and keeps why a row failed."""
        failure = {"command": ["python", "-m", *command], "status": status, "error": error}
        if self.process == 0:
            (self.output / row.name).mkdir(parents=True, exist_ok=True)
            files.write_text(self.output / row.name / "failed.json", json.dumps(failure, indent=1))
        print(f"failed    {row.name}: {printable(error)}", flush=True)
        return "failed"

    def log(self, workdir: Path) -> Path:
        """`log.txt`, of further processes `log-1.txt` and so on."""
        return workdir / (f"log-{self.process}.txt" if self.process else "log.txt")

    def call(self, command: list[str], workdir: Path) -> int:
        """Exit status of a binary; what it says is added to `log.txt`."""
        workdir.mkdir(parents=True, exist_ok=True)
        if self.process == 0:
            (workdir / "failed.json").unlink(missing_ok=True)
        with files.opened(self.log(workdir), os.O_WRONLY | os.O_APPEND | os.O_CREAT, "ab") as log:
            # A group of its own: Ctrl-C reaches the launcher alone, which passes it on once. A second signal would end a
            # training before it has saved.
            child = subprocess.Popen(
                [*self.through, sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                env=os.environ | {progress.LOGGED: "1"},  # it does not write log.txt too
            )
            self.children.add(child)
            if self.stopping.is_set():
                self._tell(child)
            status = child.wait()
            self.children.discard(child)
            return status


def own_code(workdirs: Iterable[Path]) -> list[str]:
    """The flag for packages that the configs of runs name, which are those of their rows: `main` has just compared them."""
    named: set[str] = set()
    for workdir in workdirs:
        with contextlib.suppress(OSError, ValueError):  # `evaluate` says it
            named |= plugins.packages(ConfigDict(files.read_json(workdir / "config.json", {}, "")))
    return [f"--plugins={','.join(sorted(named))}"] * bool(named)


def collected_by(output: str, split: str) -> str:
    """The command that makes the table of a sweep."""
    code = own_code(Path(output) / row.name for row in sweep.read(output)[1])
    return shlex.join(["python", "-m", "launch.collect", f"--sweep={output}", f"--split={split}", *code])


def ended_by(status: int) -> str:
    """The signal that an exit status stands for, in Python's way or in that of shells and srun; empty where for none."""
    number = -status if status < 0 else status - 128
    return f"ended by {signal.Signals(number).name}" if number in set(signal.Signals) else ""


def last_line(path: Path) -> str:
    """What a binary said last, which is why it failed; srun only adds that it did."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("srun: ")), "no output")


def evaluated(workdir: Path, split: str) -> dict | None:
    """What the figures of a split are of, see `scored_on`, of a run that is trained to its end; None where there are none."""
    try:
        found = scored_on(figures(workdir), split)
    except (OSError, ValueError, KeyError):
        return None
    return found if (workdir / "done").exists() and not (workdir / "failed.json").exists() else None


def finished(workdir: Path, split: str) -> bool:
    """Whether a run is trained to its end and the split evaluated, with its config and of the data that it was started with.

    And with the finished runs that its config names, as far as these can be read: `evaluate` says what cannot.
    """
    if (found := evaluated(workdir, split)) is None:
        return False
    try:
        content = files.read_json(workdir / "config.json", {}, "")
        config: Config = ConfigDict(from_json(content))
        started = files.read_json(workdir / "provenance.json", {"fingerprints": dict}, "")["fingerprints"]
    except (OSError, ValueError, RecursionError):
        return False
    same = found["fingerprints"] == started and found["config_hash"] == config_hash(config)
    if not same or not plugins.same(config, found["code"]):
        return False
    if any(value for field, value in walk(content) if f".{field}".endswith((".features.run", ".ensemble.runs"))):
        with contextlib.suppress(OSError, ValueError):
            return methods.stands_as(methods.load(workdir), found)
    return True


def of_another(row: sweep.Row, workdir: Path) -> str:
    """What the run in the folder of a row has otherwise than that row; '' where it is that run, or none is there."""
    try:
        content = files.read_json(workdir / "config.json", {}, "")
        config, known_hash = dict(walk(content)), config_hash(ConfigDict(from_json(content)))
    except (OSError, ValueError, RecursionError):
        return ""  # `finished` says it
    for field, value in row.overrides.items():
        known, value = config.get(field, value), paths.expanded_field(field, value)
        if known != value and json.dumps(known) != json.dumps(value):  # NaN is not NaN
            return f"config.{field} is {known!r} in its folder, {value!r} in the sweep"
    if row.hash not in ("", known_hash):
        return f"the run in its folder is of another config than {row.config}"
    return ""


def check_folders(output: Path, rows: Iterable[sweep.Row]) -> None:
    """Raises ValueError where the folder of a row has the run of another one, or something else than a run."""
    for row in rows:
        start.refuse_foreign(output / row.name)
        if (path := output / row.name / "failed.json").exists():
            files.read_json(path, {"error": str}, "move it away")
        if found := of_another(row, output / row.name):
            raise ValueError(f"row {row.name}: {printable(found)}: put the runs in their own folders, or move this one away")


def run_sweep(output: Path, split: str, jobs: int, names: Sequence[str] = (), through: Sequence[str] = ()) -> dict[str, str]:
    """Runs what is not finished, `jobs` rows at a time -> {row: finished | failed}.

    With `names` only these rows, while others may run the rest; `through` is the command that starts each binary.

    Raises Preempted after a signal, or where a child was stopped by one, once all children have saved and ended; ValueError
    where another process runs the sweep, or where a folder has the run of another row.
    """
    if jobs < 1:
        raise ValueError(f"--jobs={jobs}: at least 1 is needed")
    data_dir, rows = sweep.read(output)
    if unknown := sorted(set(names) - {row.name for row in rows}):
        raise ValueError(f"--rows={unknown[0]}: no such row in {output}/sweep.json")
    rows = [row for row in rows if not names or row.name in names]
    check_folders(output, rows)
    launcher = Launcher(output, data_dir, split, through)
    with files.opened(output / "lock", os.O_RDWR | os.O_CREAT, "r+") as lock:  # a shared lock on NFS needs a file that can be read
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if names else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{output}: another process runs this sweep") from None
        before = {number: signal.signal(number, launcher.stop) for number in SIGNALS}
        try:
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                futures = {row.name: pool.submit(launcher.fit_and_evaluate, row) for row in rows}
                states = {name: future.result() for name, future in futures.items()}
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if "stopped" in states.values():
        raise Preempted(f"{output}: stopped, the same command continues the sweep")
    return states


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("sweep", None, "The directory that launch.sweep wrote.", required=True, flag_values=values)
    flags.DEFINE_string("split", "heldout", "heldout, valid or a packed split.", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "Rows that run at the same time.", flag_values=values)
    flags.DEFINE_list("rows", [], "Only these rows; others may run elsewhere at the same time.", flag_values=values)
    text = "A command that starts each binary, such as srun, and passes a SIGUSR1 on; other signals are for both, from outside."
    flags.DEFINE_string("through", "", text, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """The whole sweep; a row that fails stops no other and makes the exit status 1."""
    states = run_sweep(Path(values.sweep), values.split, values.jobs, values.rows, shlex.split(values.through))
    failed = [name for name, state in states.items() if state == "failed"]
    if failed:
        raise ValueError(f"{len(failed)} of {len(states)} rows failed: {', '.join(failed)}; each has a log.txt, and is tried again")
    print(f"{len(states)} rows are finished: {collected_by(values.sweep, values.split)}")


def command() -> None:
    """The console script."""
    cli.run("local", define_flags, main)


if __name__ == "__main__":
    command()
