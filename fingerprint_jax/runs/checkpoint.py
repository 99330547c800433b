"""Orbax checkpoints with a digest manifest beside each: what does not match its digests is never used."""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fingerprint_jax.runtime import distributed, files, preemption

log = logging.getLogger(__name__)

_NUMBER = re.compile("[0-9]{1,18}")  # of a step; `isdigit` would take a superscript for one
_UNCOMMITTED = r"[0-9]+\.orbax-checkpoint-tmp.*"  # what Orbax writes to before it renames it; nothing else is removed

# Orbax looks for what it wrote by a pattern that begins with the whole path, and takes some beginnings for buckets in a cloud;
# TensorStore reads a backslash as a slash.
UNFIT, BUCKETS = ("\\", "[", "*", "?", "gs:/"), ("/gs/", "/s3/", "/az/", "/hf/")


def check_place(workdir: Path) -> None:
    """Raises ValueError where a checkpoint in this directory could not be read again, because of a character in its path."""
    path = f"{workdir.absolute()}/"
    wrong = [text for text in UNFIT if text in path] + [text for text in BUCKETS if path.startswith(text)]
    if path.encode(errors="ignore").decode() != path:
        wrong.append("bytes that are no UTF-8")
    if wrong:
        raise ValueError(
            f"{path!r} has {' and '.join(map(repr, wrong))}: checkpoints cannot be read again from there; use another directory, or"
            " a symbolic link to it"
        )


def parse_best(best: str) -> tuple[str, str]:
    """`max:accuracy` -> ('max', 'accuracy'); '' -> ('', '')."""
    mode, _, metric = best.partition(":")
    if best and (mode not in ("max", "min") or not metric):
        raise ValueError(f"config.best={best!r}: use max:<metric> or min:<metric>, for example max:accuracy")
    return mode, metric


class Checkpoints:
    """The checkpoints of a workdir: the latest two, the best, and those of the steps `keep` are kept.

    `checkpoints/<step>` holds what Orbax wrote, `digests/<step>.json` its manifest: step, metrics, the arrays' shapes and the
    SHA-256 of every file. The manifest is written last and removed first, so that where it stands the files do; until these are
    removed it is called `<step>.removed`, by which the next process knows what to end. The first and the last checkpoint that a
    process saves are read back, array by array, before their manifests are written.

    Several processes write a checkpoint together; its manifest, and what is removed, is the work of process 0.
    """

    def __init__(self, workdir: Path, best: str = "", keep: Collection[int] = ()) -> None:
        self.mode, self.metric = parse_best(best)
        self._keep = set(keep)
        self._digests = workdir / "digests"
        self._directory = workdir / "checkpoints"
        self._workdir = workdir
        self._pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None
        self._manager: ocp.CheckpointManager | None = None
        self._read_one = False  # whether this process has read a checkpoint back

    def _rank(self, metrics: dict[str, Any]) -> float:
        # A step without the metric, or with NaN, never counts as the best.
        value = metrics.get(self.metric, math.nan)
        value = value if isinstance(value, (int, float)) else math.nan
        value = value if self.mode == "max" else -value
        return value if -math.inf < value < math.inf else -math.inf  # `isfinite` trips over an int beyond all floats

    def save(self, step: int, state: dict[str, Any], metrics: dict[str, float], last: bool = False) -> None:
        """Starts writing `state`; the manifest follows when all bytes are there (`poll`, the next `save` or `close`).

        The first time, and with `last`, it returns when all is written and was read back. All processes call it together.

        Raises OSError where it cannot be written, for example on a full disk, or not be read back; the checkpoints before it stay.
        """
        self.wait()
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True)
            self._manager = ocp.CheckpointManager(self._directory.absolute(), options=options)
        self._pending = (step, metrics, shapes(state))
        reads = last or not self._read_one
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
            if reads:
                self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
        except BaseException:  # a second signal: what Orbax has written of it nobody knows
            self._pending = None
            raise
        if reads:
            self._read_back(step, state)
            self._read_one = True
            self.wait()

    def _read_back(self, step: int, state: dict[str, Any]) -> None:
        """Raises OSError unless the checkpoint that was written holds `state` to the last bit. It is read into host memory."""
        try:
            with ocp.StandardCheckpointer() as reader:
                found = reader.restore(self._item(step), jax.tree.map(lambda x: np.empty(x.shape, x.dtype), state))
            for (path, value), read in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found), strict=True):
                for shard in {str(shard.index): shard for shard in value.addressable_shards}.values():
                    if jax.device_get(shard.data).tobytes() != read[shard.index].tobytes():
                        raise ValueError(f"{jax.tree_util.keystr(path)} is not what was saved")
        except Exception as error:  # TensorStore raises a plain Exception for a file that is gone
            self._failed(error, "read back")

    def poll(self) -> None:
        """Writes the manifest of a save that has ended; returns at once where it has not."""
        if self._pending and self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way, writes its manifest and removes what retention lets go."""
        if self._pending is None or self._manager is None:
            return
        step, metrics, arrays = self._pending
        try:
            self._manager.wait_until_finished()
            if distributed.index():
                return
            digests = {name: _digest(self._directory / str(step) / name) for name in self._files(step)}
            if not digests:
                raise ValueError("nothing was written")
            _write_manifest(self._path(step), {"step": step, "metrics": metrics, "arrays": arrays, "files": digests})
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
        finally:
            self._pending = None
        kept = self.manifests()
        keep = {*sorted(kept)[-2:], *self._keep & kept.keys()}
        if self.metric:
            keep.add(max(kept, key=lambda step: (self._rank(kept[step]["metrics"]), step)))
        for old in kept.keys() - keep:
            self._remove(old)

    def _failed(self, error: Exception, done: str = "written") -> None:
        assert self._pending
        step, self._pending = self._pending[0], None
        manager, self._manager = self._manager, None  # it would raise the same error at the next save
        if manager is not None and distributed.count() == 1:  # of several, this process ends, and the others with it
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                manager.close()
        for leftover in self._directory.glob("*"):  # it may have filled the disk
            ours = leftover.name == str(step) or re.fullmatch(_UNCOMMITTED, leftover.name)
            if ours and leftover.name.partition(".")[0] == str(step):
                shutil.rmtree(leftover, ignore_errors=True)
        text = str(error).strip() or type(error).__name__
        full = os.strerror(errno.ENOSPC)
        reason = full if full in text else text.splitlines()[-1]
        raise OSError(f"{self._directory}: the checkpoint of step {step} could not be {done}: {reason}") from error

    def close(self) -> None:
        """Ends the save under way."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def _path(self, step: int) -> Path:
        return self._digests / f"{step}.json"

    def _mark(self, step: int) -> Path:
        return self._digests / f"{step}.removed"

    def _item(self, step: int) -> Path:
        return self._directory.absolute() / str(step) / "default"

    def _files(self, step: int) -> list[str]:
        root = self._directory / str(step)
        found = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
        return sorted(str(path.relative_to(root)) for path in found if path.is_symlink() or not files.litter(path.name))

    def _committed(self) -> set[int]:
        return {int(path.name) for path in self._directory.glob("*") if _NUMBER.fullmatch(path.name)}

    def manifests(self) -> dict[int, dict[str, Any]]:
        """Checkpoints by step, oldest first; a manifest that is damaged itself has no `files`."""
        return {step: _read_manifest(self._path(step)) for step in steps(self._workdir)}

    def identity(self, step: int) -> str:
        """What tells the arrays of a checkpoint from those of another of the same step: 16 digits of the SHA-256 of its digests.

        Of one that a training that goes on has removed since it is that of none.
        """
        return distributed.first(lambda: files.seal({"files": _read_manifest(self._path(step))["files"]})[:16])

    def begun(self) -> bool:
        """Whether there is a checkpoint."""
        return distributed.first(lambda: bool(self.manifests()))

    def damage(self, step: int) -> str:
        """Names the first file that does not match the manifest; '' where all do."""
        digests = _read_manifest(self._path(step))["files"]
        if digests is None:
            return f"{self._path(step)} is missing or damaged"
        if not digests:  # older versions left such ones where a signal came within a save
            return f"{self._path(step)} names no file"
        for name, digest in digests.items():
            path = self._directory / str(step) / name
            try:
                found = _digest(path)
            except (FileNotFoundError, NotADirectoryError):
                return f"{path} is missing"
            except ValueError as error:
                return str(error)
            if found != digest:
                return f"{path} is damaged (its digest differs)"
        extra = sorted(set(self._files(step)) - digests.keys())
        return f"{self._directory / str(step) / extra[0]} is not part of the checkpoint" if extra else ""

    def resolve(self, which: str) -> int:
        """best | latest | a step -> the step of an undamaged checkpoint; raises ValueError where there is none.

        A damaged checkpoint is named and the next one in line is used, except where its number was asked for.
        """
        return distributed.first(lambda: self._resolve(which))

    def _resolve(self, which: str) -> int:
        manifests = self.manifests()
        if which not in ("best", "latest"):
            if not _NUMBER.fullmatch(which) or int(which) not in manifests:
                raise ValueError(f"step={which!r}: {self._workdir} has checkpoints {list(manifests)}; or use best, latest")
            if damage := self.damage(int(which)):
                raise ValueError(f"step={which}: {damage}; use another of {list(manifests)}")
            return int(which)
        for step in sorted(self._committed() - manifests.keys()):
            if self._mark(step).exists():
                continue
            warn_once(f"{self._path(step)} is missing: step {step} is being saved, or was not to its end; it is not used")
        for step, manifest in manifests.items():
            if manifest["files"] is None:  # it has no metrics either: whether it was the best nobody knows
                warn_once(f"{self.damage(step)}; step {step} is not used")
        steps = sorted(manifests, reverse=True)
        if which == "best" and self.metric:
            steps.sort(key=lambda step: self._rank(manifests[step]["metrics"]), reverse=True)  # stable: ties to the latest
        for step in steps:
            damage = self.damage(step)
            if not damage:
                return step
            if self._path(step).exists():  # else retention has removed it since
                warn_once(f"{damage}; the checkpoint before it is used")
        raise ValueError(f"{self._workdir}: no usable checkpoint")

    def restore(self, which: str, abstract: dict[str, Any], without: str = "") -> tuple[int, dict[str, Any]]:
        """Step and state of an undamaged checkpoint; arrays have the shapes, types and shardings of `abstract`.

        The part of the state that is called `without` is not read; what is read fits all of `abstract`.

        A training that goes on may remove the checkpoint while it is read; then the choice is made again.

        Raises ValueError where there is none, where its arrays are not those of `abstract`, or where it cannot be read.
        """
        while True:
            step, fits = self.resolve(which), False
            try:
                distributed.first(functools.partial(self.compare, step, abstract))
                fits = True
                wanted = {name: part for name, part in abstract.items() if name != without}
                arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
                with ocp.PyTreeCheckpointer() as reader:
                    asked = ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=bool(without))
                    state = dict(reader.restore(self._item(step), args=asked))
                if not all(isinstance(x, jax.Array) for x in jax.tree.leaves(state)):
                    raise ValueError("it lacks arrays that its manifest has")
            except Exception as error:  # TensorStore raises a plain Exception for a file that is gone
                # The others wait for this one, and may have read it.
                if distributed.count() > 1 and not isinstance(error, ValueError):
                    raise OSError(f"{self._item(step)} cannot be read, or was removed meanwhile: {error}") from error
                if self._path(step).exists():
                    check_place(self._workdir)
                    if not fits or isinstance(error, preemption.Preempted):
                        raise
                    # Its digests hold, and yet it is not as Orbax wrote it: somebody has made them anew.
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                    raise ValueError(f"{self._item(step)} cannot be read ({reason}): use another --step, or train anew") from error
            else:
                # Manifests go first: as long as it stands every file did while it was read.
                if distributed.first(self._path(step).exists):
                    return step, state
            log.info("%s: step %d was removed while it was read; choosing again", self._workdir, step)

    def compare(self, step: int, abstract: dict[str, Any]) -> None:
        """Raises ValueError that names the first array which a checkpoint and `abstract` do not have alike."""
        there, here = _read_manifest(self._path(step))["arrays"], shapes(abstract)
        for name in sorted(there.keys() | here.keys(), key=lambda name: ("'params'" not in name, name)):
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"{self._directory / str(step)} does not fit the config: {name} is {there.get(name, 'missing')} in the"
                    f" checkpoint, {here.get(name, 'missing')} in the model"
                )

    def adopt(self, other: "Checkpoints", step: int) -> bool:
        """Copies a checkpoint of another workdir, without its figures; False where it is damaged, or was removed meanwhile."""
        self._digests.mkdir(parents=True, exist_ok=True)
        self._remove(step)
        if damage := other.damage(step):  # what is no part of it may be without end, or elsewhere
            if other._path(step).exists():  # else it was removed meanwhile
                log.warning("%s", damage)
            return False
        place = self._directory / str(step)
        if os.path.lexists(place):
            raise ValueError(f"{place} cannot be removed, and nothing is written through a link: remove it")
        try:
            manifest = _read_manifest(other._path(step))
            for name in manifest["files"] or ():  # and nothing else that lies there
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(other._directory / str(step) / name, place / name, follow_symlinks=False)
            _write_manifest(self._path(step), manifest | {"metrics": {}})
        except (FileNotFoundError, shutil.Error):
            self._remove(step)
            return False
        damage = self.damage(step)
        if damage:
            log.warning("%s", damage)
            self._remove(step)
        return not damage

    def keep_best(self, step: int, metrics: dict[str, float]) -> bool:
        """Gives a checkpoint its metrics and keeps only the best so far; True where that is this one."""
        manifest = _read_manifest(self._path(step))
        _write_manifest(self._path(step), manifest | {"metrics": metrics})
        best = self.resolve("best")
        for other in self.manifests():
            if other != best:
                self._remove(other)
        return best == step

    def _remove(self, step: int) -> None:
        if self._path(step).exists():
            os.replace(self._path(step), self._mark(step))
        elif (self._directory / str(step)).exists():
            files.write_text(self._mark(step), "")
        self._end_removals()

    def _end_removals(self) -> None:
        for mark in self._digests.glob("*.removed"):
            folder = self._directory / mark.stem
            if _NUMBER.fullmatch(mark.stem) and not self._path(int(mark.stem)).exists():
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():
                    mark.unlink(missing_ok=True)

    @distributed.by_first
    def prune(self) -> None:
        """Clears what a killed process left and what is damaged, before a training goes on.

        What Orbax had not committed is removed, and what was being removed; any other checkpoint that is damaged or has no
        manifest is moved to `damaged/`, in case it is wanted one day.
        """
        self._end_removals()
        for path in sorted(self._directory.glob("*")):
            if re.fullmatch(_UNCOMMITTED, path.name):
                log.warning("%s was not written to its end and is removed", path)
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for step in sorted(self._committed() | self.manifests().keys()):
            if damage := self.damage(step):
                names = itertools.chain([f"{step}"], (f"{step}.{n}" for n in itertools.count(1)))  # what lies there stays
                aside = next(path for name in names if not os.path.lexists(path := self._workdir / "damaged" / name))
                log.warning("%s; step %d is moved to %s", damage, step, aside)
                aside.mkdir(parents=True)
                for path in (self._path(step), self._directory / str(step)):
                    if path.exists():
                        shutil.move(path, aside / path.name)


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning, once a process: an evaluation looks at a checkpoint, and asks for a state, several times."""
    log.warning(text)


def shapes(tree: dict[str, Any]) -> dict[str, str]:
    """Path -> type and shape of every array of a tree, for example `['params']['head/kernel']` -> `float32[16,5]`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}[{','.join(map(str, x.shape))}]" for path, x in leaves}


def _digest(path: Path) -> str:
    with files.opened(path, os.O_RDONLY, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _write_manifest(path: Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(content | {"sha256": files.seal(content)}, indent=1))


def _read_manifest(path: Path) -> dict[str, Any]:
    fields = {"sha256": str, "step": int, "metrics": dict, "arrays": dict, "files": dict}
    with contextlib.suppress(OSError, ValueError):
        content = files.read_json(path, fields, "")
        inside = all(files.inside(name) for name in content["files"])
        if content.pop("sha256") == files.seal(content) and content["step"] == int(path.stem) and inside:
            return content
    return {"metrics": {}, "arrays": {}, "files": None}


def steps(workdir: Path) -> list[int]:
    """The steps of a workdir that have a manifest, ascending."""
    return sorted(int(path.stem) for path in (workdir / "digests").glob("*.json") if _NUMBER.fullmatch(path.stem))
