"""Features of images, or of a network, reduced and given to an estimator. No estimator is stored: `predict` refits it."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fingerprint_jax import Config, estimators, features, methods
from fingerprint_jax.data import tables
from fingerprint_jax.data.source import Rows
from fingerprint_jax.estimators import Features, Gallery, flat, reduce
from fingerprint_jax.runs import unchanged
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runtime import distributed
from fingerprint_jax.runtime.names import duration
from fingerprint_jax.runtime.targets import Target
from fingerprint_jax.training import network_features

TIMED = 16  # images whose features a dry run measures
FIELDS = {
    "features": dict,
    "features.name": str,
    "features.run": str,
    "features.output": str,
    "estimator": dict,
    "estimator.name": str,
}
FIELDS |= {"gallery": dict, "pca": int, "whiten": bool}


def encoder(run: Run) -> Run | None:
    """The run whose network gives the features: a finished one, or the child `encoder`; None for features without a network.

    A network that reads no row of the target split is one child for all folds, rounds and members that ask for it.

    Raises ValueError for features, options or a run that cannot be.
    """
    options = run.config.features
    if options.name != "network":
        if options.run or options.output != "embedding":
            raise ValueError("features.run and features.output are of networks: set features.name=network, or leave them out")
        features.get(**of_images(run.config))
        return None
    features.get("pixels", enhance=options.enhance)  # an unknown filter is named before anything is trained
    if options.run:
        source = methods.load(options.run, field="features.run").kept_by(run)
        if source.config.task == run.config.task:  # a network of another task was trained on data of its own
            source.config.data_dir = run.config.data_dir
        if source.config.method != "gradient":
            raise ValueError(f"features.run={options.run!r} is a run of method {source.config.method}: give that of one network")
        if not source.done:  # its checkpoint would be another one each time it is asked for
            raise ValueError(f"features.run={options.run!r} is not finished: train it to its end before")
        return source
    if "member" not in run.config:
        raise ValueError("features.name='network' needs the run of a network here: give features.run")
    if methods.reads(run.config.member, run.target):
        return run.child("encoder", run.config.member, seed=run.config.seed, fold=run.config.data.fold)
    return run.shared("encoder", run.config.member, run.config.seed)


def reads(config: Config, split: str) -> bool:
    """Whether the gallery, or the network that gives the features, has rows of a split."""
    if methods.gallery_reads(config, split) or config.features.name != "network":
        return methods.gallery_reads(config, split)
    inner = methods.load(config.features.run).config if config.features.run else config.member
    return methods.reads(inner, split)


def of_images(config: Config) -> dict:
    """Name and options of a feature that no network gives."""
    own = ("run", "output", "beside", "cache_dir")
    return {name: value for name, value in config.features.items() if name not in own}


def _check_beside(config: Config) -> None:
    if config.features.beside:
        features.get(config.features.beside, config.features.enhance, field="features.beside")


def check(run: Run) -> None:
    """Features, reduction and estimator, for as many images as there are; and the network that gives the features."""
    c = run.config
    if c.whiten and not c.pca:
        raise ValueError("whiten=True scales principal components, and there are none: set pca")
    _estimator(c)
    _check_beside(c)
    source, gallery = encoder(run), run.gallery
    _require_classes(run, gallery)
    if source is not None:
        unchanged.require_window(source, run)
    if source is not None and not c.features.run:
        methods.check(source)
    if source is not None and c.features.run:
        _check_views(run, source)
    width = _shape(run, source)
    if c.pca:
        width = (min(c.pca, sum(map(len, gallery.values())), int(np.prod(width))),)
    one = np.zeros(width, np.float32)
    alike = {name: Features(np.broadcast_to(one, (len(rows), *width)), rows.labels, rows.index) for name, rows in gallery.items()}
    estimators.check(alike, **c.estimator.to_dict())


def _time_of_features(run: Run) -> tuple[str, str]:
    """A row on the time that the features of the gallery take, measured on a few of its images."""
    index = np.unique(np.concatenate([rows.index for rows in run.gallery.values()]))
    images, name, c = run.source.images(index[:TIMED]), "features of the gallery", run.config.features
    begin = time.perf_counter()
    features.get(**of_images(run.config))(images)
    if c.beside:
        features.get(c.beside, c.enhance)(images)
    each = (time.perf_counter() - begin) / len(images)
    took = f"{1e3 * each:.3g} ms an image in one process, measured on {len(images)}"
    return name, f"about {duration(each * len(index))} for {len(index):,} images, {took}; the estimator comes on top"


def _require_classes(run: Run, gallery: dict[str, Rows]) -> None:
    """Raises ValueError where no image of a class is left to learn from: the scores would be of the others, by their order."""
    if run.task.membership or "labelled" not in gallery:
        return
    names = run.source.summary["classes"]
    if (gallery["labelled"].labels < 0).any():  # of which the estimator says more
        return
    if missing := [name for label, name in enumerate(names) if label not in gallery["labelled"].labels]:
        why = "they are held out, or validate, all together" if run.config.data.folds or run.config.data.valid else "there is none"
        raise ValueError(f"gallery.labelled has no image of class {missing[0]!r} ({why}): use other data.folds and data.valid")


def _shape(run: Run, source: Run | None) -> tuple[int, ...]:
    """The shape of the features of an image: those of one are computed, of a network only their shapes."""
    c, image = run.config.features, run.source.images(np.array([0]))
    found = (
        [network_features.shape(source, c.output, run.source)]
        if source
        else [features.get(**of_images(run.config))(image).shape[1:]]
    )
    if not c.beside:
        return found[0]
    found.append(features.get(c.beside, c.enhance)(image).shape[1:])
    return (sum(int(np.prod(shape)) for shape in found),)


def fit(run: Run) -> None:
    """Trains the encoder where it is a child, and fills the cache with the features of the gallery."""
    with methods.fitting(run):
        source = encoder(run)
        if source is not None:
            if not run.config.features.run:
                methods.fit(source)
            _check_views(run, source)
        for rows in run.gallery.values():
            _features(run, rows)
        known = methods.named(source) if source and run.config.features.run else {}
        run.finish(encoder=str(source.workdir) if source else None, named=known)


def state(run: Run) -> dict:
    """The state of the encoder; nothing where there is none, since config and data then tell all."""
    source = encoder(run)
    if source is None:
        return {}
    named = bool(run.config.features.run)
    return {str(source.workdir): methods.named_state(source, run) if named else methods.state(source)}


def predict(run: Run, split: str) -> Predictions:
    """Scores [N,K] of the estimator, given the gallery of the run."""
    # Scored on other data, it still learns from its own.
    own = run.own
    asked = own is not run or run.packed(split) == run.target
    if asked and not own.same_target and methods.gallery_reads(run.config, run.target):
        own.refuse_data(run.target)
    if run.config.features.run and (source := encoder(own)):  # which may have been trained anew since
        _check_views(own, source)
    rows = run.rows(split)
    query, gallery = compared(run, rows)
    found = distributed.first(lambda: np.asarray(scores(run.config, query, gallery, run.config.seed)))
    return Predictions(rows.ids, found, False)


def compared(run: Run, rows: Rows) -> tuple[Features, Gallery]:
    """The features of rows, and those of the gallery `run.own.gallery` that they are compared with, in its order."""
    own = run.own
    known = own.gallery
    _require_classes(own, known)
    gallery = {name: Features(_features(own, part), part.labels, part.index) for name, part in known.items()}
    return Features(_features(run, rows), rows.labels, rows.index if own is run else _numbers(run, own, known, rows)), gallery


def _numbers(run: Run, own: Run, gallery: dict[str, Rows], rows: Rows) -> np.ndarray:
    """Record numbers [N], in the data a run was started with, of images of others that its gallery has too; -1 for the rest.

    An image is not compared with itself, whatever its number there. Only real images are real ones again: a synthetic image with
    the pixels of a real one is a copy, which is looked for.
    """
    found = np.full(len(rows), -1)
    if own.source.image_shape != run.source.image_shape:
        return found
    made = [own.source.rows(split).index for split in own.source.splits if split.endswith("generated")]
    index = np.unique(np.concatenate([known.index for known in gallery.values()]))
    alike = np.isin(index, np.concatenate([np.array([], int), *made])) == run.target.endswith("generated")
    known = dict(zip(own.source.digests(index[alike]).tolist(), index[alike].tolist(), strict=True))
    return np.array([known.get(digest, -1) for digest in run.source.digests(rows.index).tolist()], int)


def scores(config: Config, query: Features, gallery: Gallery, seed: int) -> np.ndarray:
    """Scores [M,K] of the queries by the reduction and the estimator of a config, given features of the images."""
    if config.pca:
        query, gallery = _reduced(query, gallery, config.pca, config.whiten, seed)
    return _estimator(config)(query, gallery, seed=seed)


def _reduced(query: Features, gallery: Gallery, components: int, whiten: bool, seed: int) -> tuple[Features, Gallery]:
    """Principal components of all the gallery."""
    x, q = reduce.pca(np.concatenate([flat(known) for known in gallery.values()]), flat(query), components, seed, whiten)
    parts = np.split(x, np.cumsum([len(known.index) for known in gallery.values()])[:-1])
    reduced = {name: dataclasses.replace(gallery[name], values=part) for name, part in zip(gallery, parts, strict=True)}
    return dataclasses.replace(query, values=q), reduced


def _estimator(config: Config) -> Callable[..., np.ndarray]:
    return estimators.get(**config.estimator.to_dict())


def _features(run: Run, rows: Rows) -> np.ndarray:
    c, source, options = run.config.features, encoder(run), of_images(run.config)
    name = options.pop("name")
    if source:
        unchanged.require_window(source, run)
    # Whoever wants nothing that is kept does not write where a config leads, either.
    cache = Path(c.cache_dir) if c.cache_dir and not tables.all_anew() else run.shared_place / "features"
    if source and methods.reads(source.config, run.target):
        found = network_features.features(source, rows, c.output, run.place / "features", run.source, c.enhance)
    elif source:
        folder = run.shared_place / "features"
        found = _of_splits(
            run, rows, lambda whole: network_features.features(source, whole, c.output, folder, run.source, c.enhance)
        )
    else:
        found = _of_splits(run, rows, lambda whole: features.extract(run, whole, name, options, cache))
    if not c.beside:
        return found
    beside = _of_splits(run, rows, lambda whole: features.extract(run, whole, c.beside, {"enhance": c.enhance}, cache))
    return side_by_side([found, beside])


def side_by_side(found: list[np.ndarray]) -> np.ndarray:
    """Several features of the same images as one vector each, [N, ...] -> [N,D]; one alone keeps its shape."""
    return found[0] if len(found) == 1 else np.concatenate([x.reshape(len(x), -1) for x in found], axis=1)


def _of_splits(run: Run, rows: Rows, extract: Callable[[Rows], np.ndarray]) -> np.ndarray:
    # Of whole splits, and beside the outermost run: the children of all folds look at the same images.
    parts = []
    for split in run.source.splits:
        whole = run.source.rows(split)
        if len(wanted := np.flatnonzero(np.isin(rows.index, whole.index))):
            parts.append((wanted, extract(whole)[np.searchsorted(whole.index, rows.index[wanted])]))
    out = np.empty((len(rows), *parts[0][1].shape[1:]), np.float32)
    for wanted, values in parts:
        out[wanted] = values
    return out


def _check_views(run: Run, source: Run) -> None:
    if seen := methods.seen(run, source):
        raise ValueError(
            f"features.run={str(source.workdir)!r} was trained on {seen} images that this run holds out:"
            " give both the same data, data.folds, data.fold, data.valid, data.sequester and data.split_seed"
        )


def sources(run: Run) -> Iterator[methods.Read]:
    """The gallery, and what the network of the features has read."""
    yield from methods.gallery_sources(run, "labelled")
    if source := encoder(run):
        yield from methods.sources(source)


def inner(config: Config) -> list[Config]:
    """That of the network of the features."""
    if config.features.run:
        return [methods.load(config.features.run).config]
    return [config.member] if "member" in config else []


def transductive(config: Config) -> list[str]:
    """What its estimator says of itself."""
    why = estimators.registry("TRANSDUCTIVE").get(config.estimator.name)
    return [f"estimator.name={config.estimator.name!r}: {why}"] if why else []


def network(run: Run) -> Run | None:
    """The network of the features."""
    source = encoder(run)
    return methods.network(source) if source else None


def describe(run: Run, target: Target | None = None) -> list[tuple[str, str]]:
    """What its encoder would take."""
    source = encoder(run)
    if source is None:
        return [("features", run.config.features.name), _time_of_features(run)]
    return [("encoder", str(source.workdir)), *methods.describe(source, target)]
