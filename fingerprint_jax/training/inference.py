"""What a network says of images, at a checkpoint."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from fingerprint_jax.data import augment
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.config import config_hash
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import distributed, plugins, sharding
from fingerprint_jax.training.model import Model, State, model_of

_normalize = jax.jit(augment.normalize, static_argnums=1)


def step_of(run: Run) -> int:
    """The step of the checkpoint that `run.step` names."""
    return checkpoint.Checkpoints(run.workdir, run.config.best).resolve(run.step)


def restore(run: Run, which: str = "", whole: bool = False) -> tuple[int, State]:
    """Step and state of an undamaged checkpoint of a run: `which`, or the one that `run.step` names.

    Without what only a training needs, the state of the optimizer, unless the `whole` is asked for.
    """
    model, checkpoints = model_of(run), checkpoint.Checkpoints(run.workdir, run.config.best)
    return checkpoints.restore(which or run.step, model.abstract, without="" if whole else "opt")


def outputs(
    run: Run,
    rows: Rows,
    cache: Path | None = None,
    restored: State | None = None,
    enhance: str = "none",
    layer: str = "",
    source: Source | None = None,
) -> dict[str, np.ndarray]:
    """`encode` at the checkpoint that `run.step` names, computed once: galleries are read by every split and by the page.

    Files in `cache`, else in `outputs/` of the run's `place`, go by checkpoint, config, content of the data and rows; those of
    another checkpoint are removed. `restored` is the state at that checkpoint, read where it is needed and not given; `enhance`,
    `layer` and `source` as of `encode`.
    """
    folder, source = cache or run.place / "outputs", source or run.source
    code = [found] if (found := plugins.code(run.config)) else []
    keys = [config_hash(run.config), str(run.workdir)], [source.fingerprints, rows.index.tolist(), enhance, layer, *code]
    network, content = (hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16] for key in keys)
    step = step_of(run)
    weights = f"{network}-{step}-{checkpoint.Checkpoints(run.workdir).identity(step)}"

    def clear() -> None:
        for other in folder.glob(f"{network}-*.npz"):  # those of other runs may lie beside them
            if not other.name.startswith(f"{weights}-"):
                other.unlink(missing_ok=True)

    def compute() -> dict[str, np.ndarray]:
        distributed.first(run.refuse_links)
        distributed.first(clear)
        return encode(run, restored or restore(run)[1], rows, enhance, layer, source)

    return source.cached(folder / f"{weights}-{content}.npz", compute, rows)


def encode(
    run: Run, state: State, rows: Rows, enhance: str = "none", layer: str = "", source: Source | None = None
) -> dict[str, np.ndarray]:
    """Outputs of every row, once each: the last batch is padded, and the padding cut off. Each process reads its block of a batch.

    Args:
        run: of the network.
        state: its state.
        rows: of `source`.
        enhance: a filter of features/enhance.py that the network sees the images through.
        layer: a path in the backbone, whose output is then the only one, its mean over places [N,D]; '' for the outputs of the
            objective.
        source: the data set of the images; None for that of the run. Raises ValueError where they are of another size.
    """
    model, source = model_of(run), source or run.source
    _check_size(run, source)
    size = run.config.eval_batch
    sharding.check_batch("eval_batch", size, model.mesh)
    params, rest = model.weights(state)
    parts, pending = [], None
    for first in range(0, len(rows), size):
        index = rows.index[first : first + size]
        own = sharding.block(size, jax.process_index(), jax.process_count())
        images = source.images(np.pad(index, (0, size - len(index)), mode="edge")[own])
        if enhance != "none":
            from fingerprint_jax.features.enhance import enhance as filtered  # scikit-image, which few runs need

            images = filtered(images, enhance)
        images = jax.make_array_from_process_local_data(sharding.split(model.mesh), images)
        # The batch before is read only now, so that the device works while this one was read from disk.
        with jax.transfer_guard("disallow"):
            running, pending = pending, (model.outputs(params, rest, images, layer), len(index))
        if running:
            parts.append(_to_host(*running))
    if pending:
        parts.append(_to_host(*pending))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def shapes(run: Run, source: Source, layer: str = "") -> dict[str, tuple[int, ...]]:
    """The shapes of what `encode` gives for one image, without computing it; raises ValueError as it does."""
    _check_size(run, source)
    return shapes_of_outputs(run, layer)


def scores(run: Run, state: State, rows: Rows, encode: Callable[[Rows], dict]) -> np.ndarray:
    """Scores [N,K] of rows by the objective of a run, beside its gallery; `encode` gives the outputs of rows."""
    model = model_of(run)
    images = functools.partial(images_of, run)
    gallery = {}
    for name, stream in run.gallery.items():
        gallery[name] = encode(stream) | {"label": stream.labels, "index": stream.index, "images": images}
    query = encode(rows) | {"index": rows.index, "images": images}

    def computed() -> np.ndarray:
        net = model.merge(*sharding.copied(model.weights(state), sharding.own(model.mesh)))
        return np.asarray(model.objective.scores(net, query, gallery), np.float32)

    return distributed.first(computed)


def images_of(run: Run, index: np.ndarray) -> jax.Array:
    """Records of the run by number, as the network takes them: [N] -> float32 [N,H,W,C] on the devices of this process.

    Split over them where N allows.
    """
    mesh = sharding.own(model_of(run).mesh)
    place = sharding.replicated(mesh) if len(index) % mesh.size else sharding.split(mesh)
    return _normalize(jax.device_put(run.source.images(index), place), run.config.data.normalize)


def _check_size(run: Run, source: Source) -> None:
    if source.image_shape != run.source.image_shape:
        shapes = ["x".join(map(str, shape[:2])) for shape in (run.source.image_shape, source.image_shape)]
        raise ValueError(f"{run.workdir}: its network takes images of {shapes[0]} pixels, these have {shapes[1]}")


def _to_host(outputs: dict, count: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[:count] for name, value in jax.device_get(outputs).items()}


def shapes_of_outputs(run: Run, layer: str = "") -> dict[str, tuple[int, ...]]:
    """Of what `Model.outputs` gives for one image: it is traced for a batch, and nothing is computed."""
    model = model_of(run)
    return {name: value.shape[1:] for name, value in model.outputs.trace(*arguments(run, model), layer).out_info.items()}


def arguments(run: Run, model: Model) -> tuple:
    """What `Model.outputs` takes before the layer, without content: parameters, the rest, a batch of images."""
    params, rest = model.weights(model.abstract)
    shape = (run.config.eval_batch, *run.source.image_shape)
    return params, rest, jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding.split(model.mesh))
