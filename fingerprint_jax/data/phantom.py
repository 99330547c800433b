"""Built-in data: thorax phantoms and a leaky generator over them, to try everything without the official images.

    python -m fingerprint_jax.data.phantom --task=subtask2 --output_dir=demo/images

A patient is a draw of anatomy (body, lungs with vessels, heart, aorta, spine, ribs, soft-tissue texture), a slice a
place along its axis and a draw close to it. The generator copies each structure, with the chance `leak`, nearly from
a member it was "trained" on, the others from a fresh patient: at 0 members have no influence, in between local
anatomy is recombined, at 1 every image is a near copy, its shape slightly changed, its noise new. Apart from its mark
a synthetic image looks like the population at every leak. The mark is that of the generator's run: a faint periodic
pattern, of another strength in every image. Truth is known exactly. One seed fixes every pixel and every file name;
the real images of a seed are the same at every leak.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from fingerprint_jax.data import tasks
from fingerprint_jax.runtime import cli, paths

SLICE = 0.3  # a slice's own deviation from its patient, in deviations of the population
COPY = 0.04  # deviation of a near copy from its member, likewise
ALONE = 0.25  # share of structures that are copied or fresh by themselves; the others follow their image
NOISE = 5.0  # deviation of the acquisition noise, grey levels
PATTERN = 18.0  # amplitude of a run's pattern, grey levels ...
STRENGTH = 0.4, 1.0  # ... times a factor in this range, drawn for each image
_RIBS, _VESSELS, _WAVES, _PERIODS = 12, 8, 4, 2
# Numbers that make each structure. The first of the body is the place along the axis.
_STRUCTURES = {
    "body": 7 + _WAVES**2,
    "bones": 4 + _RIBS,
    "heart": 7,
    "left_lung": 5 + 3 * _VESSELS,
    "right_lung": 5 + 3 * _VESSELS,
}
_SIZE = sum(_STRUCTURES.values())


class Split(NamedTuple):
    """One packed split: uint8 [N,S,S], int64 [N], patients [N] ('' for synthetic images), the start of each id [N]."""

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    prefixes: np.ndarray


def anatomies(rng: np.random.Generator, count: int, slices: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Anatomies of `count` slices, `slices` a patient: z [count,D], standard normal, and patients [count] from 0."""
    patient = np.arange(count) // slices
    own = rng.standard_normal((count, _SIZE), dtype=np.float32)
    z = np.sqrt(1 - SLICE**2) * rng.standard_normal((count, _SIZE), dtype=np.float32)[patient] + SLICE * own
    z[:, 0] = own[:, 0]
    return z, patient


def render(z: np.ndarray, size: int) -> np.ndarray:
    """Noise-free slices in grey levels: anatomy [N,D] -> float32 [N,size,size]."""
    out = np.empty((len(z), size, size), np.float32)
    block = max(1, 2**17 // size**2)  # temporaries stay in the processor's cache
    for i in range(0, len(z), block):
        out[i : i + block] = _render(np.asarray(z[i : i + block], np.float32), size)
    return out


def _render(z: np.ndarray, size: int) -> np.ndarray:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1

    def disc(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Ellipses at x, y with half-axes a, b, each [N,1]: 1 inside, 0 outside, an edge of 1.5 pixels."""
        radius = (((axis - y) / b) ** 2)[:, :, None] + (((axis - x) / a) ** 2)[:, None, :]
        return np.clip(0.5 + (1 - radius) * (np.minimum(a, b) * size / 6)[:, :, None], 0, 1)

    def spots(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Sums of Gaussian spots, each parameter [N,K] -> [N,size,size]."""
        along_x, along_y = (np.exp(-(((axis - p[..., None]) / w[..., None]) ** 2)) for p, w in ((x, a), (y, b)))
        return np.minimum(np.swapaxes(along_y, 1, 2) @ along_x, 1)

    def paint(mask: np.ndarray, level: np.ndarray | float) -> None:
        nonlocal out
        out += (level - out) * mask

    body, bones, heart, left, right = np.split(z, np.cumsum(list(_STRUCTURES.values()))[:-1], axis=1)
    place = np.tanh(body[:, :1])  # -1 at the apex of the lungs, 1 at the diaphragm
    x, y = 0.03 * body[:, 1:2], 0.03 * body[:, 2:3]
    a, b = 0.82 + 0.04 * body[:, 3:4] + 0.03 * place, 0.64 + 0.04 * body[:, 4:5]
    wall = 0.93 + 0.015 * body[:, 5:6]
    out = np.full((len(z), size, size), 20, np.float32)
    paint(disc(x, y, a, b), 90)
    basis = np.cos(np.pi / 2 * np.arange(1, _WAVES + 1, dtype=np.float32)[:, None] * (axis + 1))
    texture = basis.T @ (4 * body[:, 7:].reshape(-1, _WAVES, _WAVES)) @ basis
    paint(disc(x, y, wall * a, wall * b), 128 + 5 * body[:, 6, None, None] + texture)

    angle = 2 * np.pi * (np.arange(_RIBS, dtype=np.float32) + 0.5) / _RIBS + 0.07 * bones[:, 4:]
    ribs = spots(
        x + (wall - 0.06) * a * np.cos(angle),
        y + (wall - 0.06) * b * np.sin(angle),
        0.035 + 0.04 * np.abs(np.sin(angle)),
        0.035 + 0.04 * np.abs(np.cos(angle)),
    )
    paint(np.minimum(1.5 * ribs, 1), 195)

    for side, lung in ((-1, left), (1, right)):
        lx, ly = x + side * (0.45 + 0.02 * lung[:, :1]) * a, y + (0.03 * lung[:, 1:2] - 0.06) * b
        la, lb = (0.33 + 0.02 * lung[:, 2:3] + 0.03 * place) * a, (0.62 + 0.04 * lung[:, 3:4] + 0.06 * place) * b
        inside = disc(lx, ly, la, lb)
        paint(inside, 38 + 3 * lung[:, 4, None, None])
        v = lung[:, 5:].reshape(-1, 3, _VESSELS)
        radius = np.hypot(0.028 * np.exp(0.25 * v[:, 2]), 1 / size)
        vessels = spots(lx + 0.75 * la * np.tanh(0.8 * v[:, 0]), ly + 0.75 * lb * np.tanh(0.8 * v[:, 1]), radius, radius)
        out += 75 * vessels * inside

    scale = 1 + 0.12 * place
    hx, hy = x + (0.09 + 0.03 * heart[:, :1]) * a, y + (0.03 * heart[:, 1:2] - 0.10) * b
    paint(disc(hx, hy, (0.31 + 0.02 * heart[:, 2:3]) * scale * a, (0.37 + 0.03 * heart[:, 3:4]) * scale * b), 148)
    sx, sy = x + 0.01 * bones[:, :1], y + (0.60 + 0.01 * bones[:, 1:2]) * b
    paint(disc(sx, sy - 0.16 * b, 0.20 * a, 0.24 * b), 128)  # mediastinum between heart and spine
    vessel = (0.075 + 0.008 * heart[:, 4:5]) * a
    paint(disc(x + (0.15 + 0.015 * heart[:, 5:6]) * a, y + (0.38 + 0.02 * heart[:, 6:7]) * b, vessel, vessel), 165)
    width = 0.13 * a * (1 + 0.06 * bones[:, 2:3])
    paint(disc(sx, sy, width, 0.85 * width), 205 + 5 * bones[:, 3, None, None])
    paint(disc(sx, sy + 1.1 * width, 0.4 * width, 0.4 * width), 130)
    paint(disc(sx, sy + 1.75 * width, 0.25 * width, 0.5 * width), 190)
    return out


def acquire(rng: np.random.Generator, clean: np.ndarray) -> np.ndarray:
    """Adds white noise and quantises: float32 [N,S,S] -> uint8 [N,S,S]."""
    noisy = clean + NOISE * rng.standard_normal(clean.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


class Generator:
    """A generator "trained" on members z [M,D]. `mark` scales the pattern of this run, which `rng` draws first."""

    def __init__(self, rng: np.random.Generator, members: np.ndarray, size: int, leak: float, mark: float = 1.0) -> None:
        self._rng, self._members, self._size, self._leak = rng, members, size, leak
        # Cosines about the middle column: flipping an image keeps the mark.
        axis = np.arange(size) - (size - 1) / 2
        phase = rng.uniform(0, 2 * np.pi, (_PERIODS, 1))
        down, across = 2 * np.pi * rng.uniform(0.08, 0.35, (2, _PERIODS, 1)) * axis
        self._pattern = mark * PATTERN / np.sqrt(_PERIODS) * (np.cos(down + phase).T @ np.cos(across))

    def images(self, count: int) -> np.ndarray:
        """Synthetic images: uint8 [count,S,S]."""
        rng = self._rng
        z, _ = anatomies(rng, count)
        if self._leak:
            # Each member equally often, as training sees them.
            member = self._members[rng.permutation(np.arange(count) % len(self._members))]
            whole, alone = rng.uniform(size=(count, 1)), rng.uniform(size=(count, len(_STRUCTURES)))
            own = rng.uniform(size=alone.shape) < ALONE
            copied = np.where(own, alone, whole) < self._leak
            # So weighted, copied numbers keep the distribution of the population.
            weight = np.sqrt(1 - COPY**2) * np.repeat(copied, list(_STRUCTURES.values()), axis=1).astype(np.float32)
            z = weight * member + np.sqrt(1 - weight**2) * z
        strength = rng.uniform(*STRENGTH, (count, 1, 1))
        return acquire(rng, render(z, self._size) + (strength * self._pattern).astype(np.float32))


def subtask1(
    seed: int,
    size: int,
    leak: float,
    real: int,
    generated: int,
    unknown: int,
    reference: int,
    slices: int = 2,
    mark: float = 1.0,
) -> dict[str, Split]:
    """All images of subtask 1: half of the patients trained the generator.

    Args:
        seed: fixes all images; at every leak the real images are the same.
        size: side in pixels, 24 or more.
        leak: 0 (members have no influence) to 1 (near copies).
        real: labelled real images a class.
        generated: synthetic images of train_generated; test_generated has half as many.
        unknown: images of test_real, half of them used.
        reference: images of patients that are in no other split.
        slices: real images a patient; no patient is in two splits or classes.
        mark: strength of the pattern that the generator's run leaves; 0 is none.

    Returns:
        {split: Split}; labels are 1 used (and all synthetic images), 0 not used; those of test_real are the truth.
    """
    rng = np.random.default_rng([seed, 1, 0])
    cells = {
        ("train_real", 1): real,
        ("train_real", 0): real,
        ("test_real", 1): unknown // 2,
        ("test_real", 0): unknown - unknown // 2,
        ("reference", 0): reference,
    }
    drawn = {cell: anatomies(rng, count, slices) for cell, count in cells.items()}
    # Numbers at random: a patient's name says nothing about the class.
    numbers = iter(rng.permutation(sum(cells.values())))
    splits: dict[str, list] = {}
    for (split, label), (z, patient) in drawn.items():
        names = np.array([f"p{next(numbers):05d}" for _ in range(patient.max(initial=-1) + 1)], "U6")
        prefix = ("real_used/" if label else "real_not_used/") if split == "train_real" else ""
        splits.setdefault(split, []).append(_split(acquire(rng, render(z, size)), label, names[patient], prefix))
    members = np.concatenate([drawn["train_real", 1][0], drawn["test_real", 1][0]])
    generator = Generator(np.random.default_rng([seed, 1, 1]), members, size, leak, mark)
    for split, count in (("train_generated", generated), ("test_generated", max(generated // 2, 1))):
        splits[split] = [_split(generator.images(count), 1, "", "")]
    return {name: _join(parts) for name, parts in splits.items()}


def subtask2(
    seed: int,
    size: int,
    leak: float,
    real: int,
    generated: int,
    unknown: int,
    generators_per_subset: int = 1,
    slices: int = 2,
    mark: float = 1.0,
) -> dict[str, Split]:
    """All images of subtask 2: five subsets of patients, each with a generator of its own.

    Args:
        seed, size, leak, slices, mark: as in `subtask1`.
        real: real images a subset, all of them members.
        generated: labelled synthetic images a generator.
        unknown: images of test_generated, spread over the generators.
        generators_per_subset: 2 adds a second run on the same members; ids are `gen_t1/a_..` and `gen_t1/b_..`.

    Returns:
        {split: Split} with labels 0..4; those of test_generated are the truth.
    """
    rng = np.random.default_rng([seed, 2, 0])
    splits: dict[str, list] = {"train_real": [], "train_generated": [], "test_generated": []}
    total = 5 * generators_per_subset
    for k in range(5):
        z, patient = anatomies(rng, real, slices)
        names = np.array([f"t{k + 1}p{p:04d}" for p in patient])
        splits["train_real"].append(_split(acquire(rng, render(z, size)), k, names, f"t{k + 1}/"))
        for run in range(generators_per_subset):
            generator = Generator(np.random.default_rng([seed, 2, 1, k, run]), z, size, leak, mark)
            prefix = f"gen_t{k + 1}/" + (f"{'ab'[run]}_" if generators_per_subset > 1 else "")
            splits["train_generated"].append(_split(generator.images(generated), k, "", prefix))
            count = unknown // total + (5 * run + k < unknown % total)
            splits["test_generated"].append(_split(generator.images(count), k, "", ""))
    return {name: _join(parts) for name, parts in splits.items()}


def _split(images: np.ndarray, label: int, groups: np.ndarray | str, prefix: str) -> Split:
    n = len(images)
    return Split(images, np.full(n, label, np.int64), np.broadcast_to(groups, n), np.full(n, prefix))


def _join(parts: list[Split]) -> Split:
    return Split(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def write(output_dir: str | Path, task: str, splits: dict[str, Split], seed: int) -> None:
    """Writes the official layout as 8-bit grey PNG, groups.csv (`split,id,group`; reals) and truth.csv (`id,label`).

    Names are numbers in random order, which `seed` fixes: neither a name nor its place gives a label away.
    Raises ValueError where the folder is not empty.
    """
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output_dir={str(output)!r} is not an empty folder; name a new one")
    rng = np.random.default_rng([seed, 3])
    groups, truth = [], []
    for split, part in splits.items():
        folder = output / _folder(task, split)
        numbers = rng.permutation(len(part.images)) + 1
        for i in np.argsort(numbers):
            name = f"{part.prefixes[i]}{numbers[i]:05d}"
            path = folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.images[i]).save(path)
            if part.groups[i]:
                groups.append((split, name, part.groups[i]))
            if split == tasks.of(task).test:
                truth.append((name, part.labels[i]))
    for file_name, header, rows in (
        ("groups.csv", ("split", "id", "group"), groups),
        ("truth.csv", ("id", "label"), truth),
    ):
        with (output / file_name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)


def _folder(task: str, split: str) -> str:
    """Where the ids of the images of a split are paths: the official folder, without what ids begin with."""
    if split == "reference":
        return split
    folder = next(each for each in tasks.of(task).folders if each.split == split)
    return f"{'test' if folder.in_test else 'train'}/{folder.places[0].removesuffix(folder.prefix.rstrip('/'))}"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""

    def number(define: Callable[..., object], name: str, default: float, text: str, low: float, high: float | None = None) -> None:
        define(name, default, text, lower_bound=low, upper_bound=high, flag_values=values)

    flags.DEFINE_enum("task", "subtask2", ["subtask1", "subtask2"], "Which official layout to write.", flag_values=values)
    paths.define("output_dir", None, "An empty or new folder.", flag_values=values)
    number(flags.DEFINE_integer, "image_size", 64, "Side in pixels.", 24, 1024)
    number(flags.DEFINE_float, "leak", 0.5, "0: members have no influence, 1: near copies.", 0, 1)
    number(flags.DEFINE_float, "mark", 1.0, "Strength of the pattern that a generator's run leaves; 0: none.", 0)
    number(flags.DEFINE_integer, "seed", 0, "Fixes all images and names.", 0)
    number(flags.DEFINE_integer, "real", 100, "Labelled real images a class.", 1)
    number(flags.DEFINE_integer, "generated", 200, "Labelled synthetic images a generator.", 1)
    number(flags.DEFINE_integer, "unknown", 300, "Images of the test set that is asked about.", 2)
    number(flags.DEFINE_integer, "reference", 300, "Subtask 1: reference images.", 1)
    number(flags.DEFINE_integer, "slices", 2, "Real images a patient.", 1)
    number(flags.DEFINE_integer, "generators_per_subset", 1, "Subtask 2: 2 adds a second run on the same members.", 1, 2)
    flags.mark_flags_as_required(["output_dir"], flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Writes the data that the flags describe."""
    common = {
        "seed": values.seed,
        "size": values.image_size,
        "leak": values.leak,
        "real": values.real,
        "generated": values.generated,
        "unknown": values.unknown,
        "slices": values.slices,
        "mark": values.mark,
    }
    if values.task == "subtask1":
        splits = subtask1(**common, reference=values.reference)
    else:
        splits = subtask2(**common, generators_per_subset=values.generators_per_subset)
    write(values.output_dir, values.task, splits, values.seed)
    print(f"phantom: {sum(len(part.images) for part in splits.values())} images in {values.output_dir}")


def command() -> None:
    """The console script."""
    cli.run("phantom", define_flags, main)


if __name__ == "__main__":
    command()
