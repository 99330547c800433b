"""A network trained by gradients."""

import json

import jax
import numpy as np

from fingerprint_jax import checkpoint, metrics, sharding, tables, train
from fingerprint_jax.data.source import Rows
from fingerprint_jax.run import Predictions, Run


def fit(run: Run) -> None:
    """Trains to `num_steps`; returns at once where that is done."""
    validates = bool(run.config.data.valid)
    if run.config.best and not validates:
        raise ValueError(f"config.best={run.config.best!r} needs a validation split: set data.valid")

    def evaluate(state):
        if not validates:
            return {}
        rows = run.rows("valid")
        scores = _scores(run, state, rows)
        return metrics.quick(rows.labels, scores)

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
    return Predictions(rows.ids, _scores(run, restore(run), rows), train.model_of(run).objective.probabilities)


def restore(run: Run) -> train.State:
    """The state at the checkpoint that `run.step` names."""
    return train.restore(run, checkpoint.Checkpoints(run.workdir, run.config.best), run.step)[1]


def _scores(run: Run, state: train.State, rows: Rows) -> np.ndarray:
    model = train.model_of(run)
    gallery = {}
    for name, splits in run.config.gallery.items():
        # A test split may not be there: an auditor owns both sides.
        present = [s for s in splits if s.partition(":")[0] in run.source.splits]
        if not present:
            raise ValueError(f"gallery.{name}: none of {list(splits)} is in the data set ({', '.join(run.source.splits)})")
        stream = Rows.concatenate([run.rows(split) for split in present])
        gallery[name] = encode(run, state, stream) | {"label": stream.labels, "index": stream.index}
    query = encode(run, state, rows) | {"index": rows.index}
    net = model.merge(*model.weights(state))
    return np.asarray(model.objective.scores(net, query, gallery), np.float32)


def encode(run: Run, state: train.State, rows: Rows) -> dict[str, np.ndarray]:
    """Outputs of every row, once each: the last batch is padded, and the padding cut off."""
    model = train.model_of(run)
    size = run.config.eval_batch
    sharding.check_batch("eval_batch", size, model.mesh)
    params, rest = model.weights(state)
    parts, pending = [], None
    for first in range(0, len(rows), size):
        index = rows.index[first : first + size]
        images = run.source.images(np.pad(index, (0, size - len(index)), mode="edge"))
        images = jax.device_put(images, sharding.split(model.mesh))
        # The batch before is read only now, so that the device works while this one was read from disk.
        running, pending = pending, (model.outputs(params, rest, images), len(index))
        if running:
            parts.append(_to_host(*running))
    if pending:
        parts.append(_to_host(*pending))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _to_host(outputs: dict, count: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[:count] for name, value in jax.device_get(outputs).items()}
