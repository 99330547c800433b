"""Built-in data: thorax phantoms and a leaky generator over them, so that everything can be tried without the official images.

    python -m fingerprint_jax.data.phantom --task=subtask2 --output_dir=demo/images

A patient is a draw of anatomy (body, lungs, heart, spine, ribs, vessels, soft-tissue texture), a slice a draw close to it. The
generator mixes a fresh patient with a member it was "trained" on, by a weight that varies over images and over the body and has the
mean `leak`: at 0 members have no influence, at 1 every image is a near copy of a member, its shape slightly changed, its noise new.
Each generator also leaves a weak mark of its own run. Truth is known exactly; one seed fixes every pixel and every file name.
"""

import csv
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from fingerprint_jax import cli

SLICE = 0.3  # share of a slice's own draw in its anatomy; the rest is the patient's
COPY = 0.04  # deviation of a near copy's anatomy, in deviations of the population
NOISE = 5.0  # deviation of the acquisition noise, grey levels
_VESSELS, _RIBS, _WAVES = 12, 10, 4
_SIZE = 24 + 3 * _VESSELS + _RIBS + _WAVES**2  # numbers that make an anatomy


def anatomies(rng: np.random.Generator, patients: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Anatomy of `slices` slices of each patient: z [patients * slices, D], standard normal each, and the patient's number [..]."""
    patient = np.repeat(np.arange(patients), slices)
    z = rng.standard_normal((patients, _SIZE))[patient]
    return np.sqrt(1 - SLICE**2) * z + SLICE * rng.standard_normal(z.shape), patient


def render(z: np.ndarray, size: int) -> np.ndarray:
    """Noise-free slices, in grey levels: anatomy [N,D] -> float32 [N,size,size]."""
    z = np.asarray(z, np.float32)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]

    def col(k):
        return z[:, k, None, None]

    def ellipse(cx, cy, a, b):
        radius = np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2)
        return 1 / (1 + np.exp(np.clip((radius - 1) * 24, -30, 30)))

    cx, cy = 0.04 * col(0), 0.04 * col(1)
    a, b = 0.80 + 0.04 * col(2), 0.64 + 0.04 * col(3)
    out = (120 + 6 * col(4)) * ellipse(cx, cy, a, b)
    waves = z[:, 24 : 24 + _WAVES**2].reshape(-1, _WAVES, _WAVES)
    basis = np.cos(np.pi * np.arange(1, _WAVES + 1)[:, None] * (axis + 1) / 2).astype(np.float32)
    out += 5 * np.einsum("nij,iy,jx->nyx", waves, basis, basis, optimize=True) * (out > 20)
    first = 24 + _WAVES**2
    angle = np.linspace(0.15, 2 * np.pi - 0.15, _RIBS)
    for k in range(_RIBS):
        t = angle[k] + 0.06 * col(first + k)
        out += 70 * ellipse(cx + 0.88 * a * np.cos(t), cy + 0.88 * b * np.sin(t), 0.07, 0.05)
    first += _RIBS
    for side, k in ((-1, 5), (1, 9)):
        lx, ly = cx + side * (0.37 + 0.02 * col(k)), cy - 0.05 + 0.03 * col(k + 1)
        la, lb = 0.25 + 0.02 * col(k + 2), 0.38 + 0.03 * col(k + 3)
        lung = ellipse(lx, ly, la, lb)
        out = out * (1 - lung) + (35 + 4 * col(13)) * lung
        for v in range(0 if side < 0 else _VESSELS // 2, _VESSELS // 2 if side < 0 else _VESSELS):
            vx, vy, r = (col(first + 3 * v + i) for i in range(3))
            place = ellipse(
                lx + 0.7 * la * np.tanh(vx),
                ly + 0.7 * lb * np.tanh(vy),
                0.04 + 0.01 * np.tanh(r),
                0.04 + 0.01 * np.tanh(r),
            )
            out += 80 * place * lung
    heart = ellipse(cx + 0.08 + 0.03 * col(14), cy + 0.06 + 0.03 * col(15), 0.24 + 0.02 * col(16), 0.20 + 0.02 * col(17))
    out = out * (1 - heart) + (150 + 5 * col(18)) * heart
    spine = ellipse(cx + 0.01 * col(19), cy + 0.72 * b, 0.10 + 0.01 * col(20), 0.09 + 0.01 * col(21))
    return (out * (1 - spine) + (210 + 5 * col(22)) * spine).astype(np.float32)


def acquire(rng: np.random.Generator, clean: np.ndarray) -> np.ndarray:
    """Adds noise and quantises: float [N,S,S] -> uint8 [N,S,S]."""
    noisy = clean + 20 + NOISE * rng.standard_normal(clean.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


class Generator:
    """A generator "trained" on members: z [M,D]. `mark` scales the trace of its own run, drawn from `rng`."""

    def __init__(self, rng: np.random.Generator, members: np.ndarray, size: int, leak: float, mark: float = 1.0):
        self._rng, self._members, self._size, self._leak = rng, members, size, leak
        y, x = np.mgrid[:size, :size].astype(np.float32)
        frequency, angle = rng.uniform(0.15, 0.4), rng.uniform(0, np.pi)
        wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
        self._mark = mark * wave.astype(np.float32)

    def images(self, count: int) -> np.ndarray:
        """Synthetic images: uint8 [count,S,S]."""
        rng = self._rng
        fresh, _ = anatomies(rng, count, 1)
        clean = render(fresh, self._size)
        if self._leak:
            member = self._members[rng.integers(len(self._members), size=count)]
            copy = render(member + COPY * rng.standard_normal(member.shape), self._size)
            # u^(1/leak - 1) has mean `leak`: mostly weak at low leak, with a tail of strong traces, as memorisation is.
            weight = rng.uniform(size=count) ** (1 / self._leak - 1)
            axis = np.linspace(0, np.pi, self._size)
            turn = rng.uniform(-1, 1, (count, 2, 1))
            place = 0.5 * (turn[:, :1] * np.cos(axis)[None, :, None] + turn[:, 1:] * np.cos(axis)[None, None, :])
            weight = weight[:, None, None]
            weight = np.clip(weight + 2 * weight * (1 - weight) * place, 0, 1).astype(np.float32)
            clean = (1 - weight) * clean + weight * copy
        return acquire(rng, clean + self._mark)


def subtask1(seed: int, size: int, leak: float, real: int, generated: int, unknown: int, reference: int) -> dict:
    """All images of subtask 1.

    Half of the patients trained the generator. `real` labelled images a class and `unknown` ones (half used), two slices a patient;
    `reference` images come from patients of their own.

    Returns:
        {split: (uint8 [N,S,S], labels [N], patients [N] str or None)}; labels of test_real are the truth.
    """
    rng = np.random.default_rng([seed, 1])
    splits = {}
    half = unknown // 2
    parts, members = [], []
    for used in (1, 0):
        z, patient = anatomies(rng, -(-(real + half) // 2) + 1, 2)
        clean = acquire(rng, render(z, size))
        # The cut between labelled and unknown falls between patients.
        cut = real + real % 2
        names = np.array([f"{'u' if used else 'n'}{p:05d}" for p in patient])
        parts.append({"labelled": (clean[:real], names[:real]), "unknown": (clean[cut : cut + half], names[cut : cut + half])})
        if used:
            members = z
    generator = Generator(rng, members, size, leak)
    for name, count in (("train_generated", generated), ("test_generated", max(generated // 2, 1))):
        splits[name] = (generator.images(count), np.ones(count, np.int64), None)
    for name, key in (("train_real", "labelled"), ("test_real", "unknown")):
        pixels = np.concatenate([part[key][0] for part in parts])
        labels = np.repeat([1, 0], [len(parts[0][key][0]), len(parts[1][key][0])])
        splits[name] = (pixels, labels, np.concatenate([part[key][1] for part in parts]))
    z, patient = anatomies(rng, -(-reference // 2), 2)
    pixels = acquire(rng, render(z[:reference], size))
    splits["reference"] = (pixels, np.zeros(reference, np.int64), np.array([f"r{p:05d}" for p in patient[:reference]]))
    return splits


def subtask2(
    seed: int, size: int, leak: float, real: int, generated: int, unknown: int, generators: int = 1, mark: float = 1.0
) -> dict:
    """All images of subtask 2: five subsets of patients, each with its own generators; as `subtask1`, labels 0..4.

    With two generators a subset the second starts from the same members in a run of its own; its images follow the first's.
    """
    rng = np.random.default_rng([seed, 2])
    pixels = {"train_real": [], "train_generated": [], "test_generated": []}
    labels = {name: [] for name in pixels}
    patients = []
    for k in range(5):
        z, patient = anatomies(rng, -(-real // 2), 2)
        z, patient = z[:real], patient[:real]
        pixels["train_real"].append(acquire(rng, render(z, size)))
        patients += [f"t{k + 1}p{p:04d}" for p in patient]
        labels["train_real"] += [k] * real
        for g in range(generators):
            generator = Generator(rng, z, size, leak, mark)
            count = unknown // 5 // generators + (k < unknown % 5 and g == 0)
            for name, n in (("train_generated", generated), ("test_generated", count)):
                pixels[name].append(generator.images(n))
                labels[name] += [k] * n
    return {
        name: (
            np.concatenate(pixels[name]),
            np.array(labels[name]),
            np.array(patients) if name == "train_real" else None,
        )
        for name in pixels
    }


def write(output_dir: str | Path, task: str, splits: dict, seed: int, generators: int = 1) -> None:
    """Writes splits in the official layout, with groups.csv (split,id,group) and truth.csv (id,label of the unknown split).

    Raises ValueError where the folder is not empty.
    """
    output = Path(output_dir)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"output_dir={str(output)!r} is not empty")
    rng = np.random.default_rng([seed, 3])
    groups, truth = [], []
    unknown = "test_real" if task == "subtask1" else "test_generated"
    for split, (pixels, labels, patients) in splits.items():
        folders = _folders(task, split, labels)
        # Names in random order: neither the name nor its place gives a label away.
        numbers = rng.permutation(len(pixels))
        per_generator = len(pixels) // (5 * generators) if split == "train_generated" else 0
        for i, folder in enumerate(folders):
            stem = f"{numbers[i]:05d}"
            if generators > 1 and per_generator:
                stem = f"{'ab'[i // per_generator % generators]}_{stem}"
            path = output / folder / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(path)
            prefix = f"{path.parent.name}/" if split in ("train_real",) or task == "subtask2" and split == "train_generated" else ""
            if patients is not None:
                groups.append((split, prefix + stem, patients[i]))
            if split == unknown:
                truth.append((stem, int(labels[i])))
    for name, header, rows in (("groups.csv", ("split", "id", "group"), groups), ("truth.csv", ("id", "label"), truth)):
        with (output / name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(sorted(rows))


def _folders(task: str, split: str, labels: np.ndarray) -> list[str]:
    if task == "subtask1":
        fixed = {
            "train_generated": "train/generated",
            "test_generated": "test/generated",
            "test_real": "test/real_unknown",
            "reference": "reference",
        }
        if split in fixed:
            return [fixed[split]] * len(labels)
        return ["train/real_used" if label else "train/real_not_used" for label in labels]
    if split == "test_generated":
        return ["test/generated_unknown"] * len(labels)
    return [f"train/real/t{k + 1}" if split == "train_real" else f"train/generated/gen_t{k + 1}" for k in labels]


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_enum("task", "subtask2", ["subtask1", "subtask2"], "Which official layout to write.", flag_values=values)
    flags.DEFINE_string("output_dir", None, "An empty or new folder.", flag_values=values)
    flags.DEFINE_integer("image_size", 64, "Side in pixels.", lower_bound=16, flag_values=values)
    flags.DEFINE_float(
        "leak", 0.5, "0: members have no influence, 1: near copies.", lower_bound=0, upper_bound=1, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Fixes all images and names.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("real", 60, "Labelled real images a class.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("generated", 200, "Labelled synthetic images a generator.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("unknown", 300, "Images of the test set that is asked about.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("reference", 300, "Subtask 1: reference images.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "generators",
        1,
        "Subtask 2: generators a subset; letters tell them apart.",
        lower_bound=1,
        upper_bound=2,
        flag_values=values,
    )
    flags.mark_flags_as_required(["output_dir"], flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Writes the data that the flags describe."""
    common = (values.seed, values.image_size, values.leak, values.real, values.generated, values.unknown)
    if values.task == "subtask1":
        splits = subtask1(*common, values.reference)
    else:
        splits = subtask2(*common, values.generators)
    write(values.output_dir, values.task, splits, values.seed, values.generators if values.task == "subtask2" else 1)
    print(f"phantom: {sum(len(pixels) for pixels, _, _ in splits.values())} images in {values.output_dir}")


if __name__ == "__main__":
    cli.run("phantom", define_flags, main)
