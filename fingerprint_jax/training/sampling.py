"""Images that a generator makes, at a checkpoint, and the folders that they are in."""

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import jax
import numpy as np

from fingerprint_jax.data import augment, images
from fingerprint_jax.objectives import Generative
from fingerprint_jax.runs.config import config_hash
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files, sharding
from fingerprint_jax.runtime.progress import progress
from fingerprint_jax.training.inference import restore
from fingerprint_jax.training.model import Model, model_of

log = logging.getLogger(__name__)

# Hidden, so that `pack` passes them over: what made the images, a digest of the pixels of each, the lock.
RECORD, DIGESTS, LOCK = ".generate.json", ".generate.digests", ".lock"
_IMAGE = re.compile(r"\d{6}\.png")
_LEFT = re.compile(r"\.(\d{6}\.png|generate\.(json|digests))\.\d+\.tmp")  # what a kill has left


def noise(key: jax.Array, numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of images by number, each by its own key: [N] -> [N, *shape]."""
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), shape))(numbers)


def sample(step: Callable[[jax.Array, np.float32, np.float32], jax.Array], x: jax.Array, steps: int) -> jax.Array:
    """Noise carried from time 0 to 1 in equal steps: [N,H,W,C] -> [N,H,W,C].

    A loop in Python around a compiled step: XLA:CPU is slow at convolutions in a loop of its own, and devices work ahead of it.

    Args:
        step: (x, t, dt) -> x at t + dt, such as `Generative.advance` of a network.
        x: standard normal noise.
        steps: how many.
    """
    for i in range(steps):
        x = step(x, np.float32(i / steps), np.float32(1 / steps))
    return x


def generative(run: Run) -> Generative:
    """The objective of a run of a generator; raises ValueError for another run."""
    method = run.config.method
    if method == "gradient" and isinstance(objective := model_of(run).objective, Generative):
        return objective
    kind = run.config.objective.name if method == "gradient" else method
    raise ValueError(f"{run.workdir}: a run of {kind}, which makes no images: give one of flow_matching or gan")


class Sampler:
    """Image i is that of the noise of key fold_in(key(seed), i), whatever else is in its batch.

    On other devices, or in batches of another size, sums may be rounded otherwise, and a grey level may then be the next one.

    Args:
        run: of a generator, with a checkpoint.
        seed: of the noise.
        steps: from noise to image; 0: as many as the objective says.
        solver: one of the objective's; '': its first.

    Attributes:
        step: of the checkpoint, the one that `run.step` names.
        weights: SHA-256 of the averaged weights, which it uses.
        steps: that it takes.
        solver: that it takes them by.
        made_by: all of that, the run and the hash of its config; JSON types.
        image_size: (H, W) of its images.
    """

    def __init__(self, run: Run, seed: int, steps: int = 0, solver: str = "") -> None:
        objective, model = generative(run), model_of(run)
        if run.fingerprints != run.own_fingerprints:  # whose images are of another size, perhaps
            run.refuse_data("data set")
        self.steps, self.solver = objective.way(steps, solver)
        self.step, state = restore(run)
        self._weights = model.weights(state)
        found = hashlib.sha256()
        for part in self._weights:
            for name, value in sorted(part.items()):
                found.update(name.encode() + np.asarray(jax.device_get(value)).tobytes())
        self.weights, self._mesh = found.hexdigest()[:16], model.mesh
        self.made_by: dict[str, str | int] = {"run": str(run.workdir), "config": config_hash(run.config), "step": self.step}
        self.made_by |= {"weights": self.weights, "seed": seed, "steps": self.steps, "solver": self.solver}
        self.image_size = run.source.image_shape[:2]
        self._key = sharding.key(seed, model.mesh)
        self._noise, self._advance, self._shown = _programs(model, objective, self.solver)

    def __call__(self, numbers: np.ndarray, labels: np.ndarray) -> jax.Array:
        """Images by number [B], of a class each or of none, -1 [B]: -> uint8 [B,H,W], which is not waited for.

        B is a multiple of the devices; another B is another program.
        """
        rows = sharding.split(self._mesh)
        number, label = (sharding.put(np.asarray(x, np.int32), rows) for x in (numbers, labels))
        x = self._noise(self._key, number)

        def step(x: jax.Array, t: np.float32, dt: np.float32) -> jax.Array:
            return self._advance(x, t, dt, label, *self._weights)

        return self._shown(sample(step, x, self.steps), *self._weights)


@functools.lru_cache(maxsize=8)
def _programs(model: Model, objective: Generative, solver: str) -> tuple[Callable[..., jax.Array], ...]:
    """(key, numbers) -> noise; (x, t, dt, labels, params, rest) -> x; (x, params, rest) -> uint8."""
    rows = sharding.split(model.mesh)
    in_place = bool(objective.solvers)  # else one step makes images of noise of another shape

    def advance(x: jax.Array, t: jax.Array, dt: jax.Array, labels: jax.Array, params: dict, rest: dict) -> jax.Array:
        return objective.advance(model.merge(params, rest), x, t, dt, labels, solver)

    def shown(x: jax.Array, params: dict, rest: dict) -> jax.Array:
        return augment.denormalize(objective.images(model.merge(params, rest), x), "symmetric")[..., 0]

    return (
        jax.jit(lambda key, numbers: noise(key, numbers, objective.noise_shape), out_shardings=rows),
        jax.jit(advance, donate_argnums=0 if in_place else (), out_shardings=rows),
        jax.jit(shown, out_shardings=rows),
    )


def check_folder(folder: Path, flag: str) -> None:
    """Raises ValueError where there is a file, or a folder with anything but what `make` has written, at the first such thing.

    Args:
        folder: where images are to go.
        flag: that names it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--{flag}={folder}: a file is there, name a folder")
    ours = (folder / RECORD).is_file()
    places = [folder] if folder.is_dir() else []
    while places:
        with os.scandir(places.pop()) as entries:
            for entry in entries:
                if files.litter(entry.name) and not entry.is_symlink():
                    continue
                file = (
                    (ours and _IMAGE.fullmatch(entry.name)) or entry.name in (RECORD, DIGESTS, LOCK) or _LEFT.fullmatch(entry.name)
                )
                if ours and not file and entry.is_dir(follow_symlinks=False):  # of a class
                    places.append(Path(entry))
                elif not (file and entry.is_file(follow_symlinks=False)):
                    name = os.path.relpath(entry, folder)
                    raise ValueError(f"--{flag}={folder} has {name!r}, which is not of this command: name a new folder")


def _check_record(folder: Path, made_by: dict[str, str | int], flag: str) -> None:
    """Writes what makes the images of a folder; raises ValueError where others of it are made by something else."""
    remedy = f"name a new --{flag}"
    try:
        known = files.read_json(folder / RECORD, {name: type(value) for name, value in made_by.items()}, remedy)
    except FileNotFoundError:
        files.write_text(folder / RECORD, json.dumps(made_by, indent=1))
        return
    for name in sorted(made_by.keys() - {"run"}):
        if known[name] != made_by[name]:
            raise ValueError(
                f"--{flag}={folder}: its images are of {name} {known[name]!r} of {known['run']}, not {made_by[name]!r}:"
                f" give the same, or {remedy}"
            )
    for path in folder.rglob(".*.tmp"):
        if _LEFT.fullmatch(path.name):
            path.unlink(missing_ok=True)


def make(
    sampler: Sampler, folder: Path, wanted: list[tuple[str, int]], batch: int, label: str = "", flag: str = "output_dir"
) -> int:
    """Makes the images whose file is missing, damaged or not what was made here; how many they were. A record says what made them.

    A digest of the pixels of each is kept: a copy of another folder, cut off half-way, brings the record before the images.

    Args:
        sampler: of the images.
        folder: where they go, and nothing else is, see `check_folder`.
        wanted: the path in it and the label of each image, by its number.
        batch: images at a time.
        label: the class of all images; '' where they have none, or take turns.
        flag: of the command line, that names the folder or one around it.

    Raises ValueError where the images of the folder are made by something else, or right now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / LOCK, f"--{flag}={folder}: %s makes images there; wait for it, or use another folder"):
        made_by = sampler.made_by | {"label": label}
        _check_record(folder, made_by, flag)
        known = _digests(folder, made_by)
        missing = [i for i, (name, _) in enumerate(wanted) if not known.get(name) or _digest(folder / name) != known[name]]
        if strange := [wanted[i][0] for i in missing if (folder / wanted[i][0]).exists()]:
            log.warning("%s: %s is not what is made here, nor are %d others: made anew", folder, strange[0], len(strange) - 1)
        with files.appending(folder / DIGESTS) as journal:
            _make(sampler, folder, wanted, missing, batch, journal)
        return len(missing)


def _digests(folder: Path, made_by: dict[str, str | int]) -> dict[str, str]:
    """{path of an image: digest of its pixels} of what was made here; begun anew where the list is that of other images."""
    about = {name: value for name, value in made_by.items() if name != "run"}
    head = {"of": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()}
    path, found = folder / DIGESTS, {}
    first, *lines = files.read_journal(path) or [None]
    if first != head:
        files.write_text(path, json.dumps(head))
        return {}
    for line in lines:
        if not (isinstance(line, list) and len(line) == 2 and all(isinstance(text, str) for text in line)):
            raise ValueError(f"{path}: {json.dumps(line)[:80]} is no image and digest: remove the line, the image is made anew")
        found[line[0]] = line[1]
    return found


def _make(sampler: Sampler, folder: Path, wanted: list[tuple[str, int]], missing: list[int], batch: int, journal: IO[str]) -> None:
    batches = [np.array(missing[first : first + batch]) for first in range(0, len(missing), batch)]
    with progress("making", len(missing)) as advance:

        def write(numbers: np.ndarray, found: np.ndarray) -> None:
            for number, pixels in zip(numbers, found, strict=False):  # the last batch is padded
                name = wanted[number][0]
                images.save(folder / name, pixels)
                journal.write(json.dumps([name, images.digest(pixels)]) + "\n")
                advance()
            journal.flush()

        pending = None
        for numbers in batches:
            padded = np.pad(numbers, (0, batch - len(numbers)), mode="edge")
            # The batch before is written only now, so that the devices work meanwhile.
            running, pending = pending, (numbers, sampler(padded, np.array([wanted[i][1] for i in padded])))
            if running:
                write(running[0], np.asarray(running[1]))
        if pending:
            write(pending[0], np.asarray(pending[1]))


def _digest(path: Path) -> str:
    """That of the pixels of an image; '' where it is not there, or damaged."""
    try:
        return images.digest(images.decode(path)[0])
    except ValueError:
        return ""
