"""What a result says, in words that claim no more than it shows; pure functions of results.json."""

import numpy as np

from fingerprint_jax.data import tasks
from fingerprint_jax.report.charts import number
from fingerprint_jax.stats import permutation

SMALL = 0.05  # a permutation p-value, which is one-sided, between it and 1 - SMALL says chance
LEAST = 20  # images, of patients: patients, that are not of the most frequent class alone; each counts once, however many it holds


def verdict(task: str, metrics: dict | None, n: int) -> str:
    """One sentence or two: what was found, and whether chance would give as much.

    Args:
        task: its name.
        metrics: as by `metrics.report`, None where the labels are unknown.
        n: images of the split.
    """
    if metrics is None:
        return f"The true labels of these {n} images are not known: the page shows what was decided, not how often it was right."
    if metrics["cohen_kappa"] is None:
        return (
            f"Nothing can be said: truth and decision are one and the same class for all {n} images, so that kappa is not defined."
        )
    kappa = f"Cohen's kappa {_figure(metrics, 'cohen_kappa')}, where 0 is chance"
    accuracy = f"accuracy {_figure(metrics, 'accuracy')}, by chance {number(chance_agreement(metrics['confusion_matrix']))}"
    of = tasks.of(task)
    figure = {"cohen_kappa": kappa, "accuracy": accuracy}[of.headline]
    if sum(map(any, zip(*metrics["confusion_matrix"], strict=True))) == 1:
        return f"On {n} images the result cannot be told from chance: all were given one class, {figure}."
    if reason := unsaid(metrics):
        return f"On {n} images: {figure}. Whether that is more than chance is not said: {reason}."
    side = against_chance(metrics)
    if side == 0:
        text = f"On {n} images the result cannot be told from chance: {figure}."
        scores, p = metrics.get("scores", {}), _p(metrics)
        low, high = scores.get("auc_interval") or (None, None)
        if low is not None and low > 0.5 and (p is None or p <= SMALL):
            return f"{text} Yet the scores do order the images: AUC {number(scores['auc'])} ({number(low)} to {number(high)})."
        return text + (" This attack found no use; it does not show that there was none." if of.membership else "")
    if side < 0:
        return f"On {n} images the result is worse than chance: {kappa}. The decisions are wrong more often than a guess would be."
    if of.membership:
        if note := metrics.get("permutation", {}).get("note"):
            return f"Used and not used images were told apart better than chance on {n} images: {kappa}. This is {note}."
        return (
            f"Used and not used images were told apart better than chance on {n} images: {kappa} and 1 is perfect."
            " Another content of the two sets of images gives the same, so that this alone is no proof of use."
        )
    if of.attribution:
        return (
            f"The generator run of a synthetic image was recognised better than chance on {n} images: {accuracy}."
            " What is recognised is the run of the generator, which need not be the data it was trained on."
        )
    return f"The class of an image was recognised better than chance on {n} images: {accuracy}."


def made_on(document: dict) -> list[tuple[str, str]]:
    """(what, text) of the code, the machine and the libraries that results were made with.

    `document` is results.json or audit.json, of which `environment` (runtime/environment.py) and `versions` are read.
    """
    e = document["environment"]
    code = f"version {e['fingerprint_jax']}"
    if e["commit"]:
        code += f", commit {e['commit'][:12]}" + (" with changes that are not committed" if e["changed"] else "")
    rows = [("fingerprint_jax", code), ("Python", e["python"]), ("devices", e["devices"])]
    rows.append(("settings", ", ".join(f"{name}={value}" for name, value in e["settings"].items())))
    rows.append(("self-test of the devices", e["self_test"]))
    return rows + [("libraries", ", ".join(f"{name} {version}" for name, version in document["versions"].items()))]


def unsaid(metrics: dict) -> str | None:
    """Why a result is not compared with chance; None where it is.

    Membership needs a permutation p: without one labels of the images may have had a part in their scores, and intervals, which
    hold the fits fixed, are then too narrow. Where no p is asked for there have to be images enough: resampling gives no width to
    a small table without errors.
    """
    tested = "permutation" in metrics
    if tested and metrics["permutation"]["p"] is None:
        return "that takes a permutation test, and there is none"
    if metrics["intervals"]["cohen_kappa"][0] is None:
        return f"intervals are {metrics['interval_method']}"
    if not tested and metrics["outside_groups"] < LEAST:
        return f"that takes at least {LEAST} images (of patients: patients) besides those of the most frequent class alone"
    return None


def against_chance(metrics: dict) -> int:
    """1 better than chance, -1 worse, 0 where that cannot be told or is `unsaid`.

    All evidence there is has to agree: the interval of kappa; Wilson's interval of the accuracy against the agreement that
    the two margins give by chance, since resampling gives no width to a small table without errors; a permutation p-value.
    """
    if unsaid(metrics):
        return 0
    p = _p(metrics)
    low, high = metrics["intervals"]["cohen_kappa"]
    chance = chance_agreement(metrics["confusion_matrix"])
    wilson_low, wilson_high = metrics["accuracy_wilson"]
    if low > 0 and wilson_low > chance and (p is None or p <= SMALL):
        return 1
    return -1 if high < 0 and wilson_high < chance and (p is None or p >= 1 - SMALL) else 0


def _p(metrics: dict) -> float | None:
    """That of a permutation of the labels, or of labels alone the hypergeometric one."""
    return metrics.get("permutation", metrics.get("labels_p", {})).get("p")


def chance_agreement(confusion: list[list[int]]) -> float:
    """The accuracy that truth and decision would have if they knew nothing of each other (Cohen 1960), of a table [K,K]."""
    table = np.array(confusion, float)
    return float(table.sum(axis=0) @ table.sum(axis=1)) / table.sum() ** 2


def care(results: dict, document: dict, target: str, trained_on: dict[str, str]) -> list[str]:
    """What a reader has to know before a figure is quoted.

    Args:
        results: of the split.
        document: results.json.
        target: the split that training rows come from.
        trained_on: fingerprints of the data the run was trained on.
    """
    config, base = document["config"], results["split"].partition(":")[0]
    decision = config["decision"]
    notes = ["Intervals hold the trained networks fixed: another seed gives another result, and that spread comes on top."]
    notes += [f"{note}." for note in results.get("unfinished", ())] + results["in_sample"]  # they begin with a path
    if ":" in results["split"]:
        notes.append(f"{results['split']} is the part of {base} with one label: nothing here compares it with the rest.")
    for reason in results["transductive"]:
        notes.append(f"Transductive: {reason}. Such a result needs the images that are asked about beforehand.")
    if results["decision"]["uses_class_balance"]:
        share = decision["params"].get("fraction", "the images")
        notes.append(f"It is told that a share of {share} is to be called used, which nobody knows in earnest.")
    own = document["fingerprints"].get(base, trained_on[target]) in trained_on.values()  # heldout and the like are of the target
    if not own and not results["in_sample"]:
        notes.append("These images are of another data set than the one the run was trained on.")
    if results.get("runs_beside"):
        notes.append(several(results["runs_beside"], results["split"]))
    found = results.get("metrics", {}).get("permutation", {})
    if "note" in found:
        notes.append(f"What the scores show is {found['note']}.")
    if tasks.of(document["task"]).membership:
        notes.append(
            "No content control is part of this page: the same attack with the generator's images replaced by unrelated ones."
            " What such a control finds too is a difference of content, not evidence of use."
        )
    if results.get("metrics", {}).get("cross_fitted"):
        notes.append(
            f"Cross-fitted (each image was scored by what learned from the labels of the others): {permutation.CONDITIONAL}."
        )
    if found.get("reason"):
        notes.append(f"No permutation test: {found['reason']}.")
    return notes


def several(count: int, split: str) -> str:
    """What other runs that were scored on the same images do to the figures of one."""
    runs = f"{count} other run{'s' if count > 1 else ''} in the same folder {'were' if count > 1 else 'was'}"
    return (
        f"{runs} scored on {split} of these data too: the p and the interval of the best of several are too good."
        " launch.collect --family gives the p of the best of a folder."
    )


def placed(value: float, interval: list[float], published: list[float]) -> str:
    """Where a figure would stand among published ones, and where the ends of its interval would, if it has one."""
    rank, total = 1 + sum(p > value for p in published), len(published)
    text = f"With {number(value)} this run would stand at place {rank} beside the {total} published runs"
    if interval:
        worst, best = (1 + sum(p > end for p in published) for end in interval)
        text += (
            f", the ends of its interval at places {best} and {worst}"
            if best < worst
            else ", and so would both ends of its interval"
        )
    return text + "."


def _figure(metrics: dict, name: str) -> str:
    low, high = metrics["intervals"][name]
    if low is None or low == high:
        return f"{number(metrics[name])} ({'no interval' if low is None else 'resampling gives it no width'})"
    return f"{number(metrics[name])} (95% interval {number(low)} to {number(high)})"
