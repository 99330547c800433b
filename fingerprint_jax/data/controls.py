"""Controls: data sets whose answer is known, in the form that every system reads.

    python -m fingerprint_jax.data.controls --kind=one_generator --data_dir=DATA --output_dir=OUT

Of attribution:

`one_generator`: the synthetic images of one subset, and its real ones, cut at random into five. They are all of one generator, so
that an accuracy other than 0.2 is a fault of the system or of its evaluation.

`reals`: one half of each subset's real images stands where the synthetic ones stood, the other half stays. No generator has touched
them, so that what is above 0.2 is a difference of content between the subsets, for example of patients or scanners.

`phantom_runs`: two phantom data sets, `OUT/a` and `OUT/b`, of the same real images and of two runs of each subset's generator.
Trained on `a`, a system that finds the fingerprint of the data is above 0.2 on the synthetic images of `b` too, one that finds the
fingerprint of the run is not: it takes each generator of `b` for any of `a`, so that its chance spreads widely around 0.2.

Of membership:

`unrelated`: one half of the reference images stands where the synthetic ones stood, the other half stays reference; without
reference images phantoms stand there. No image was made from the used ones, so that what still tells used from not used is a
difference of content (the content control). That holds for systems that learn from labels. Scores that only compare the synthetic
images with the reference (gan_leaks, domias, local_match, likelihood_ratio) then compare two halves of one set: they are about 0.5
by construction, whatever the content. For them it is a check for a defect of the attack, not a bound on content, which is what the
content-only panel of the audit is for (audit/content.py).

`copies`: each used image also stands among the synthetic ones, to the last bit, in the place of one drawn at random. What does not
tell these is blind to copies.
"""

import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from fingerprint_jax.data import packing, phantom, tasks
from fingerprint_jax.data.phantom import Split
from fingerprint_jax.data.source import Rows, Source, open_source
from fingerprint_jax.runtime import cli, paths

ATTRIBUTION = ("one_generator", "reals", "phantom_runs")
MEMBERSHIP = ("unrelated", "copies")
SUBSETS = 5
FOREIGN = {"real": 10, "generated": 1000, "unknown": 10, "reference": 0}  # of which the synthetic images are taken
PHANTOM = {"size": 64, "leak": 0.5, "real": 100, "generated": 200, "unknown": 100}


def cut(groups: np.ndarray, shares: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Deals whole groups at random: groups [N] -> part [N], 0..len(shares)-1.

    The sizes of the parts are as `shares`, up to a group. Raises ValueError where a part would stay empty.
    """
    names, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    middle = np.cumsum(counts[order]) - counts[order] / 2  # where the middle of each group comes to lie
    part = np.empty(len(names), np.int64)
    part[order] = np.searchsorted(np.cumsum(shares) / np.sum(shares) * len(groups), middle)
    if len(np.unique(part)) < len(shares):
        raise ValueError(f"{len(groups)} images in {len(names)} groups cannot be cut into {len(shares)} parts: more are needed")
    return part[group]


def one_generator(source: Source, label: int, seed: int) -> dict[str, Split]:
    """The images of one subset as five; a fifth of the synthetic ones is `test_generated`."""
    rng = np.random.default_rng([seed, 0])
    generated, real = (rows.take(rows.labels == label) for rows in map(source.rows, ("train_generated", "train_real")))
    part = cut(generated.groups, (4,) * SUBSETS + (5,), rng)
    known = part < SUBSETS
    return {
        "train_generated": _split(source, generated.take(known), part[known], "gen_t"),
        "train_real": _split(source, real, cut(real.groups, (1,) * SUBSETS, rng), "t"),
        "test_generated": _split(source, generated.take(~known), part[~known]),
    }


def reals(source: Source, seed: int) -> dict[str, Split]:
    """Of each subset's real images a half as `train_real`, and of the other half a fifth as `test_generated`."""
    rng = np.random.default_rng([seed, 1])
    rows = source.rows("train_real")
    part = np.empty(len(rows), np.int64)
    for label in range(SUBSETS):
        part[rows.labels == label] = cut(rows.groups[rows.labels == label], (5, 4, 1), rng)
    real, known, unknown = (rows.take(part == k) for k in range(3))
    return {
        "train_generated": _split(source, known, known.labels, "gen_t"),
        "train_real": _split(source, real, real.labels, "t"),
        "test_generated": _split(source, unknown, unknown.labels),
    }


def phantom_runs(seed: int) -> dict[str, dict[str, Split]]:
    """{a, b: splits} of two runs of each generator on the same real images."""
    both = phantom.subtask2(seed, generators_per_subset=2, **PHANTOM)
    found = {}
    for number, name in enumerate("ab"):
        found[name] = {"train_real": both["train_real"]}
        for split in ("train_generated", "test_generated"):
            # Subset after subset, in each the images of the first run and then as many of the second.
            of = np.repeat(np.tile([0, 1], SUBSETS), len(both[split].images) // (2 * SUBSETS))
            found[name][split] = Split(*(column[of == number] for column in both[split]))
    return found


def unrelated(source: Source, seed: int) -> dict[str, Split]:
    """The labelled real images, and what no generator has made in place of the synthetic ones."""
    rng = np.random.default_rng([seed, 2])
    found = {"train_real": _of_membership(source, source.rows("train_real"), "train_real")}
    if "reference" not in source.splits:
        made = phantom.subtask1(seed, source.image_shape[0], leak=0.0, **FOREIGN)
        return found | {"train_generated": made["train_generated"]}
    rows = source.rows("reference")
    part = cut(rows.groups, (1, 1), rng)
    for number, split in enumerate(("train_generated", "reference")):
        found[split] = _of_membership(source, rows.take(part == number), split)
    return found


def copies(source: Source, seed: int) -> dict[str, Split]:
    """Labelled real, synthetic and reference images, the used ones among the synthetic."""
    rng = np.random.default_rng([seed, 3])
    names = [name for name in ("train_real", "train_generated", "reference") if name in source.splits]
    found = {name: _of_membership(source, source.rows(name), name) for name in names}
    used = source.rows("train_real").take(source.rows("train_real").labels == 1)
    synthetic = found["train_generated"].images
    if len(used) > len(synthetic):
        raise ValueError(f"{len(used)} used images cannot stand among {len(synthetic)} synthetic ones: more are needed")
    synthetic[rng.choice(len(synthetic), len(used), replace=False)] = source.images(used.index)[..., 0]
    return found


def _of_membership(source: Source, rows: Rows, split: str) -> Split:
    """Rows as images of a split: the folder that they go to is that of their labels."""
    folder = {(each.split, each.label): each.prefix for each in tasks.of("subtask1").folders}
    prefixes = np.array([folder.get((split, label), "") for label in rows.labels.tolist()])
    # An image without a patient is a group of its own, named like it: the control gives it another name.
    groups = np.where(source.known(rows.groups), rows.groups, "")
    return Split(source.images(rows.index)[..., 0], rows.labels, groups, prefixes)


def _split(source: Source, rows: Rows, labels: np.ndarray, folder: str = "") -> Split:
    prefixes = np.array([f"{folder}{label + 1}/" if folder else "" for label in labels])
    return Split(source.images(rows.index)[..., 0], labels, rows.groups, prefixes)


def write(
    kind: str, output_dir: str | Path, data_dir: str | Path = "", label: int = 0, seed: int = 0, overwrite: bool = False
) -> None:
    """Packs the data sets of a control below `output_dir`.

    Args:
        kind: one of ATTRIBUTION or MEMBERSHIP.
        output_dir: as the `data_dir` of `pack`; of `phantom_runs` the folder that holds those of `a` and `b`.
        data_dir: the packed data set that all but `phantom_runs` are made from.
        label: the subset of `one_generator`, 0..4.
        seed: of the draw.
        overwrite: replaces what is there.

    Raises ValueError where the data are missing, damaged or too few, or the control is there already.
    """
    output, task = Path(output_dir), "subtask1" if kind in MEMBERSHIP else "subtask2"
    if kind == "phantom_runs":
        found = {output / name: splits for name, splits in phantom_runs(seed).items()}
    elif not data_dir:
        raise ValueError(f"--data_dir is empty: {kind} is made from a packed data set")
    else:
        source = open_source(str(data_dir), task)
        source.verify()
        make = {"reals": reals, "unrelated": unrelated, "copies": copies}
        found = {output: one_generator(source, label, seed) if kind == "one_generator" else make[kind](source, seed)}
    for path, splits in found.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "images"
            phantom.write(root, task, splits, seed)
            pack(task, path, root, splits, overwrite)


def pack(task: str, data_dir: Path, root: Path, splits: dict[str, Split], overwrite: bool = False) -> None:
    """Packs the official folders below `root` in which `phantom.write` has put some splits."""
    test, reference = (root / name if (root / name).exists() else "" for name in ("test", "reference"))
    groups = root / "groups.csv" if any((part.groups != "").any() for part in splits.values()) else ""
    packing.pack(task, data_dir, root / "train", test, reference, groups=groups, overwrite=overwrite)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_enum("kind", None, ATTRIBUTION + MEMBERSHIP, "Which control.", required=True, flag_values=values)
    paths.define("data_dir", "", "Where `pack` wrote the data set it is made from.", flag_values=values)
    paths.define("output_dir", None, "Where it goes; phantom_runs: its folders a and b.", required=True, flag_values=values)
    flags.DEFINE_integer("label", 0, "one_generator: the subset.", 0, SUBSETS - 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Fixes the draw.", 0, flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace what is there.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Packs the control that the flags describe."""
    write(values.kind, values.output_dir, values.data_dir, values.label, values.seed, values.overwrite)


if __name__ == "__main__":
    cli.run("controls", define_flags, main)
