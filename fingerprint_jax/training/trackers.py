"""Where people keep their runs: MLflow and Weights & Biases, beside the JSON lines and TensorBoard of `writer`.

A tracker takes no part in a training. It works in a thread of its own, of process 0; where it fails, or hangs, there is one warning
and the training goes on. Which ones there are is a flag and no field of the config: it changes no result, and a config may be a
stranger's, who is not to choose where figures are sent.

So may the work directory be, and neither library opens anything there. SQLite plays back a journal beside a database and removes
the file that this names. Where Weights & Biases saves code, it runs git above its own folder, and git runs what `.git/config` says.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import flags

from fingerprint_jax.runs.config import flat_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import distributed, files, names

log = logging.getLogger(__name__)

WAIT_S = 20  # seconds that the end of a training waits for a tracker: less than a scheduler gives between SIGTERM and SIGKILL


class Tracker(Protocol):
    """One run in a tracker; `begin` gives it."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step; one that is told again replaces the one before, or stands beside it."""
        ...

    def end(self, finished: bool) -> None:
        """The last call of this process; where the run is not `finished`, another one may go on with it."""
        ...


class Mlflow:
    """A run of MLflow: at MLFLOW_TRACKING_URI, else in `mlflow.db` of the user's folder.

    A database, as MLflow 3 refuses to write to plain files unless MLFLOW_ALLOW_FILE_STORE is set.
    """

    def __init__(self, run: Run) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow import entities  # pyright: ignore[reportMissingImports]

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of every time that a server is asked again
        self._entities, uri = entities, os.environ.get("MLFLOW_TRACKING_URI")
        folder = None if uri else _folder()
        # Two processes that make the tables of a database at once end with an error.
        with files.locked(folder / "mlflow.lock") if folder else contextlib.nullcontext():
            self._client = mlflow.MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
            self._id = self._begun(run)

    def _begun(self, run: Run) -> str:
        """The id of the run, which goes on or is begun."""
        key, experiment = _key(run, "mlflow"), os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.outermost.name
        found = self._client.get_experiment_by_name(experiment)
        of = found.experiment_id if found else self._client.create_experiment(experiment)
        if begun := self._client.search_runs([of], f"tags.key = '{key}'"):
            self._client.update_run(begun[0].info.run_id, status="RUNNING")
            return begun[0].info.run_id
        tags = {"key": key, "workdir": str(run.workdir.absolute())}
        made = self._client.create_run(of, run_name=_name(run), tags=tags).info.run_id
        fields = [(re.sub(r"[^\w./ -]", "_", name), str(value)) for name, value in flat_config(run.config).items()]
        for i in range(0, len(fields), 100):  # as many as a call may have
            self._client.log_batch(made, params=[self._entities.Param(*field) for field in fields[i : i + 100]])
        return made

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """As of a `Tracker`."""
        now = round(1000 * time.time())
        self._client.log_batch(self._id, [self._entities.Metric(*item, now, step) for item in values.items()])

    def end(self, finished: bool) -> None:
        """As of a `Tracker`."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class Wandb:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise: in `wandb/` of WANDB_DIR, else of the user's folder."""

    def __init__(self, run: Run) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run: Any = wandb.init(
            dir=os.environ.get("WANDB_DIR") or str(_folder()),
            project=os.environ.get("WANDB_PROJECT") or "fingerprint_jax",
            group=os.environ.get("WANDB_RUN_GROUP") or run.outermost.name,
            name=_name(run),
            id=_key(run, "wandb"),
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or "offline",
            config=run.config.to_dict(),
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, init_timeout=WAIT_S, finish_timeout=WAIT_S),
        )
        # Its own steps only rise, and lines after the last checkpoint come again where a killed training goes on.
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """As of a `Tracker`."""
        self._run.log({"step": step, **values})

    def end(self, finished: bool) -> None:
        """As of a `Tracker`."""
        self._run.finish(exit_code=0 if finished else 1)


KNOWN: dict[str, Callable[[Run], Tracker]] = {"mlflow": Mlflow, "wandb": Wandb}


def define_flag(values: flags.FlagValues) -> None:
    """`--trackers`; call `check` with it."""
    flags.DEFINE_list("trackers", [], "Where the run is shown too: mlflow, wandb; docs/training.md.", flag_values=values)


def check(trackers: Sequence[str]) -> tuple[str, ...]:
    """The names; raises ValueError for one that is unknown, or whose package is not installed."""
    for name in trackers:
        names.check("--trackers", name, KNOWN)
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise ValueError(f"--trackers={name}: the package is not installed: pip install 'fingerprint_jax[{name}]'")
    return tuple(dict.fromkeys(trackers))


def begin(run: Run, trackers: Sequence[str]) -> Tracker:
    """The run in each of the trackers, as one; on processes other than 0, and without a name, it does nothing.

    It goes on with the run that was begun for the work directory, see `_key`. The config is shown as that of the run.
    """
    return _All([_Apart(name, run) for name in trackers if not distributed.index()])


class _All:
    """Several trackers as one."""

    def __init__(self, trackers: "Sequence[_Apart]") -> None:
        self._trackers = trackers

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.metrics(step, values)

    def end(self, finished: bool) -> None:
        for tracker in self._trackers:
            tracker.end(finished)
        until = time.monotonic() + WAIT_S
        for tracker in self._trackers:
            tracker.wait(until)


class _Apart:
    """A tracker in a thread, which is waited for after its end alone, and not for ever."""

    def __init__(self, name: str, run: Run) -> None:
        self._name, self._run, self._left = name, run, False
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._thread.is_alive():  # else nothing would take it from the queue
            self._calls.put(lambda tracker: tracker.metrics(step, values))

    def end(self, finished: bool) -> None:
        self._calls.put(lambda tracker: tracker.end(finished))
        self._calls.put(None)

    def wait(self, until: float) -> None:
        """Waits until it has taken all, or until a time of the monotonic clock."""
        self._thread.join(max(until - time.monotonic(), 0))
        if self._thread.is_alive():
            self._left = True
            log.warning("%s: %s has not taken all figures after %d s: it is left", self._run.workdir, self._name, WAIT_S)

    def _work(self) -> None:
        try:
            tracker = KNOWN[self._name](self._run)
            while call := self._calls.get():
                call(tracker)
        except Exception as error:  # whatever a library, a disk or a network says
            if self._left:  # as was said
                return
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = re.sub("//[^/@ ]*@", "//", reason)  # log.txt is handed around, a password is not
            log.warning("%s: %s takes no more figures, all else goes on: %s", self._run.workdir, self._name, reason)


def _name(run: Run) -> str:
    """The work directory from the outermost one on."""
    return str(run.workdir.relative_to(run.outermost.parent))


def _folder() -> Path:
    """Where figures lie that go to no server: `~/.local/share/fingerprint_jax`, which only its owner may enter."""
    path = Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()).absolute() / "fingerprint_jax"
    files.make_private(path)
    return path


def _key(run: Run, tracker: str) -> str:
    """What a run is found by in a tracker: 16 digits that stand for where its work directory lies and a word that is kept there.

    A copy of a work directory, or one that was moved, is a run of its own, and so is one that is begun anew in the place of
    another. Whoever sends a run chooses the word, but not the digits: they are those of no other run of the user's.
    """
    path = run.workdir / "trackers" / f"{tracker}.json"
    files.refuse_links(path.parent)
    try:
        word = files.read_json(path, {"word": str}, "remove it")["word"]
    except FileNotFoundError:
        word = secrets.token_hex(16)
        files.write_text(path, json.dumps({"word": word}))
    return hashlib.sha256(json.dumps([word, os.path.realpath(run.workdir)]).encode()).hexdigest()[:16]
