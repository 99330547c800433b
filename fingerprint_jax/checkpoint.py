"""Orbax checkpoints with a digest manifest beside each: what does not match its digests is never used."""

import hashlib
import json
import logging
import math
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fingerprint_jax import tables

log = logging.getLogger(__name__)


def parse_best(best: str) -> tuple[str, str]:
    """`max:accuracy` -> ('max', 'accuracy'); '' -> ('', '')."""
    mode, _, metric = best.partition(":")
    if best and (mode not in ("max", "min") or not metric):
        raise ValueError(f"config.best={best!r}: use max:<metric> or min:<metric>, for example max:accuracy")
    return mode, metric


class Checkpoints:
    """The checkpoints of a workdir. The latest two and the best are kept."""

    def __init__(self, workdir: Path, best: str = ""):
        self.mode, self.metric = parse_best(best)
        self._digests = workdir / "digests"
        self._directory = workdir / "checkpoints"
        self._workdir = workdir
        self._pending: tuple[int, dict] | None = None
        self._manager: ocp.CheckpointManager | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            policy: list[policies.PreservationPolicy] = [policies.LatestN(2)]
            if self.metric:
                policy.append(policies.BestN(get_metric_fn=self._rank, n=1))
            self._manager = ocp.CheckpointManager(
                self._directory.absolute(),
                options=ocp.CheckpointManagerOptions(
                    create=True,
                    preservation_policy=policies.AnyPreservationPolicy(policy),
                    enable_async_checkpointing=True,
                ),
            )
        return self._manager

    def _rank(self, metrics) -> float:
        # A step without the metric, or with NaN, never counts as the best.
        value = (metrics or {}).get(self.metric, math.nan)
        value = value if self.mode == "max" else -value
        return value if math.isfinite(value) else -math.inf

    def save(self, step: int, state: dict, metrics: dict[str, float]) -> None:
        """Starts writing `state`; the manifest follows when all bytes are there (`poll`, the next `save` or `close`)."""
        self.wait()
        self._open().save(step, args=ocp.args.StandardSave(state), metrics=metrics)
        self._pending = (step, metrics)

    def poll(self) -> None:
        """Writes the manifest of a save that has ended; returns at once where it has not."""
        if self._pending and not self._open().is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way and writes its manifest."""
        if self._pending is None:
            return
        self._open().wait_until_finished()
        step, metrics = self._pending
        self._pending = None
        files = {name: _digest(self._directory / str(step) / name) for name in self._files(step)}
        tables.write_text(self._digests / f"{step}.json", json.dumps({"step": step, "metrics": metrics, "files": files}, indent=1))
        kept = {p.name for p in self._directory.iterdir() if p.name.isdigit()}
        for manifest in self._digests.glob("*.json"):
            if manifest.stem not in kept:
                manifest.unlink()

    def close(self) -> None:
        """Ends the save under way."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _files(self, step: int) -> list[str]:
        root = self._directory / str(step)
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

    def manifests(self) -> dict[int, dict]:
        """Complete checkpoints by step, oldest first."""
        found = [json.loads(p.read_text()) for p in self._digests.glob("*.json")]
        return {m["step"]: m for m in sorted(found, key=lambda m: m["step"])}

    def damage(self, step: int) -> str:
        """Names the first file that does not match the manifest; '' where all do."""
        files = self.manifests()[step]["files"]
        for name, digest in files.items():
            path = self._directory / str(step) / name
            if not path.exists():
                return f"{path} is missing"
            if _digest(path) != digest:
                return f"{path} is damaged (its digest differs)"
        extra = sorted(set(self._files(step)) - files.keys())
        return f"{self._directory / str(step) / extra[0]} is not part of the checkpoint" if extra else ""

    def resolve(self, which: str) -> int:
        """best | latest | a step -> the step of an undamaged checkpoint; raises ValueError where there is none.

        A damaged checkpoint is named and the next one in line is used, except where its number was asked for.
        """
        manifests = self.manifests()
        if which not in ("best", "latest"):
            if not which.isdigit() or int(which) not in manifests:
                raise ValueError(f"step={which!r}: checkpoints are {list(manifests)}; or use best, latest")
            if damage := self.damage(int(which)):
                raise ValueError(f"step={which}: {damage}")
            return int(which)
        steps = sorted(manifests, reverse=True)
        if which == "best" and self.metric:
            steps.sort(key=lambda step: self._rank(manifests[step]["metrics"]), reverse=True)  # stable: ties to the latest
        for step in steps:
            damage = self.damage(step)
            if not damage:
                return step
            log.warning("%s; the checkpoint before it is used", damage)
        raise ValueError(f"{self._workdir}: no usable checkpoint")

    def restore(self, step: int, abstract: dict) -> dict:
        """The state at a step, as arrays with the shapes, types and shardings of `abstract`."""
        return dict(self._open().restore(step, args=ocp.args.StandardRestore(abstract)))

    def prune(self) -> None:
        """Removes what a killed process left: checkpoints without a manifest, or damaged ones after the last good one."""
        good = [step for step in self.manifests() if not self.damage(step)]
        last = max(good, default=-1)
        for path in self._directory.glob("*") if self._directory.exists() else []:
            if path.is_dir() and (not path.name.isdigit() or int(path.name) > last):
                log.warning("%s is incomplete or damaged and is removed", path)
                shutil.rmtree(path)
                (self._digests / f"{path.name}.json").unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def abstract(tree: dict, sharding: jax.sharding.Sharding) -> dict:
    """Shapes and types of a tree of arrays, every leaf with the same sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
