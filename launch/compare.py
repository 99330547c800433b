"""Finished runs side by side: what one has on a split, the p of several together, and what they differ in."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_jax import methods
from fingerprint_jax.evaluation import decide, lineage
from fingerprint_jax.evaluation.results import NOTES, figures
from fingerprint_jax.runs.config import config_hash, identity
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files, plugins
from fingerprint_jax.stats import metrics, permutation, score_metrics
from launch import local

BOUNDS = {"accuracy": (0, 1), "cohen_kappa": (-1, 1), "auc": (0, 1)}  # of the figures that can be compared
LISTED = 3  # of what runs differ in


@dataclasses.dataclass(frozen=True)
class Scored:
    """A finished row on one split, its N images in the order of their records."""

    ids: np.ndarray  # [N] str
    labels: np.ndarray  # [N] int
    predicted: np.ndarray  # [N] int, decided
    scores: np.ndarray  # [N, K]
    groups: np.ndarray | None  # [N]; None where every image is a group of its own
    num_classes: int
    notes: Sequence[str] = ()  # what `evaluate` says of the split: why its figures may be too good, or need the images beforehand
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)  # of what it was scored on, and of what it began with
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # its identity
    membership: bool = True  # column 0 of the scores is that of class 1; else there is a column a class

    @property
    def positive(self) -> np.ndarray:
        """Of two classes the score of the second: [N]."""
        return self.scores[:, 0 if self.membership else 1]

    @staticmethod
    def load(workdir: Path, split: str, data_dir: str = "") -> "Scored":
        """From the run's own predictions and decision; `data_dir` is other data. Raises ValueError where labels are unknown."""
        run = methods.load(workdir, data_dir=data_dir)
        rows, predictions = run.rows(split), methods.predict(run, split)
        if (rows.labels < 0).any():
            raise ValueError(f"split {split} of {workdir} has unknown labels: there is nothing to score")
        groups = rows.groups if len(np.unique(rows.groups)) < len(rows) else None
        decided = decide.decide(run, split, predictions)
        of = {"notes": kept_notes(workdir, split), "fingerprints": run.fingerprints | _begun(run), "config": identity(run.config)}
        of["membership"] = run.task.membership
        return Scored(rows.ids, rows.labels, decided, predictions.scores, groups, run.source.num_classes, **of)

    def figure(self, name: str) -> tuple[float | None, list]:
        """A figure and its bootstrap interval over the images of this one run; None where it is not defined."""
        if name != "auc":
            found = metrics.report(self.labels, self.predicted, self.num_classes, self.groups)
            return found[name], found["intervals"][name]
        if self.num_classes != 2:
            raise ValueError(f"--figure=auc is of two classes, this task has {self.num_classes}: use accuracy or cohen_kappa")
        value = score_metrics.auc(self.labels, self.positive)
        return value, [None, None] if value is None else score_metrics.auc_interval(self.labels, self.positive, self.groups)

    def difference(self, other: "Scored", name: str) -> dict:
        """{difference: self - other, interval} from resamples of the images that both sides share."""
        if name == "auc":
            return score_metrics.paired_auc(self.labels, self.positive, other.positive, self.groups)
        return metrics.paired_difference(self.labels, self.predicted, other.predicted, self.num_classes, self.groups)[name]

    def same_images(self, other: "Scored") -> bool:
        """Whether both are about the same images and truth."""
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.labels, other.labels)


def family(groups: dict[str, list[tuple[Scored, dict]]]) -> dict:
    """The p of each group of runs, and that of the best of all that are about the same images.

    The statistic of a group is its mean AUC over the runs with a p: all where no label of the images was read, by 999 permutations;
    else those that `evaluate --refits` fitted to permuted labels. All groups see the same permutations.

    Args:
        groups: the runs of each, with what `evaluate` says of their p (`permutation` of results.json).

    Returns:
        p: {group: p}.
        shuffled: {group: {mean, interval}} of the AUCs after the permutations.
        family_wise: the p of the best of these groups; None where there is none.
        permutations: those that all groups have, which `family_wise` rests on.
    """
    aucs, refitted, aligned = {}, {}, []
    for name, members in groups.items():
        known = [(run, of) for run, of in members if of["p"] is not None]
        runs = [run for run, _ in known]
        aligned = aligned or runs
        if not runs or not all(run.same_images(aligned[0]) for run in runs):
            continue
        aucs[name] = permutation.auc_of(np.stack([run.scores[:, 0] for run in runs], axis=1))
        if all("null" in of for _, of in known):
            least = min(len(of["null"]) for _, of in known)  # seeds may have been given other --refits
            refitted[name] = np.mean([of["null"][:least] for _, of in known], axis=0)
    if not aucs:
        return {"p": {}, "shuffled": {}, "family_wise": None, "permutations": None}
    first, fixed = aligned[0], [name for name in aucs if name not in refitted]
    mean = lambda labels, names: np.array([aucs[name](labels).mean() for name in names])  # noqa: E731
    null = dict(refitted)
    if fixed:
        drawn = permutation.permutation_p(lambda labels: mean(labels, fixed), first.labels, first.groups)["null"]
        null |= dict(zip(fixed, drawn.T, strict=True))
    observed = dict(zip(aucs, mean(first.labels, aucs), strict=True))
    shared = min(map(len, null.values()))
    together = np.stack([null[name][:shared] for name in observed], axis=1)
    shuffled = {name: {"mean": float(x.mean()), "interval": np.percentile(x, [2.5, 97.5]).tolist()} for name, x in null.items()}
    p = {name: permutation.p_of(observed[name], draws[:, None])["p"][0] for name, draws in null.items()}
    best = permutation.p_of(np.array(list(observed.values())), together)["family_wise"]
    return {"p": p, "shuffled": shuffled, "family_wise": best, "permutations": shared}


def kept_permutation(workdir: Path, split: str) -> dict:
    """What `evaluate` says of the p of a run; raises ValueError where the task has none, and for what it cannot have said."""
    found = figures(workdir).get("splits", {}).get(split, {}).get("metrics")
    if not isinstance(found, dict) or "permutation" not in found:
        raise ValueError(f"--family is of AUCs of membership, subtask 1: {workdir} has no p on {split}")
    known = found["permutation"]
    drawn = known.get("null", []) if isinstance(known, dict) else None
    given = [*drawn, known["p"] or 0] if isinstance(drawn, list) and "p" in known else ["none"]
    if not all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in given):
        raise ValueError(f"{workdir / 'results.json'}: the p of {split} is no number: evaluate it anew")
    return known


def lacks_refits(run: Run, split: str) -> bool:
    """Whether a run has no p on a split, and would have one by refits, which nobody has asked for yet."""
    return kept_permutation(run.workdir, split)["p"] is None and not lineage.unavailable(run, run.rows(split), refitted=True)


def kept_notes(workdir: Path, split: str) -> list[str]:
    """The reasons that `evaluate` gave for a split, in the words that it prints; raises ValueError for what it cannot have said."""
    found = figures(workdir).get("splits", {}).get(split, {})
    out = []
    for name in NOTES:
        reasons = found.get(name, [])
        if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
            raise ValueError(f"{workdir / 'results.json'}: {name} of {split} is no list of text: evaluate it anew")
        out += [f"{name.replace('_', '-')}: {reason}" for reason in reasons]
    return out


def _begun(run: Run) -> dict[str, str]:
    """Digests of the weights that a run and its children began with, and of what else than its data they were trained on."""
    found: dict[str, set[str]] = {}
    for path in (run.workdir / "provenance.json", *run.workdir.glob("children/**/provenance.json")):
        known = files.read_json(path, {"fingerprints": dict}, "")
        task = files.read_json(path.with_name("config.json"), {"task": str}, "")["task"]
        others = {} if task == run.config.task and known["fingerprints"] == run.fingerprints else known["fingerprints"]
        digests = {f"{split} of {task} in training": digest for split, digest in others.items()}
        digests |= {"init_from": known["begins"]} if "begins" in known else {}
        digests |= {f"the file {name}": digest for name, digest in dict(known.get("weights", {})).items()}
        for name, digest in digests.items():
            found.setdefault(name, set()).add(str(digest))
    return {name: " ".join(sorted(values)) for name, values in found.items()}


def finished(workdir: Path, split: str, data_dir: str = "") -> bool:
    """Whether a run is trained to its end and the split evaluated with the data, config, weights and members that it now has.

    With a `data_dir` of the data that are there.
    """
    if (found := local.evaluated(workdir, split)) is None:
        return False
    run = methods.load(workdir, data_dir=data_dir)
    same = found["fingerprints"] == run.fingerprints and found["config_hash"] == config_hash(run.config)
    return same and plugins.same(run.config, found["code"]) and methods.stands_as(run, found)


def unlike(runs: Sequence[Scored], swept: Collection[str], data_alone: bool = False) -> str:
    """What the data and the configs of runs differ in, but for the fields that are `swept`; '' where in nothing."""
    described: list[dict[str, Any]] = [{} for _ in runs]
    for run, about in zip(runs, described, strict=True):
        if not {"data_dir", "data.extra_labels"} & set(swept):
            about |= {f"the content of {split}": digest for split, digest in run.fingerprints.items()}
        if not data_alone:
            about |= {f"config.{field}": value for field, value in run.config.items() if field not in swept}
    names = sorted({name for about in described for name in about}, key=lambda name: (name.startswith("config."), name))
    found = [name for name in names if any(about.get(name) != described[0].get(name) for about in described)]
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more
