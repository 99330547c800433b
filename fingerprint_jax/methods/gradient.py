"""A network trained by gradients."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from fingerprint_jax import Config, checkpoint, checks, distributed, files, methods, names, score_metrics, sharding, train
from fingerprint_jax.data import augment
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.model import State, model_of
from fingerprint_jax.run import PARTS, TARGET, Predictions, Run, config_hash

_normalize = jax.jit(augment.normalize, static_argnums=1)

FIELDS = dict.fromkeys(("data.streams", "augment", "views", "backbone", "objective", "optimizer", "gallery"), dict)
FIELDS |= dict.fromkeys(("num_steps", "eval_every", "checkpoint_every", "log_every", "steps_per_dispatch", "eval_batch"), int)
FIELDS |= dict.fromkeys(
    ("best", "init_from", "backbone.name", "backbone.weights", "objective.name", "data.cache", "data.normalize"), str
)
FIELDS |= {"data.balanced": bool, "data.workers": int}


def check(run: Run) -> None:
    """The network, its weights, a step of its training, the children before it and what it begins with."""
    c, stages = run.config, methods.get("pairs")
    if c.best:
        if not c.data.valid:
            raise ValueError(f"config.best={c.best!r} needs a validation split: set data.valid")
        checkpoint.parse_best(c.best)
        names.check("config.best", c.best, (f"{mode}:{score_metrics.QUICK[c.task]}" for mode in ("max", "min")))
    if first := stages.stage(run):
        checks.check(first)
    _check_origin(run)
    if not c.init_from and (source := origin(run)):
        checks.check(source)
    _ = run.gallery
    train.check_fit(run)


def fit(run: Run) -> None:
    """Trains to `num_steps`, after the children `pretrain` and `stage1` where there are; returns at once where that is done."""
    validates = bool(run.config.data.valid)

    def evaluate(state):
        if not validates:
            return {}
        rows = run.rows("valid")
        scores = _scores(run, state, rows, functools.partial(encode, run, state))
        return score_metrics.quick(rows.labels, scores, run.config.task)

    stages = methods.get("pairs")
    with run.fitting():
        if not run.done:
            source = None
            if not checkpoint.Checkpoints(run.workdir).begun() and (source := origin(run)) and not run.config.init_from:
                fit(source)
            if first := stages.stage(run):
                stages.fit(first)
            train.train(run, evaluate, source)
            files.write_text(run.workdir / "done", json.dumps({"steps": run.config.num_steps}))


def origin(run: Run) -> Run | None:
    """The run whose network this one begins with: that of `init_from`, else the child `pretrain`, else None.

    The child is one for all folds, rounds and members that ask for it. Raises ValueError for a run that cannot be.
    """
    c = run.config
    if c.init_from:
        source = Run.load(c.init_from, field="init_from")
        if source.config.method != "gradient" or not source.done:
            raise ValueError(f"init_from={c.init_from!r} is no finished run of one network: give that of one of method gradient")
        if source.config.task == c.task:  # a network of another task was trained on data of its own
            source.config.data_dir = c.data_dir
        return source
    if "pretrain" not in c or not c.pretrain.num_steps:
        return None
    if c.pretrain.method != "gradient":
        raise ValueError(f"pretrain.method={c.pretrain.method!r} trains no network to begin with: use gradient")
    return run.shared("pretrain", c.pretrain, c.pretrain.seed)


def _check_origin(run: Run) -> None:
    gone = run.config.init_from and not (Path(run.config.init_from) / "config.json").exists()
    if gone and checkpoint.Checkpoints(run.workdir).begun():  # which a resume needs no more
        return
    source = origin(run)
    while source is not None:
        streams = {name for stream in source.config.data.streams for name in (stream, f"train_{stream}")}
        if source.config.num_steps and source.config.task == run.config.task and run.target in streams:
            if seen := methods.seen(run, source):
                field = f"init_from={run.config.init_from!r}" if run.config.init_from else "pretrain"
                raise ValueError(f"{field}: its network is trained on {seen} images that this run holds out")
        source = origin(source)


def state(run: Run) -> int:
    """The step that `predict` uses."""
    return checkpoint.Checkpoints(run.workdir, run.config.best).resolve(run.step)


def predict(run: Run, split: str) -> Predictions:
    """Scores of a split from the checkpoint that `run.step` names."""
    rows = run.rows(split)
    restored = restore(run)
    scores = _scores(run, restored, rows, functools.partial(outputs, run, restored=restored))
    return Predictions(rows.ids, scores, model_of(run).objective.probabilities)


def reads(config: Config, split: str) -> bool:
    """Whether a stream, the gallery, the choice of the checkpoint or the network it begins with has rows of a split.

    What another run has read, that of `init_from`, is not looked up: it may be gone.
    """
    streams = config.data.streams if config.num_steps else ()
    own = any(split in (name, f"train_{name}") for name in streams) or methods.gallery_reads(config, split)
    own = own or bool(config.best and split in (TARGET[config.task], *PARTS))
    if own or config.init_from or "pretrain" not in config or not config.pretrain.num_steps:
        return own or bool(config.init_from)
    return config.pretrain.task == config.task and reads(config.pretrain, split)


def restore(run: Run) -> State:
    """The state at the checkpoint that `run.step` names."""
    return train.restore(run, checkpoint.Checkpoints(run.workdir, run.config.best), run.step)[1]


def _scores(run: Run, state: State, rows: Rows, encode: Callable[[Rows], dict]) -> np.ndarray:
    model = model_of(run)
    images = functools.partial(_images, run)
    gallery = {}
    for name, stream in run.gallery.items():
        gallery[name] = encode(stream) | {"label": stream.labels, "index": stream.index, "images": images}
    query = encode(rows) | {"index": rows.index, "images": images}

    def scores() -> np.ndarray:
        net = model.merge(*sharding.copied(model.weights(state), sharding.own(model.mesh)))
        return np.asarray(model.objective.scores(net, query, gallery), np.float32)

    return distributed.first(scores)


def _images(run: Run, index: np.ndarray) -> jax.Array:
    """Records of the run by number, as the network takes them: [N] -> float32 [N,H,W,C] on the devices of this process.

    Split over them where N allows.
    """
    mesh = sharding.own(model_of(run).mesh)
    place = sharding.replicated(mesh) if len(index) % mesh.size else sharding.split(mesh)
    return _normalize(jax.device_put(run.source.images(index), place), run.config.data.normalize)


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

    Files in `cache`, else in the run's `outputs/`, go by checkpoint, config, content of the data and rows; those of another
    checkpoint are removed. `restored` is the state at that checkpoint, read where it is needed and not given; `enhance`,
    `layer` and `source` as of `encode`.
    """
    folder, source = cache or run.workdir / "outputs", source or run.source
    keys = [config_hash(run.config), str(run.workdir)], [source.fingerprints, rows.index.tolist(), enhance, layer]
    network, content = (hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16] for key in keys)
    step = state(run)

    def clear():
        for other in folder.glob(f"{network}-*.npz"):  # those of other runs may lie beside them
            if not other.name.startswith(f"{network}-{step}-"):
                other.unlink(missing_ok=True)

    def compute():
        distributed.first(run.refuse_links)
        distributed.first(clear)
        return encode(run, restored or restore(run), rows, enhance, layer, source)

    return source.cached(folder / f"{network}-{step}-{content}.npz", compute, len(rows))


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
        running, pending = pending, (model.outputs(params, rest, images, layer), len(index))
        if running:
            parts.append(_to_host(*running))
    if pending:
        parts.append(_to_host(*pending))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def shapes(run: Run, source: Source, layer: str = "") -> dict[str, tuple[int, ...]]:
    """The shapes of what `encode` gives for one image, without computing it; raises ValueError as it does."""
    _check_size(run, source)
    return train.shapes_of_outputs(run, layer)


def _check_size(run: Run, source: Source) -> None:
    if source.image_shape != run.source.image_shape:
        shapes = ["x".join(map(str, shape[:2])) for shape in (run.source.image_shape, source.image_shape)]
        raise ValueError(f"{run.workdir}: its network takes images of {shapes[0]} pixels, these have {shapes[1]}")


def _to_host(outputs: dict, count: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[:count] for name, value in jax.device_get(outputs).items()}
