"""The parts of an audit, one after the other; each stands on disk when it is done, and is not done again.

OUTPUT/data/             the packed images
OUTPUT/audit_plan.json   what is going to be done, written before any score meets a label
OUTPUT/stages/           a file a part
OUTPUT/network/          the networks that join the panel on request: their images, and runs for attack and control
OUTPUT/seconds.json      what each part took
OUTPUT/scores.csv        the panel's scores of every real image
OUTPUT/audit.json        everything, docs/audit.md, audit.schema.json
OUTPUT/audit.yaml        the flags, settings.py
"""

import contextlib
import csv
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_jax.audit import content, copies, imprint, network, panel, stand_ins, verdict
from fingerprint_jax.audit.patients import DEFAULT, Patients
from fingerprint_jax.audit.sides import CLASSES, Images, Sides
from fingerprint_jax.data import controls, phantom
from fingerprint_jax.data.source import Source
from fingerprint_jax.estimators import unlabelled
from fingerprint_jax.report import neighbours, places
from fingerprint_jax.runs.config import identity
from fingerprint_jax.runtime import environment, files, plugins
from fingerprint_jax.stats import permutation, score_metrics

log = logging.getLogger(__name__)

SHOWN = 8  # pairs of pictures
LEAST = imprint.LEAST  # images, and groups, of each kind that anything is said about
ALPHA, FDR = 0.05, 0.05
APART = "files", "order"  # controls that stand beside the others: no attack sees a file or a name, so that they explain no score
REFERENCE_FROM = "given", "half of not_used"


class Audit(Sides):
    """The parts of one audit.

    Args:
        output: the folder of the audit.
        source: the packed data.
        seed: of everything that is drawn.
        repeats: of each imprint, kind and rate; 0 leaves the detection limit out.
        joins: the networks that join the panel, with a rank average. The detection limit is without them.
        score: of a patient, of `patients.SCORES`.
    """

    def __init__(
        self,
        output: Path,
        source: Source,
        seed: int = 0,
        repeats: int = 20,
        joins: network.Joins | None = None,
        score: str = DEFAULT,
    ) -> None:
        super().__init__(source, seed)
        self.output, self.repeats, self.joins, self.score = output, repeats, joins or {}, score
        self.methods = panel.METHODS + network.names(self.joins)

    def plan(self) -> tuple[dict, str]:
        """What is going to be done and the SHA-256 of its file; written on the first call, and afterwards the same or refused.

        Raises ValueError where the output holds the plan of another audit, and names the entries that differ; and where the
        reference has too few patients for a network that joins.
        """
        for name in self._of_patients:
            if (few := self._paired(self.sides["reference"])) < LEAST:
                raise ValueError(
                    f"--{name} learns from patients of the reference with two images or more: there are {few}, at least {LEAST} are"
                    " needed (--groups)"
                )
        plan = {
            "methods": list(self.methods),
            "options": panel.OPTIONS | self._of_networks(),
            "sign": "a higher score is likelier used",
            "statistic": "the largest AUC of the methods, used against not used",
            "alpha": ALPHA,
            "permutations": permutation.PERMUTATIONS,
            "seed": self.seed,
            "reference_from": REFERENCE_FROM["reference" not in self.source.splits],
            "controls": [
                "the methods with the half of the reference most like the synthetic images in place of them, or phantoms",
                *content.KINDS,
                *stand_ins.KINDS,
                "the methods with the used images of other folds as synthetic and their not used ones as reference",
            ],
            "excess": f"the largest AUC of the methods less that of the controls but {' and '.join(APART)}, or 0.5",
            "reference_control": "layout and grain of each class of real images against the reference; no part of the excess",
            "verdict": verdict.RULES,
            "fdr": FDR,
            "imprints": {
                "kinds": [list(kind) for kind in imprint.KINDS],
                "rates": list(imprint.RATES),
                "repeats": self.repeats,
                "null_repeats": imprint.NULL_REPEATS,
                "permutations": imprint.PERMUTATIONS,
            },
            "least": LEAST,
            "versions": environment.libraries(),
            "fingerprints": self.source.fingerprints,
            "counts": self.counts,
        }
        if self.grouped:  # else each image is a patient, and a plan is what it was without any
            plan["patients"] = {
                "score": self.score,
                "copies": "one p a patient, of its nearest image",
                "imprints": "one image a patient; rates are shares of the patients that play used",
                "counts": self.patients_of,
            }
        text = json.dumps(plan, indent=1)
        path = self.output / "audit_plan.json"
        if path.exists() and files.read_text(path).strip() != text:
            known = files.read_json(path, {}, "give another --output")
            differ = [name for name in plan.keys() | known.keys() if plan.get(name) != known.get(name)]
            raise ValueError(f"{path} is the plan of another audit ({', '.join(sorted(differ))} differ): give another --output")
        if not path.exists():
            files.write_text(path, text)
        return plan, self._plan_hash

    def _of_networks(self) -> dict:
        """The configs of the networks that join, and digests of the packages whose code they name."""
        code = {package: digest for config in self.joins.values() for package, digest in plugins.code(config).items()}
        return {name: identity(config) for name, config in self.joins.items()} | ({"code": code} if code else {})

    @property
    def _of_patients(self) -> list[str]:
        """The attacks that learn from the patients of the reference."""
        return [name for name, config in self.joins.items() if network.of_patients(config)]

    def _paired(self, side: Images) -> int:
        """How many patients have two images or more."""
        known = side.groups[self.source.patients(side.groups)]
        return int((np.unique(known, return_counts=True)[1] > 1).sum())

    @property
    def _plan_hash(self) -> str:
        return files.digest(self.output / "audit_plan.json")

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of a part: read where it is done by this plan, with the seal that it was written with, else computed anew."""
        path = self.output / "stages" / f"{name}.json"
        plan = self._plan_hash
        if path.exists():
            try:
                known = files.read_json(path, {"plan": str, "part": str, "seal": str}, "it is computed again")
                if (known["plan"], known["part"], known["seal"]) == (plan, name, files.seal(known)):
                    return known["found"]
                log.warning("%s is not as this audit wrote it: it is computed again", path)
            except (ValueError, KeyError) as error:
                log.warning("%s", error)
        log.info("%s", name)
        path.parent.mkdir(exist_ok=True)
        with timed(self.output, name):
            found = compute()
        sealed = {"plan": plan, "part": name, "found": json.loads(json.dumps(found))}
        files.write_text(path, json.dumps(sealed | {"seal": files.seal(sealed)}))
        return sealed["found"]

    @functools.cached_property
    def patients(self) -> Patients:
        """Of the labelled images; the figures are of these."""
        real = self.sides["real"]
        return Patients.of(real.labels, real.units)

    def _by_patient(self, scores: np.ndarray) -> np.ndarray:
        """The scores of patients, of those [N] or [N,M] of the labelled images."""
        return self.patients.scores(scores, self.score)

    def scores(self) -> dict[str, list]:
        """{method: scores} of the labelled images and then the unknown ones, ranks taken within each. No label is read."""
        real, asked = self.sides["real"], self.asked
        generated, reference = self.sides["generated"], self.sides["reference"]
        rows = panel.canonical(asked.pixels)
        found = np.empty((len(asked), len(panel.METHODS)))
        found[rows] = panel.compare(asked.take(rows).views, generated.views, reference.views, self.seed)
        parts = [panel.with_both(part[:, :-1]) for part in np.split(found, [len(real)]) if len(part)]
        if self.joins:
            of_networks = np.split(self._networks("panel", asked, generated, reference), [len(real)])
            parts = [network.joined(part, each) for part, each in zip(parts, of_networks, strict=False)]
        return dict(zip(self.methods, np.concatenate(parts).T.tolist(), strict=True))

    def _networks(self, part: str, real: Images, generated: Images, reference: Images) -> np.ndarray:
        folder, patients = self.output / "network" / part, np.where(self.source.patients(reference.groups), reference.groups, "")
        return network.scores(folder, self.joins, real.pixels, generated.pixels, reference.pixels, patients, self.seed)

    def replaced(self) -> dict:
        """The panel again on the labelled images, with what no generator made in place of the synthetic ones.

        These are the half of the reference that is most like the synthetic images by `stand_ins.likeness`, compared with the other
        half: what is drawn to the generator's content without its images is a difference of content.
        """
        real, reference = self.sides["real"], self.sides["reference"]
        half = stand_ins.most_alike(self.likeness[1], reference.units)
        by, given, rest = "matched reference images", reference.take(half), reference.take(~half)
        learned = not self._of_patients or self._paired(rest) >= LEAST // 2  # by half of the patients, or nearly
        if min(len(given), len(rest)) < LEAST or not learned:
            height, width = self.source.image_shape[:2]
            if height != width or height < 24:
                return {"reason": f"{len(reference)} reference images are too few to replace the synthetic ones"}
            made = phantom.subtask1(self.seed, height, leak=0.0, **controls.FOREIGN)["train_generated"].images
            by, given, rest = "phantoms", Images.unnamed(made[panel.canonical(made)]), reference
        found = panel.compare(real.views, given.views, rest.views, self.seed)
        if self.joins:
            found = network.joined(found, self._networks("replaced", real, given, rest))
        return {"replaced_by": by, "scores": dict(zip(self.methods, found.T.tolist(), strict=True))}

    @functools.cached_property
    def _seen(self) -> list[np.ndarray]:
        """What the classifiers see of the labelled, synthetic and reference images, by `stand_ins.sight` of all of them."""
        sides = [self.sides[name] for name in ("real", "generated", "reference")]
        all_of_them = Images.joined(*sides)
        seen = stand_ins.sight(all_of_them.pixels, all_of_them.views)
        return np.split(seen, np.cumsum([len(side) for side in sides])[:-1])

    @functools.cached_property
    def likeness(self) -> tuple[np.ndarray, np.ndarray]:
        """`stand_ins.likeness` of the labelled and of the reference images."""
        real, generated, reference = self._seen
        return stand_ins.likeness(real, generated, reference, self.seed)

    def alone(self) -> dict[str, list]:
        """{method: scores} of the labelled images beside other real images in place of synthetic ones and reference."""
        real = self.sides["real"]
        found = stand_ins.alone(real.views, real.labels, real.groups, self.seed)
        return dict(zip(panel.METHODS, found.T.tolist(), strict=True))

    def content(self) -> dict[str, list]:
        """{set of facts: scores} of the labelled images by themselves, cross-fitted, and their likeness to the synthetic ones."""
        real = self.sides["real"]
        found = content.scores(content.facts(real.pixels, real.views, self.files()), real.labels, real.groups, self.seed)
        found["coarse"] = stand_ins.coarse(*(self.sides[name].views.pixels for name in ("real", "generated", "reference")))
        found |= stand_ins.apart(real.views, self.sides["reference"].views)
        found["kernel"] = stand_ins.kernel(self._seen[0], real.labels, real.groups, self.seed)
        found["likeness"] = self.likeness[0]
        return {name: values.tolist() for name, values in found.items()}

    def against_reference(self) -> list[dict]:
        """AUC of a cross-fitted classifier of each class of real images against the reference: are these exchangeable?

        Of images and not of patients: of many images together the smallest difference can be told, and what counts is how near
        single ones lie. A class of fewer than LEAST patients is left out: its interval would be of no use.
        """
        asked, reference = self.asked, self.sides["reference"]
        both, units, lines = Images.joined(asked, reference), asked.units, []
        seen = content.look(both.pixels, both.views)
        # No patient is of both sides, and the names of images without one may be.
        units = np.concatenate([units, reference.units + units.max() + 1])
        for label, name in CLASSES.items():
            own = np.flatnonzero(asked.labels == label)
            if len(np.unique(units[own])) < LEAST:
                continue
            rows = np.concatenate([own, np.arange(len(asked), len(seen))])
            labels = (rows < len(asked)).astype(int)
            found = content.scores({"look": seen[rows]}, labels, units[rows], self.seed)["look"]
            interval = score_metrics.auc_interval(labels, found, units[rows])
            lines.append({"name": name, "auc": score_metrics.auc(labels, found), "interval": interval})
        return lines

    def exact(self) -> list[dict]:
        """Real images whose pixels are those of a synthetic one, a line each; `reference` images among them."""
        generated, lines = self.sides["generated"], []
        known = {image.tobytes(): id for image, id in zip(generated.pixels[::-1], generated.ids[::-1].tolist(), strict=True)}
        for name in ("real", "unknown", "reference"):
            side = self.sides[name]
            for i, image in enumerate(side.pixels):
                if match := known.get(image.tobytes()):
                    kind = "reference" if name == "reference" else CLASSES[int(side.labels[i])]
                    line = {"id": str(side.ids[i]), "class": kind, "group": str(side.groups[i])}
                    lines.append(line | {"match": match, "distance": 0.0})
        return sorted(lines, key=lambda line: (line["class"], line["id"]))

    def copies(self) -> dict:
        """What copies.py says of all real images, and which patients are concerned."""
        sides, asked = self.sides, self.asked
        reference = sides["reference"]
        found = copies.find(
            asked.pixels,
            reference.pixels,
            sides["generated"].pixels,
            groups=asked.groups,
            reference_groups=reference.groups,
            fdr=FDR,
        )

        def listed(chosen: np.ndarray, with_p: bool) -> list[dict]:
            order = np.flatnonzero(chosen)
            order = order[np.lexsort((asked.ids[order], found.distance[order]))]
            lines = []
            for i in order:
                line = {"id": asked.ids[i], "class": CLASSES[int(asked.labels[i])], "group": asked.groups[i]}
                line |= {"match": sides["generated"].ids[found.match[i]], "distance": float(found.distance[i])}
                lines.append(line | ({"p": float(found.p[i])} if with_p else {}))
            return lines

        # Any large set holds look-alikes: the reference images that are closest to a synthetic one stand beside.
        beside = [
            {"id": reference.ids[i], "match": sides["generated"].ids[match], "distance": float(distance)}
            for i, match, distance in zip(found.reference, found.reference_match, found.reference_distance, strict=True)
        ][:SHOWN]
        concerned = {g: int(found.flagged[asked.groups == g].sum()) for g in np.unique(asked.groups[found.flagged]).tolist()}
        return {
            "fdr": FDR,
            "reference": len(reference),
            "reference_groups": len(np.unique(reference.groups)),
            "smallest_p": found.smallest_p,
            "fewest": found.fewest,
            "closest_reference_pair": found.closest_reference_pair,
            "flagged": listed(found.flagged, True),
            "closer": listed(found.closer, False),
            "reference_pairs": beside,
            "groups": [{"group": g, "images": int((asked.groups == g).sum()), "flagged": count} for g, count in concerned.items()],
        }

    def limit(self) -> dict:
        """The detection limit; its points are kept one by one."""
        if not self.repeats:
            return {"reason": "left out, --repeats=0"}
        counts, reference = self.patients_of, self.sides["reference"]
        path = self.output / "stages" / "limit_points.jsonl"
        plan = self._plan_hash

        def sealed(key: str, point: dict) -> list:
            return [key, point, files.seal({"plan": plan, "key": key, "point": point})]

        done = {
            line[0]: line[1]
            for line in files.read_journal(path)
            if isinstance(line, list) and len(line) == 3 and line == sealed(*line[:2])
        }
        with files.appending(path) as file:

            def save(key: str, point: dict) -> None:
                file.write(json.dumps(sealed(key, point)) + "\n")
                file.flush()

            try:
                return imprint.limit(
                    reference.pixels,
                    reference.groups,
                    self.sides["generated"].pixels,
                    counts["used_patients"],
                    counts["not_used_patients"],
                    seed=self.seed,
                    repeats=self.repeats,
                    alpha=ALPHA,
                    score=self.score,
                    done=done,
                    save=save,
                )
            except imprint.TooFew as error:
                return {"reason": str(error)}

    def primary(self, scores: np.ndarray) -> dict:
        """AUC of each method [N,M], of patients, and the family-wise p of the largest; a reason where it cannot be had."""
        real = self.sides["real"]
        for label, name in ((1, "used"), (0, "not used")):
            if (few := len(np.unique(real.groups[real.labels == label]))) < LEAST:
                return {"reason": f"{few} patients or images are {name}: at least {LEAST} are needed"}
        if reason := permutation.uneven(real.labels, real.groups):
            return {"reason": reason}
        asked, scores = self.patients, self._by_patient(scores)
        auc = permutation.auc_of(scores)
        observed = auc(asked.labels)
        found = permutation.permutation_p(auc, asked.labels, asked.groups, seed=self.seed)
        lines = [
            {"name": name, "auc": float(value), "interval": score_metrics.auc_interval(asked.labels, column, asked.groups), "p": p}
            for name, value, column, p in zip(self.methods, observed, scores.T, found["p"], strict=True)
        ]
        wrong = permutation.p_of(1 - observed, 1 - found["null"])["family_wise"]
        kept = {name: found[name] for name in ("permutations", "split_groups")}
        return {"methods": lines, "p": found["family_wise"], "p_wrong_direction": wrong} | kept

    def control_figures(self, replaced: dict, of_content: dict[str, list], alone: dict[str, list]) -> dict:
        """AUCs of the controls, beside each other."""
        if "reason" in replaced:
            return replaced
        asked = self.patients

        def figure(name: str, scores: list) -> dict:
            column = self._by_patient(np.array(scores))
            interval = score_metrics.auc_interval(asked.labels, column, asked.groups)
            return {"name": name, "auc": score_metrics.auc(asked.labels, column), "interval": interval}

        parts = {"content": of_content, "replaced": replaced["scores"], "alone": alone}
        found = {name: [figure(*item) for item in scores.items()] for name, scores in parts.items()}
        return found | {"replaced_by": replaced["replaced_by"]}

    def excess(self, scores: np.ndarray, replaced: dict, of_content: dict[str, list], alone: dict[str, list]) -> dict:
        """How far the best method is above the largest control but `APART`, of which no method sees anything."""
        against = {f"{name}, replaced": values for name, values in replaced["scores"].items()}
        against |= {f"{name}, real images alone": values for name, values in alone.items()}
        against |= {name: values for name, values in of_content.items() if name not in APART}
        against["chance"] = [0.0] * len(self.sides["real"])  # AUC 0.5: controls may all be below it
        asked, names = self.patients, list(against)
        attacks, others = (self._by_patient(x) for x in (scores, np.array(list(against.values())).T))
        found = score_metrics.excess_auc(asked.labels, attacks, others, asked.groups, self.seed)
        return found | {"attack": self.methods[found["attack"]], "control": names[found["control"]]}

    def pictures(self, found: dict) -> list[tuple[str, np.ndarray, np.ndarray, str]]:
        """Pairs to look at, of the part `copies`: (title, real image, its nearest synthetic one, what they are)."""
        sides, pairs = self.sides, []
        generated = sides["generated"]
        listed = found["flagged"] or found["closer"]

        def add(prefix: str, side: Images, line: dict, what: str) -> None:
            left, right = side.pixels[side.ids == line["id"]][0], generated.pixels[generated.ids == line["match"]][0]
            text = f"{what} and its nearest synthetic image, distance {line['distance']:.3f}"
            pairs.append((f"{prefix}{line['id']} and {line['match']}", left, right, text))

        # At least LEAST reference images: there is one for each.
        for rank, (line, other) in enumerate(zip(listed[:SHOWN], found["reference_pairs"], strict=False)):
            side = sides["unknown" if line["class"] == "unknown" else "real"]
            add("", side, line, f"real image ({line['class'].replace('_', ' ')})")
            closest = f"the reference image that is closest but {rank}" if rank else "the closest reference image"
            add("to compare with: ", sides["reference"], other, closest)
        return pairs

    def places(self) -> places.Found:
        """Where the labelled images with the highest and the lowest scores of `local_match` are found, once there is a panel."""
        real, near, far = (self.sides[name] for name in ("real", "generated", "reference"))
        scores = np.array(self.stage("panel", self.scores)["local_match"])[: len(real)]
        of_near, of_far = (unlabelled(side.views.square, 0) for side in (near, far))
        cases = [
            places.Case(
                f"{CLASSES[int(real.labels[i])].replace('_', ' ')}, score {scores[i]:.3g} of local match".replace(
                    "-", places.MINUS
                ),
                str(real.ids[i]),
                real.views.square[i],
                of_near,
                of_far,
                near.ids.tolist(),
            )
            for i in neighbours.extremes(scores)
        ]
        grid = {name: panel.OPTIONS["local_match"][name] for name in ("patch", "stride", "radius")}
        return places.section(cases, places.OF_MEMBERSHIP, self.seed, **grid)

    def run(self) -> dict:
        """All parts: what stands in audit.json but for the verdict, and writes scores.csv."""
        plan, digest = self.plan()
        document: dict = {
            "plan": plan,
            "plan_hash": digest,
            "counts": plan["counts"] | self.left_out | self.patients_of,
            "image_size": list(self.source.image_shape[:2]),
        } | self.source.window
        document |= {"reference_from": plan["reference_from"], "fingerprints": plan["fingerprints"], "excess": None}
        real = self.sides["real"]
        document["exact"], document["near"] = self.exact(), self.near()
        document["counts"]["within"] = document["near"]["within"]
        # Equal images are of one group.
        generated, patients = (len(np.unique(self.sides[name].groups)) for name in ("generated", "reference"))
        if min(generated, patients) < LEAST:
            many = f"{generated} different synthetic images and {patients} reference patients or images"
            short = {"reason": f"{many}: at least {LEAST} of each are needed"}
            return document | dict.fromkeys(("panel", "controls", "copies", "limit"), short)
        document["turned"] = self.stage("turned", self.turned)
        by_method = self.stage("panel", self.scores)
        scores = np.array(list(by_method.values())).T
        self._write_scores(scores)
        document["panel"] = self.stage("primary", lambda: self.primary(scores[: len(real)]))
        document["copies"] = self.stage("copies", self.copies)
        if "reason" in document["panel"]:
            return document | dict.fromkeys(("controls", "limit"), document["panel"])
        replaced, of_content = self.stage("replaced", self.replaced), self.stage("content", self.content)
        controls = replaced, of_content, self.stage("alone", self.alone)
        document["controls"] = self.stage("controls", lambda: self.control_figures(*controls))
        document["copies"]["against_reference"] = self.stage("reference", self.against_reference)
        if "reason" not in replaced:
            document["excess"] = self.stage("excess", lambda: self.excess(scores[: len(real)], *controls))
        document["limit"] = self.stage("limit", self.limit)
        return document

    def _write_scores(self, scores: np.ndarray) -> None:
        ids = np.concatenate([self.sides["real"].ids, self.sides["unknown"].ids])
        order = np.argsort(ids, kind="stable")
        with files.replacing(self.output / "scores.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", *self.methods])
            writer.writerows([name, *map("{:.9g}".format, row)] for name, row in zip(ids[order], scores[order], strict=True))


@contextlib.contextmanager
def timed(output: Path, name: str) -> Generator[None]:
    """Adds what the block takes, ends it well or not, to the seconds of the part `name`."""
    path, begin = output / "seconds.json", time.monotonic()
    try:
        yield
    finally:
        known = seconds(output)
        known[name] = known.get(name, 0.0) + time.monotonic() - begin
        files.write_text(path, json.dumps(known))


def seconds(output: Path) -> dict[str, float]:
    """What each part took so far; no result hangs on it, so that a file that is none of ours counts as none."""
    try:
        known = files.read_json(output / "seconds.json", {}, "")
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in known.items() if isinstance(value, float) and math.isfinite(value)}
