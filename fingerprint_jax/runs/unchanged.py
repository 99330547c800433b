"""What a run was started with, and whether what it sees now is still that: each function raises ValueError where it is not."""

import os
from collections.abc import Callable
from typing import Any

from fingerprint_jax.runs.config import differing, of_fit
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import plugins


def require_config(run: Run, of_method: Callable[[str], dict[str, Any]]) -> None:
    """Raises ValueError where the run in the work directory is of another config: that of a child which was exchanged, say.

    But for the decision, which is made of the scores. Also where a child of a finished run is missing: what it was started with
    would not be known, and it would be taken for one of whatever data are there.
    """
    require_child(run)
    if (run.workdir / "config.json").exists():
        before, after = of_fit(Run.load(run.workdir, of_method=of_method).config), of_fit(run.config)
        if changed := differing(before, after):
            there, here = (repr(config.get(changed[0]))[:100] for config in (before, after))
            raise ValueError(
                f"{run.workdir} is not the run that was trained for this: config.{changed[0]} is {there} there, {here} in the"
                " run that uses it; put the right one in its place, or train anew"
            )


def require_child(run: Run) -> None:
    """Raises ValueError where this is a child of a finished run, and is missing or not finished: an older copy of it, say."""
    needed = ("config.json", "provenance.json", "done")[: 2 if run.followed else 3]  # a copy that --watch keeps is never done
    gone = [name for name in needed if not (run.workdir / name).exists()]
    if gone and run.outermost != run.workdir and (run.outermost / "done").exists():
        raise ValueError(f"{run.workdir / gone[0]} is missing: copy the whole folder {run.outermost}, or train it to its end")


def require_classes(run: Run) -> None:
    """Raises ValueError where the data have other classes than those the run was started with, which its labels stand for.

    Those of a task that has classes of its own are always the same; runs of older versions do not say which they had.
    """
    if run.task.classes or not (run.workdir / "provenance.json").exists():
        return
    known, here = run.provenance.get("classes"), run.source.summary["classes"]
    if known is not None and known != here:
        before, now = (str(classes)[:200] for classes in (known, here))
        raise ValueError(
            f"{run.workdir} was started with the classes {before}, {run.config.data_dir} has {now}: give data of the same"
            " classes, in the same order, or train a run on these"
        )


def require_window(run: Run, by: Run | None = None) -> None:
    """Raises ValueError where images that a run sees were packed with another window than those it was started with.

    They are its own, or those of the run `by` that uses its network. Data of PNG and JPEG have none that is known, and runs of
    older versions do not say theirs.
    """
    by, started = by or run, (run.workdir / "provenance.json").exists()
    known = run.provenance.get("window") if started else run.source.window.get("window")
    here = by.source.window.get("window")
    if known and here and known != here:
        raise ValueError(
            f"{run.workdir} was started with images of --window={known}, {by.config.data_dir} has --window={here}: pack"
            " these with the same window"
        )


def require_gallery(run: Run) -> None:
    """Raises ValueError where the data that a run was started with were packed anew, and what it compares images with is other.

    Other data are for `--data_dir`, in a folder of their own: there a run that learned from its gallery still has its own.
    """
    if "data" in run.allow_change or not (run.workdir / "provenance.json").exists():
        return
    if os.path.realpath(Run.load(run.workdir).config.data_dir) != os.path.realpath(run.config.data_dir):
        return
    known, now = run.own_fingerprints, run.fingerprints
    compared = {run.packed(split) for splits in run.config.get("gallery", {}).values() for split in splits}
    if compared and run.config.data.extra_labels:  # by which it learns from images of other splits
        compared |= {"extra_labels", *map(run.packed, run.extra_splits)}
    for split in sorted(compared):
        if known.get(split) != now.get(split):
            raise ValueError(
                f"{run.workdir} compares images with {split}, and {run.config.data_dir} was packed anew with others: put back"
                " what it was started with, or start a run on these; to score other images pack them elsewhere, for --data_dir"
            )


def other_code(run: Run) -> list[str]:
    """The packages beside this one whose files are others than when the run was last started, as far as that is known."""
    now = plugins.code(run.config)
    if not now or not (run.workdir / "provenance.json").exists():
        return []
    known = run.provenance["starts"][-1].get("code", {})
    return [package for package, digest in now.items() if known.get(package, digest) != digest]
