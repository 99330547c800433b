"""The first stage of a training of two: a table of pairs of a synthetic and a real image, which the second samples from.

The paper of zhouyijiang1 says that the 50 most similar real images of each synthetic one, by Euclidean distance and by cosine, are
its candidates, and that spectral clustering leaves out the outliers. It prints neither the affinity, nor the number of clusters,
nor which of them stay. Here: the graph of the candidates of one synthetic image, with the affinity exp(-d^2 / m) of their unit
embeddings, d their Euclidean distance and m the median of d^2 over its pairs; `clusters` clusters; the one whose mean cosine to the
synthetic image is highest stays, so that two near-copies among fifty strangers are not what is left out.

No label is read. The real images are those that the run of the second stage is trained on: none that it holds out.
"""

from collections.abc import Iterator

import numpy as np
from sklearn.cluster import spectral_clustering

from fingerprint_jax import Config, methods
from fingerprint_jax.data import tables
from fingerprint_jax.data.source import Rows
from fingerprint_jax.estimators import search
from fingerprint_jax.runs import unchanged
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runtime import distributed
from fingerprint_jax.runtime.targets import Target
from fingerprint_jax.training import network_features, pair_table

FIELDS = {"candidates": int, "clusters": int, "member": dict}


def encoder(run: Run) -> Run:
    """The run of the network of the embeddings, one child for all folds, rounds and members that ask for it.

    Raises ValueError where it reads rows of the target split: some of them are held out.
    """
    config = run.config.member
    if config.method != "gradient" or methods.get("gradient").reads(config, run.target):
        raise ValueError(f"pairs.member: give a network that is trained on no row of {run.target}, one of num_steps=0")
    return run.shared("encoder", config, run.config.seed)


def check(run: Run) -> None:
    """The numbers, the images, and the network of the embeddings."""
    c = run.config
    if not c.candidates:
        raise ValueError("candidates=0 makes no pairs: use 1 or more")
    run.rows("train_generated")
    unchanged.require_window(encoder(run), run)
    methods.check(encoder(run))


def fit(run: Run) -> None:
    """Writes the table, after the network of the embeddings; returns at once where that is done."""
    c = run.config
    with methods.fitting(run):
        if pair_table.read(run) is not None:
            return
        source = encoder(run)
        methods.fit(source)
        generated, real = run.rows("train_generated"), run.training_rows(run.target)
        query, gallery = (_embedding(run, source, rows) for rows in (generated, real))

        def pairs() -> np.ndarray:
            return np.array(
                [
                    (row, position)
                    for row, positions in enumerate(candidates(query, gallery, c.candidates))
                    for position in pruned(query[row], gallery[positions], c.clusters, c.seed, positions)
                ]
            )

        row, position = distributed.first(pairs).T
        table = {"real": real.index[position], "generated": generated.index[row]}
        tables.write_arrays(pair_table.path(run), table)
        run.finish(pairs=len(row), sha256=pair_table.digest(table), encoder=str(source.workdir))


def _embedding(run: Run, source: Run, rows: Rows) -> np.ndarray:
    # Of whole splits, and beside the outermost run: the stages of all folds look at the same images.
    folder, found = run.shared_place / "features", {}
    for split in run.source.splits:
        whole = run.source.rows(split)
        if np.isin(rows.index, whole.index).any():
            values = network_features.features(source, whole, "embedding", folder, run.source)
            found |= dict(zip(whole.index.tolist(), values, strict=True))
    return np.stack([found[number] for number in rows.index.tolist()])


def candidates(query: np.ndarray, gallery: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows of the gallery among the `count` nearest of each query by Euclidean distance or by cosine: [M,D], [N,D] -> M of [k].

    Without repetition, increasing; k is `count` to twice as many, at most N.
    """
    count = min(count, len(gallery))
    by_distance = search.nearest(query, gallery, count)[1]
    by_cosine = search.nearest(_unit(query), _unit(gallery), count)[1]
    return [np.unique(both) for both in np.concatenate([by_distance, by_cosine], axis=1)]


def pruned(query: np.ndarray, found: np.ndarray, clusters: int, seed: int, positions: np.ndarray) -> np.ndarray:
    """Those of `positions` [k] that spectral clustering leaves to a query [D], given the embeddings [k,D]; the module says how.

    All of them where they are no more than the clusters, or equal.
    """
    found, query = _unit(found), _unit(query)
    square = np.maximum(2 - 2 * found @ found.T, 0)
    scale = np.median(square[~np.eye(len(square), dtype=bool)]) if len(found) > 1 else 0.0
    if clusters == 1 or len(found) <= clusters or scale <= 1e-6:
        return positions
    affinity, cosine = np.exp(-square / scale), found @ query
    labels = np.asarray(spectral_clustering(affinity, n_clusters=clusters, assign_labels="cluster_qr", random_state=seed))
    best = max(np.unique(labels).tolist(), key=lambda k: cosine[labels == k].mean())
    return positions[labels == best]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def state(run: Run) -> dict:
    """Nothing: config and data tell all."""
    return {}


def predict(run: Run, split: str) -> Predictions:
    """Raises ValueError: pairs are not scores."""
    raise ValueError(f"{run.workdir} is a table of pairs, which scores no image: give the run that was trained with it")


def reads(config: Config, split: str) -> bool:
    """Whether the pairs hold rows of a split."""
    return split in ("train_real", "train_generated")


def sources(run: Run) -> Iterator[methods.Read]:
    """The images of the pairs."""
    yield run, "may have read", methods.everything(run)


def inner(config: Config) -> list[Config]:
    """That of the network of the embeddings."""
    return [config.member]


def transductive(config: Config) -> list[str]:
    """Not by its own doing."""
    return []


def network(run: Run) -> Run | None:
    """The network of the embeddings."""
    return encoder(run)


def describe(run: Run, target: Target | None = None) -> list[tuple[str, str]]:
    """What the network of the embeddings would take."""
    source = encoder(run)
    return [("encoder", str(source.workdir)), *methods.describe(source, target)]
