"""A network trained by gradients."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from fingerprint_jax import Config, checkpoint, methods, score_metrics, sharding, tables, train
from fingerprint_jax.data import augment
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.run import Predictions, Run, config_hash

_normalize = jax.jit(augment.normalize, static_argnums=1)


def fit(run: Run) -> None:
    """Trains to `num_steps`; returns at once where that is done."""
    validates = bool(run.config.data.valid)
    if run.config.best and not validates:
        raise ValueError(f"config.best={run.config.best!r} needs a validation split: set data.valid")

    def evaluate(state):
        if not validates:
            return {}
        rows = run.rows("valid")
        scores = _scores(run, state, rows, functools.partial(encode, run, state))
        return score_metrics.quick(rows.labels, scores)

    with run.fitting(lambda: train.check_fit(run)):
        if not (run.workdir / "done").exists():
            train.train(run, evaluate)
            tables.write_text(run.workdir / "done", json.dumps({"steps": run.config.num_steps}))


def state(run: Run) -> int:
    """The step that `predict` uses."""
    return checkpoint.Checkpoints(run.workdir, run.config.best).resolve(run.step)


def predict(run: Run, split: str) -> Predictions:
    """Scores of a split from the checkpoint that `run.step` names."""
    rows = run.rows(split)
    restored = restore(run)
    scores = _scores(run, restored, rows, functools.partial(outputs, run, restored=restored))
    return Predictions(rows.ids, scores, train.model_of(run).objective.probabilities)


def reads(config: Config, split: str) -> bool:
    """Whether a stream, the gallery or the choice of the checkpoint has rows of a split."""
    streams = config.data.streams if config.num_steps else ()
    return bool(config.best) or any(split in (name, f"train_{name}") for name in streams) or methods.gallery_reads(config, split)


def restore(run: Run) -> train.State:
    """The state at the checkpoint that `run.step` names."""
    return train.restore(run, checkpoint.Checkpoints(run.workdir, run.config.best), run.step)[1]


def _scores(run: Run, state: train.State, rows: Rows, encode: Callable[[Rows], dict]) -> np.ndarray:
    model = train.model_of(run)
    images = functools.partial(_images, run)
    gallery = {}
    for name, stream in run.gallery.items():
        gallery[name] = encode(stream) | {"label": stream.labels, "index": stream.index, "images": images}
    query = encode(rows) | {"index": rows.index, "images": images}
    net = model.merge(*model.weights(state))
    return np.asarray(model.objective.scores(net, query, gallery), np.float32)


def _images(run: Run, index: np.ndarray) -> jax.Array:
    """Records of the run by number, as the network takes them: [N] -> float32 [N,H,W,C] on the devices, split where N allows."""
    mesh = train.model_of(run).mesh
    place = sharding.replicated(mesh) if len(index) % mesh.size else sharding.split(mesh)
    return _normalize(jax.device_put(run.source.images(index), place), run.config.data.normalize)


def outputs(
    run: Run,
    rows: Rows,
    cache: Path | None = None,
    restored: train.State | None = None,
    enhance: str = "none",
    layer: str = "",
    source: Source | None = None,
) -> dict[str, np.ndarray]:
    """`encode` at the checkpoint that `run.step` names, computed once: galleries are read by every split and by the page.

    Files in `cache`, else in the run's `outputs/`, go by checkpoint, config, content of the data and rows; those of another
    checkpoint are removed. `restored` is the state at that checkpoint, read where it is needed and not given; `enhance`,
    `layer` and `source` as of `encode`.
    """
    folder, source = cache or run.workdir / "outputs", source or run.source
    keys = [config_hash(run.config), str(run.workdir)], [source.fingerprints, rows.index.tolist(), enhance, layer]
    network, content = (hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16] for key in keys)
    step = state(run)

    def compute():
        for other in folder.glob(f"{network}-*.npz"):  # those of other runs may lie beside them
            if not other.name.startswith(f"{network}-{step}-"):
                other.unlink(missing_ok=True)
        return encode(run, restored or restore(run), rows, enhance, layer, source)

    return source.cached(folder / f"{network}-{step}-{content}.npz", compute)


def encode(
    run: Run, state: train.State, rows: Rows, enhance: str = "none", layer: str = "", source: Source | None = None
) -> dict[str, np.ndarray]:
    """Outputs of every row, once each: the last batch is padded, and the padding cut off.

    Args:
        run: of the network.
        state: its state.
        rows: of `source`.
        enhance: a filter of features/enhance.py that the network sees the images through.
        layer: a path in the backbone, whose output is then the only one, its mean over places [N,D]; '' for the outputs of the
            objective.
        source: the data set of the images; None for that of the run. Raises ValueError where they are of another size.
    """
    model, source = train.model_of(run), source or run.source
    if source.image_shape != run.source.image_shape:
        shapes = ["x".join(map(str, shape[:2])) for shape in (run.source.image_shape, source.image_shape)]
        raise ValueError(f"{run.workdir}: its network takes images of {shapes[0]} pixels, these have {shapes[1]}")
    size = run.config.eval_batch
    sharding.check_batch("eval_batch", size, model.mesh)
    params, rest = model.weights(state)
    parts, pending = [], None
    for first in range(0, len(rows), size):
        index = rows.index[first : first + size]
        images = source.images(np.pad(index, (0, size - len(index)), mode="edge"))
        if enhance != "none":
            from fingerprint_jax.features.enhance import enhance as filtered  # scikit-image, which few runs need

            images = filtered(images, enhance)
        images = jax.device_put(images, sharding.split(model.mesh))
        # The batch before is read only now, so that the device works while this one was read from disk.
        running, pending = pending, (model.outputs(params, rest, images, layer), len(index))
        if running:
            parts.append(_to_host(*running))
    if pending:
        parts.append(_to_host(*pending))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _to_host(outputs: dict, count: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[:count] for name, value in jax.device_get(outputs).items()}
