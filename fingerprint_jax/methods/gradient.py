"""A network trained by gradients."""

import functools
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from fingerprint_jax import Config, methods, objectives
from fingerprint_jax.data import tasks
from fingerprint_jax.runs import checkpoint, unchanged
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runs.views import PARTS
from fingerprint_jax.runtime import names
from fingerprint_jax.runtime.targets import Target
from fingerprint_jax.training import cost, inference, loop, pair_table
from fingerprint_jax.training.model import model_of

FIELDS = dict.fromkeys(("data.streams", "augment", "views", "backbone", "objective", "optimizer", "gallery"), dict)
FIELDS |= dict.fromkeys(("num_steps", "eval_every", "checkpoint_every", "log_every", "steps_per_dispatch", "eval_batch"), int)
FIELDS |= dict.fromkeys(
    ("best", "init_from", "backbone.name", "backbone.weights", "objective.name", "data.cache", "data.normalize"), str
)
FIELDS |= {"data.balanced": bool, "data.workers": int}


def check(run: Run) -> None:
    """The network, its weights, a step of its training, the children before it and what it begins with."""
    c = run.config
    if c.best:
        if not c.data.valid:
            of = "" if run.outermost == run.workdir else " of the ensemble"
            raise ValueError(f"config.best={c.best!r} needs a validation split: set data.valid{of}")
        checkpoint.parse_best(c.best)
        names.check("config.best", c.best, (f"{mode}:{run.task.watched}" for mode in ("max", "min")))
    elif c.get("patience"):
        raise ValueError(f"patience={c.patience}: name the figure of `valid` that is to get better, best='max:{run.task.watched}'")
    if c.data.valid and issubclass(objectives.of(c.objective.name), objectives.Generative) and not run.task.membership:
        raise ValueError(
            f"data.valid={c.data.valid}: a generator answers no question of the task {c.task}, and `valid` asks one: use 0"
        )
    if first := pair_table.stage(run):
        methods.check(first)
    _check_origin(run)
    source = None if c.init_from else origin(run)
    if source:
        methods.check(source)
    elif c.objective.get("latents") and not c.init_from:
        raise ValueError("objective.latents=True: the autoencoder has to be trained first, set pretrain.num_steps")
    _ = run.gallery
    try:
        loop.check_fit(run)
    except AttributeError as error:
        if not isinstance(error.obj, ConfigDict) or error.obj != c.objective:
            raise
        raise ValueError(f"objective.{error.name} is missing: {c.objective.name} needs it") from error


def fit(run: Run) -> None:
    """Trains to `num_steps`, after the children `pretrain` and `stage1` where there are; returns at once where that is done."""
    validates = bool(run.config.data.valid)

    def evaluate(state: dict) -> dict[str, float]:
        if not validates:
            return {}
        rows = run.rows("valid")
        scores = inference.scores(run, state, rows, functools.partial(inference.encode, run, state))
        from fingerprint_jax.stats import score_metrics  # here, as it is a quarter of a start that ends with one line

        return score_metrics.quick(rows.labels, methods.by_class(run, scores), run.task.watched)

    with methods.fitting(run):
        _check_same_origin(run)
        if not run.done:
            source = None
            if not checkpoint.Checkpoints(run.workdir).begun():
                _check_origin(run)  # a run that was stopped before its first checkpoint finds what lies there now
                if (source := origin(run)) and not run.config.init_from:
                    fit(source)
            if first := pair_table.stage(run):
                methods.fit(first)
            loop.train(run, evaluate, source)
            best = checkpoint.Checkpoints(run.workdir, run.config.best).resolve("best")
            last = checkpoint.steps(run.workdir)[-1]  # before num_steps where `patience` ended the training
            run.finish(steps=last, best=best)


def origin(run: Run) -> Run | None:
    """The run whose network this one begins with: that of `init_from`, else the child `pretrain`, else None.

    The child is one for all folds, rounds and members that ask for it. Raises ValueError for a run that cannot be.
    """
    c = run.config
    if c.init_from:
        source = methods.load(c.init_from, field="init_from")
        if source.config.method != "gradient" or not source.done:
            raise ValueError(f"init_from={c.init_from!r} is no finished run of one network: give that of one of method gradient")
        if source.config.task == c.task:  # a network of another task was trained on data of its own
            source.config.data_dir = c.data_dir
        return source
    if "pretrain" not in c or not c.pretrain.num_steps:
        return None
    if c.pretrain.method != "gradient":
        raise ValueError(f"pretrain.method={c.pretrain.method!r} trains no network to begin with: use gradient")
    child = run.shared("pretrain", c.pretrain, c.pretrain.seed)
    unchanged.require_child(child)
    return child


def _check_same_origin(run: Run) -> None:
    """Raises ValueError where the child `pretrain` was trained on other data than the config now names; gone ones are no others."""
    child = None if run.config.init_from else origin(run)
    if child is None or not (child.workdir / "provenance.json").exists():
        return
    try:
        now = child.fingerprints
    except ValueError:
        return
    if now != child.provenance["fingerprints"]:
        raise ValueError(f"pretrain: {child.workdir} was trained on other data than those of {child.config.data_dir}")


def _check_origin(run: Run) -> None:
    gone = run.config.init_from and not (Path(run.config.init_from) / "config.json").exists()
    if gone and checkpoint.Checkpoints(run.workdir).begun():  # which a resume needs no more
        return
    source = origin(run)
    if source is None:
        return
    unchanged.require_window(source, run)
    if seen := methods.seen(run, source):
        field = f"init_from={run.config.init_from!r}" if run.config.init_from else "pretrain"
        raise ValueError(f"{field}: its network is trained on {seen} images that this run holds out")


def state(run: Run) -> int:
    """The step that `predict` uses."""
    return inference.step_of(run)


def predict(run: Run, split: str) -> Predictions:
    """Scores of a split from the checkpoint that `run.step` names; its gallery is of the data that are scored.

    Raises ValueError where that has the labels of the very images that are asked about.
    """
    if run.packed(split) == run.target and not run.same_target and methods.gallery_reads(run.config, run.target):
        raise ValueError(
            f"{run.workdir} compares images with {run.target} by its labels: those of {run.config.data_dir}, which it was not"
            " started with, would be compared with themselves; score another split of that"
        )
    rows = run.rows(split)
    _, restored = inference.restore(run)
    scores = inference.scores(run, restored, rows, functools.partial(inference.outputs, run, restored=restored))
    return Predictions(rows.ids, scores, model_of(run).objective.probabilities)


def reads(config: Config, split: str) -> bool:
    """Whether a stream, the gallery, the choice of the checkpoint or the network it begins with has rows of a split.

    What another run has read, that of `init_from`, is not looked up: it may be gone.
    """
    own = bool(config.num_steps and split in _splits(config)) or methods.gallery_reads(config, split)
    own = own or bool(config.best and split in (tasks.of(config.task).target, *PARTS))
    if own or config.init_from or "pretrain" not in config or not config.pretrain.num_steps:
        return own or bool(config.init_from)
    return config.pretrain.task == config.task and reads(config.pretrain, split)


def _splits(config: Config) -> list[str]:
    """The packed splits that the streams of a config may be of."""
    streams = [stream.partition(":")[0] for stream in config.data.streams]
    return [*streams, *(f"train_{stream}" for stream in streams)]


def sources(run: Run) -> Iterator[methods.Read]:
    """Its streams and gallery, the choice of the checkpoint, and what the network it begins with has read."""
    c = run.config
    for stream in c.data.streams if c.num_steps else ():
        yield run, methods.TRAINED, methods.present(run, [run.split_of(stream)])
    yield from methods.gallery_sources(run)
    if c.best:
        yield run, "chose its checkpoint by", functools.partial(run.rows, "valid")
    if gone := _gone(run):
        yield run, gone, methods.everything(run)
    elif begun := origin(run):
        yield from methods.sources(begun)


def _gone(run: Run) -> str:
    """Why it is not known what the network has read that a run began with: it is not there, or another one is; '' where it is."""
    path = run.config.init_from
    if not path:
        return ""
    if not (Path(path) / "config.json").exists():
        return f"{methods.BEGAN} {path}, which is gone and may have read"
    begins = run.provenance.get("begins") if (run.workdir / "provenance.json").exists() else None
    there = checkpoint.Checkpoints(Path(path))
    if begins and begins not in [there.identity(step) for step in there.manifests()]:
        return f"{methods.BEGAN} another network than that in {path} now, which may have read"
    return ""


def inner(config: Config) -> list[Config]:
    """None: what it begins with is no part of its scores."""
    return []


def transductive(config: Config) -> list[str]:
    """Not by its own doing."""
    return []


def network(run: Run) -> Run:
    """Itself."""
    return run


def _trained(run: Run) -> str:
    """What a run of a network was, or is to be, trained for, in words."""
    most = "at most " if run.config.get("patience") and not run.done else ""
    return f"{run.workdir}, {most}{run.steps:,} steps on {run.config.task}"


def describe(run: Run, target: Target | None = None) -> list[tuple[str, str]]:
    """Parameters, FLOPs and memory of a step; it is compiled, and nothing is trained."""
    c, model = run.config, model_of(run)
    images = sum(c.data.streams.values())
    params, state = model.abstract["params"], model.abstract
    source = origin(run)
    return [
        *([("begins with", _trained(source))] if source else []),
        ("parameters", f"{sum(x.size for x in params.values()):,}"),
        ("statistics and queues", f"{sum(x.size for x in state['rest'].values()):,}"),
        ("images a step", f"{images:,} of {'x'.join(map(str, run.source.image_shape))}"),
        *(cost.on_target(run, target) if target else cost.here(run)),
        ("steps", f"{'at most ' if c.get('patience') else ''}{c.num_steps:,}, {c.num_steps * images:,} images"),
    ]
