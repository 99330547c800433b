"""How a run starts or goes on: what has to be right before anything is written, and what is written first."""

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax

from fingerprint_jax.runs import checkpoint, unchanged
from fingerprint_jax.runs.config import another, config_hash, differing, identity, network_config
from fingerprint_jax.runs.run import Run, is_run
from fingerprint_jax.runtime import distributed, environment, files, plugins

log = logging.getLogger(__name__)

# What can lie in a work directory before its config does: what the launcher writes, logs, and what a kill has left.
_BEGUN = re.compile(
    r"lock|provenance\.json|(failed|cost)\.json|log(-[0-9]+)?\.txt|.+\.(log|out|err)|\.(config|provenance|failed|cost)\.json\.[0-9]+\.tmp"
)
# What a start writes before there is anything to go on with. Whatever else lies there came from somebody else meanwhile.
_STARTED = (
    *("lock", "config.json", "provenance.json", "metrics.jsonl", "pairs.npz", "labels", "children", "checkpoints", "digests"),
    *("damaged", "outputs", "features", "predictions", "named", "tensorboard", "profile", "trackers"),
)


SEEN_S = 60  # after which a file is on all machines that share a folder: NFS asks again by then

Fields = Callable[[str], dict[str, Any]]  # of a method: the fields that a config of it has, beside those of every config


@contextlib.contextmanager
def fitting(run: Run, check: Callable[[Run], None], of_method: Fields) -> Generator[None]:
    """The block in which this process, or it and those beside it, may change the run; its config is written or compared first.

    A config that `check` refuses, or records that are not those of their fingerprints, leave nothing behind: no folder, and
    no change of an older config. Nor does a first start that ends with a ValueError before a checkpoint or a finished child
    stands.

    The lock goes with the process, however it ends. `provenance.json` holds the data's fingerprints, every start (step,
    devices, library versions) and every change of the config that was allowed.

    Raises ValueError where another process holds the run, or where config or data differ from those it was started with
    in more than where the data lie and the fields of `allow_change`; names the fields and both values. Also where checkpoints
    cannot lie in the work directory, see `checkpoint.check_place`.
    """
    require_same(run)
    refusal = f"{run.workdir}: %s is fitting this run; wait for it, or use another --workdir"
    with contextlib.ExitStack() as held:

        def begin() -> list[bool]:
            if run.workdir.exists() and not run.workdir.is_dir():
                raise ValueError(f"--workdir={run.workdir}: a file is there, name a folder")
            run.refuse_links()
            refuse_foreign(run.workdir)
            if network_config(run.config).method == "gradient":
                checkpoint.check_place(run.workdir)
            if not (run.workdir / "config.json").exists():
                check(run)
            if run.config.data.extra_labels:
                _ = run.extra
            run.source.verify(())  # what is kept of other records would count once the right ones are there
            fingerprints = run.fingerprints
            made = not run.workdir.exists()
            run.workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(files.locked(run.workdir / "lock", refusal))
            return [_write_or_check(run, fingerprints, check, of_method), made]

        first, made = distributed.first(begin)
        try:
            _require_one_folder(run)
            run.started = True
            yield
        except ValueError:
            if first:
                _withdraw(run.workdir, made)
            raise


def require_same(run: Run) -> None:
    """Raises ValueError where one of several processes has another config, or sees other data, than process 0.

    Each reads the data for itself, and a copy on another machine may be an older one.
    """
    if distributed.count() > 1:
        seen = json.dumps([config_hash(run.config), run.fingerprints], sort_keys=True)
        distributed.require_same(seen, "another config or other data")


def _require_one_folder(run: Run) -> None:
    """Raises ValueError where one of several processes has another folder as its work directory: a disk of its own machine, say.

    All write a checkpoint together, and would wait for each other at the first.
    """
    if distributed.count() == 1 or run.outermost != run.workdir:
        return
    lock = run.workdir / "lock"
    held = distributed.first(lambda: files.read_text(lock))
    end = time.monotonic() + SEEN_S
    while not (same := lock.is_file() and files.read_text(lock) == held) and time.monotonic() < end:
        time.sleep(0.5)
    distributed.require_same(held if same else "", f"another folder --workdir={run.workdir}")


def require_change(run: Run, of_method: Fields) -> None:
    """Raises ValueError where a run was begun in the work directory that may not go on with this config; nothing is written."""
    if (run.workdir / "config.json").exists():
        _compared(run, run.fingerprints, of_method)


def refuse_foreign(workdir: Path) -> None:
    """Raises ValueError where a work directory is no run and has files that are none of a run that was just begun.

    What makes it a run is that it has both files that `_write_or_check` writes: what lies beside them is then ours to remove.
    """
    if not workdir.is_dir() or is_run(workdir):
        return
    for path in sorted(workdir.iterdir()):
        if not (path.is_file() and _BEGUN.fullmatch(path.name)) and not files.litter(path.name):
            raise ValueError(f"--workdir={workdir} is no run, and {path.name!r} is in it: name an empty folder, or a new one")
    if (path := workdir / "provenance.json").exists():  # all that a kill has left: it has to be ours
        files.read_json(path, {"fingerprints": dict, "starts": list, "changes": list}, "name another --workdir")


@distributed.by_first
def _withdraw(workdir: Path, made: bool) -> None:
    """Takes back what a first start has written, and the folder that it `made`, unless there is something to go on with."""
    if any(path for pattern in ("digests/*.json", "done") for path in workdir.rglob(pattern)):
        return
    logs = workdir.glob("log*.txt") if made else ()  # else they may be those of a launcher
    for path in (*logs, *(workdir / name for name in _STARTED)):  # none of them was there before, see `refuse_foreign`
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where a log lies there
        if made:
            workdir.rmdir()


def _write_or_check(run: Run, fingerprints: dict[str, str], check: Callable[[Run], None], of_method: Fields) -> bool:
    """Writes the config of a first start, which is True, or compares that of a later one."""
    path = run.workdir / "config.json"
    start: dict[str, Any] = {"step": max(checkpoint.steps(run.workdir), default=0)}
    start["topology"] = f"{jax.process_count()}x{jax.local_device_count()} {jax.default_backend()}"
    if (count := run.config.get("steps_per_dispatch", 1)) > 1:
        start["topology"] += f", {count} steps a dispatch"
    if run.config.get("optimizer", {}).get("shard_state", False):
        start["topology"] += ", sharded optimizer state"
    start["versions"], start["settings"], start["code"] = environment.libraries(), environment.settings(), plugins.code(run.config)
    if not path.exists():
        classes = {} if run.task.classes else {"classes": run.source.summary["classes"]}
        about = {"fingerprints": fingerprints, "starts": [start], "changes": []}
        window = {name: value for name, value in run.source.window.items() if name == "window"}
        run.write_provenance(about | classes | window | {"parts": run.drawn(run.parts)})
        files.write_text(path, json.dumps(run.config.to_dict(), indent=1))
        return True
    before, after, changed = _compared(run, fingerprints, of_method)
    known, finished = run.provenance, (run.workdir / "done").exists()
    drawn = run.drawn(run.parts)  # of parts that it was started with, else it does not go on
    if changed:
        check(run)
    last = known["starts"][-1]
    rounding = "batches are the same, sums may be rounded otherwise"
    if last["topology"] != start["topology"]:
        change = f"{last['topology']} -> {start['topology']} processes x devices"
        log.warning("%s: topology changed: %s; %s", run.workdir, change, rounding)
    for what in ("versions", "settings", "code"):
        before_it, now = last.get(what, {}), start[what]
        if other := differing(before_it, now):
            change = ", ".join(f"{name} {now.get(name)} (before: {before_it.get(name)})" for name in other)
            log.warning("%s goes on with other %s: %s; %s", run.workdir, what, change, rounding)
    changes = [{"step": start["step"], "field": n, "from": before.get(n), "to": after.get(n)} for n in changed]
    for change in changes:
        log.warning("%s: %s changes at step %d, as allowed", run.workdir, change["field"], change["step"])
    if changed or not finished:  # else nothing is started
        known["starts"].append(start)
    known["changes"] += changes
    run.write_provenance(known | {"fingerprints": fingerprints, "parts": known.get("parts", {}) | drawn})
    if changed:
        (run.workdir / "done").unlink(missing_ok=True)
        files.write_text(path, json.dumps(run.config.to_dict(), indent=1))
    return False


def _compared(run: Run, fingerprints: dict[str, str], of_method: Fields) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The config that lies there and this one, with their data, and what they differ in; ValueError where that may not be."""
    if run.followed:
        raise ValueError(f"{run.workdir} is a copy that --watch keeps, it is not trained: use another --workdir")
    known = run.provenance
    unchanged.require_classes(run)
    unchanged.require_window(run)
    before = identity(Run.load(run.workdir, of_method=of_method).config) | {"data": known["fingerprints"]}
    after = identity(run.config) | {"data": fingerprints}
    changed = differing(before, after)
    if refused := [name for name in changed if name not in run.allow_change]:
        raise ValueError(another(run.workdir, before, after, refused))
    if changed and (run.workdir / "done").exists() and not any(name.endswith(("num_steps", "patience")) for name in changed):
        raise ValueError(f"{run.workdir} is finished, {', '.join(changed)} would change nothing: use another --workdir")
    return before, after, changed
