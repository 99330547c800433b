"""The images that an audit is about: labelled, unknown, synthetic and reference ones; what is left out of them, and refused."""

import dataclasses
import functools
import hashlib

import numpy as np

from fingerprint_jax.audit import content, copies, panel
from fingerprint_jax.data import folders
from fingerprint_jax.data.source import Source
from fingerprint_jax.stats import bootstrap

CLASSES = {1: "used", 0: "not_used", -1: "unknown"}


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one kind, in the order of digests of their pixels: nothing that is drawn depends on names or order of files."""

    ids: np.ndarray  # [N] str
    pixels: np.ndarray  # uint8 [N,H,W]
    labels: np.ndarray  # int [N], 1 used, 0 not used, -1 unknown
    groups: np.ndarray  # str [N]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, selection: np.ndarray) -> "Images":
        """Some of them, or all in another order."""
        taken = Images(*(getattr(self, field.name)[selection] for field in dataclasses.fields(self)))
        if "views" in self.__dict__:
            taken.__dict__["views"] = panel.some(self.views, selection)
        return taken

    @staticmethod
    def unnamed(pixels: np.ndarray) -> "Images":
        """Images of which only the pixels matter."""
        names = np.arange(len(pixels)).astype(str)
        return Images(names, pixels, np.full(len(pixels), -1), names)

    @staticmethod
    def joined(*parts: "Images") -> "Images":
        """Those of all parts, in order."""
        both = Images(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Images)))
        if full := [part.views for part in parts if len(part)]:
            both.__dict__["views"] = panel.joined(*full)
        return both

    @functools.cached_property
    def views(self) -> panel.Views:
        """What the attacks see of them, computed once: registering is the slow part of reading."""
        return panel.views(self.pixels)

    @property
    def units(self) -> np.ndarray:
        """The group of each, int [N], numbered as they come: where groups are drawn, their names have no say."""
        return bootstrap.as_they_come(self.groups)


class Sides:
    """The images of a packed data set, as an audit sees them.

    Args:
        source: the packed data.
        seed: of what is drawn.
    """

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed
        self._blank: dict[str, int] = {}  # images of each split that show nothing

    def images(self, split: str) -> Images:
        """The images of a packed split but for those that show nothing (`content.shown`); empty where it is not there."""
        if split not in self.source.splits:
            none = np.array([], str)
            return Images(none, np.empty((0, *self.source.image_shape[:2]), np.uint8), np.empty(0, np.int64), none)
        rows = self.source.rows(split)
        if damaged := self.source.damaged_ids(rows):
            raise ValueError(f"{self.source.path}: damaged records ({damaged}): remove it to pack the folders again")
        found = Images(rows.ids, self.source.images(rows.index)[..., 0], rows.labels, rows.groups)
        shown = content.shown(found.pixels)
        self._blank[split], found = int((~shown).sum()), found.take(shown)
        return found.take(panel.canonical(found.pixels))

    @functools.cached_property
    def sides(self) -> dict[str, Images]:
        """`real` (labelled), `unknown`, `generated`, `reference`; without one, half of the groups not used are the reference."""
        height, width = self.source.image_shape[:2]
        if min(height, width) < copies.LEAST_SIDE:
            raise ValueError(f"images of {width}x{height} pixels: at least {copies.LEAST_SIDE} a side are needed")
        real, unknown, reference = (self.images(split) for split in ("train_real", "test_real", "reference"))
        self._refuse_shared(real, unknown, reference)
        if not len(reference):
            unused = np.flatnonzero(real.labels == 0)
            chosen = unused[halved(real.pixels[unused], real.groups[unused], self.seed)]
            # A patient with used images as well stays whole.
            chosen = chosen[~np.isin(real.groups[chosen], real.groups[real.labels == 1])]
            reference, real = real.take(chosen), real.take(np.setdiff1d(np.arange(len(real)), chosen))
        return {"real": real, "unknown": unknown, "generated": self.images("train_generated"), "reference": reference}

    @property
    def counts(self) -> dict:
        """Images of each kind, patients among the labelled ones, and images that stand in two splits or classes."""
        real = self.sides["real"]
        found = {"used": int((real.labels == 1).sum()), "not_used": int((real.labels == 0).sum())}
        found |= {name: len(self.sides[name]) for name in ("unknown", "generated", "reference")}
        return found | {
            "groups": len(np.unique(real.groups)),
            "duplicates": len({(row["split"], row["id"]) for row in self._duplicates}),
        }

    @property
    def left_out(self) -> dict:
        """Real images in all, and what of the folders and of --groups has no part, or no patient; 0 where pack did not count it."""
        splits = self.source.summary["splits"]
        real = [splits[name] for name in ("train_real", "test_real", "reference") if name in splits]
        return {
            "blank": sum(self._blank.values()),
            "real": sum(split["count"] for split in real),
            "without_patient": sum(split.get("without_patient", 0) for split in real),
            "unmatched_ids": self.source.summary.get("unmatched_ids", 0),
        }

    @property
    def _groups(self) -> dict[str, np.ndarray]:
        """The groups of the real images of each kind, and of all that are asked about."""
        real, unknown = self.sides["real"], self.sides["unknown"].groups
        kinds = {name: real.groups[real.labels == label] for label, name in CLASSES.items() if label >= 0} | {"unknown": unknown}
        return kinds | {"asked": np.concatenate([real.groups, unknown]), "reference": self.sides["reference"].groups}

    @property
    def patients_of(self) -> dict[str, int]:
        """Patients of each kind of real images, and of all that are asked about; an image without one is its own."""
        return {f"{name}_patients": len(np.unique(groups)) for name, groups in self._groups.items()}

    @property
    def grouped(self) -> bool:
        """Whether any patient has several real images."""
        return any(len(np.unique(groups)) < len(groups) for groups in self._groups.values())

    def _refuse_shared(self, real: Images, unknown: Images, reference: Images) -> None:
        """Raises ValueError where patients or pixels of one kind are of another: what is asked about is no reference."""
        twice = {}
        sides = (("train_real", real), ("test_real", unknown), ("reference", reference))
        kept = {(split, name) for split, side in sides for name in side.ids.tolist()}  # what shows nothing is left out anyway
        for row in self._duplicates:
            if (row["split"], row["id"]) not in kept:
                continue
            kinds = {row["split"], row["other_split"]}
            if ("reference" in kinds and kinds & {"train_real", "test_real"}) or kinds == {"train_real"}:
                twice[row["split"], row["id"]] = row["other_id"]
        if twice:
            (_, id), other = next(iter(twice.items()))
            raise ValueError(
                f"{len(twice)} images stand in two folders of real images, the first {id!r} and {other!r} are the same image: each"
                f" can stand in one of them only; {self.source.path / 'duplicates.csv'} lists them (kind exact)"
            )
        shared = np.isin(reference.groups, np.concatenate([real.groups, unknown.groups])) & self.source.known(reference.groups)
        if shared.any():
            first = str(reference.groups[shared][0])
            table = self.source.path / "files.csv"
            many = f"{shared.sum()} images of patients that are asked about (first: {first!r}; {table} has the patients)"
            raise ValueError(f"reference: leave out {many}")

    @functools.cached_property
    def _pairs(self) -> list[dict[str, str]]:
        """Equal and near images, of one folder and of two; constant ones have another kind."""
        columns: dict[str, type] = dict.fromkeys(("kind", "split", "label", "id", "other_split", "other_label", "other_id"), str)
        return [row for row in folders.read_table(self.source.path / "duplicates.csv", columns) if row["kind"] in ("exact", "near")]

    @property
    def _duplicates(self) -> list[dict[str, str]]:
        """Equal images of two splits or classes."""
        exact = [row for row in self._pairs if row["kind"] == "exact"]
        return [row for row in exact if (row["split"], row["label"]) != (row["other_split"], row["other_label"])]

    def near(self) -> dict[str, int]:
        """Used and not used images that have a near duplicate in the other of the two folders or in the reference.

        And, as `within`, labelled images without a patient that have one in their own folder. Such images are one image that was
        saved anew, or neighbours in one patient: the classes cannot differ by those, and these count as several patients.
        """
        real = self.sides["real"]
        alone = set(real.ids[~self.source.known(real.groups)].tolist())
        found: dict[str, set[str]] = {"used": set(), "not_used": set(), "within": set()}
        for row in self._pairs:
            if row["kind"] == "near" and row["split"] == "train_real":
                own = (row["other_split"], row["other_label"]) == (row["split"], row["label"])
                if own and row["id"] in alone:
                    found["within"].add(row["id"])
                elif not own and row["other_split"] in ("train_real", "reference"):
                    found[CLASSES[int(row["label"])]].add(row["id"])
        return {name: len(ids) for name, ids in found.items()}

    def turned(self) -> dict | None:
        """How the synthetic images lie nearer to the real ones than as they were given, see `content.turned`."""
        known = np.concatenate([self.sides[name].pixels for name in ("real", "reference")])
        return content.turned(self.sides["generated"].pixels, known)

    @functools.cached_property
    def asked(self) -> Images:
        """The real images asked about: the labelled ones, and then the unknown ones."""
        return Images.joined(self.sides["real"], self.sides["unknown"])

    def files(self) -> dict[str, list]:
        """What the files of the labelled images say beside their pixels, by column of files.csv."""
        facts = folders.read_facts(self.source.path / "files.csv", "train_real")
        position = {name: i for i, name in enumerate(facts["id"])}
        order = [position[name] for name in self.sides["real"].ids.tolist()]
        return {name: [values[i] for i in order] for name, values in facts.items()}


def halved(pixels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """About half of whole groups, bool [N], chosen by the content of their images alone: names and order change nothing."""
    if not len(pixels):
        return np.zeros(0, bool)
    digests = [hashlib.sha256(f"{seed}".encode() + image.tobytes()).hexdigest() for image in pixels]
    names, group = np.unique(groups, return_inverse=True)
    key = [min(digests[i] for i in np.flatnonzero(group == g)) for g in range(len(names))]
    chosen = np.zeros(len(names), bool)
    chosen[np.argsort(key)[: len(names) // 2]] = True
    return chosen[group]
