"""How often an attack on a phantom is significant: its power at a leak, and at leak 0 how often it is wrong.

    python -m launch.power --file=launch/tables/subtask1.py --rows=local_match,gan_leaks_pixels --leaks=0,0.3,1 --draws=20 \
        --output=power

For rows that read no label and train no network. A draw is a phantom of its own: generator, images, members. What was measured is
a line of `draws.jsonl` below `--output`, and the same command with more draws, leaks or rows goes on from there.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax import Config, features
from fingerprint_jax.data import phantom
from fingerprint_jax.estimators import Features, unlabelled
from fingerprint_jax.methods import classical, ensemble
from fingerprint_jax.runs.config import code_hash, network_config
from fingerprint_jax.runtime import cli, environment, files, paths
from fingerprint_jax.stats import metrics, permutation
from launch import sweep
from launch.formats import interval, markdown, number
from launch.systems import resolve

ALPHA = 0.05


class Phantom:
    """A draw, and the features of its images: each is computed once."""

    def __init__(self, seed: int, size: int, leak: float, real: int, generated: int, unknown: int, reference: int) -> None:
        # Its patients have one image each: the images are what is permuted.
        self.splits = phantom.subtask1(seed, size, leak, real, generated, unknown, reference, slices=1)
        self.labels = self.splits["train_real"].labels
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def scores(self, config: Config, seed: int = 0) -> np.ndarray:
        """Column 0 of the scores [N] of `train_real` by an attack, given all images of the other splits that its gallery lists."""
        if config.method == "ensemble":
            found = np.stack([self.scores(inner, seed)[:, None] for inner in ensemble.variants(config).values()])
            return ensemble.combined(config, found)[:, 0]
        options, beside = classical.of_images(config), config.features.beside
        key = json.dumps([options, beside], sort_keys=True)
        if key not in self._known:
            functions = [features.get(**options), *([features.get(beside, config.features.enhance)] if beside else [])]
            self._known[key] = {
                name: classical.side_by_side([function(split.images[..., None]) for function in functions])
                for name, split in self.splits.items()
            }
        streams, first = {}, 0
        for name, values in self._known[key].items():
            streams[name] = unlabelled(values, first)
            first += len(values)
        gallery = {}
        for name, splits in config.gallery.items():
            parts = [streams[split] for split in splits if split in streams]
            if parts:
                gallery[name] = Features(*(np.concatenate(column) for column in zip(*map(_columns, parts), strict=True)))
        return classical.scores(config, streams["train_real"], gallery, seed)[:, 0]


def _columns(rows: Features) -> tuple[np.ndarray, ...]:
    return rows.values, rows.labels, rows.index


def attack(row_name: str, config: Config) -> Config:
    """The config of the scores of a row, without the folds of its threshold: of an estimator, or an ensemble of several.

    Raises ValueError where it needs labels or a network, or chooses among members.
    """
    if config.method == "ensemble":
        e = config.ensemble
        if e.runs or e.admit or e.best_variant or e.seeds > 1:
            raise ValueError(f"row {row_name} combines finished runs, several seeds or chosen members: a power is of other rows")
        if not e.variants:
            return attack(row_name, config.member)
        found: Config = ConfigDict(config.to_dict())
        found.data.update({"folds": 0, "fold": -1, "valid": 0.0, "sequester": 0.0})
        found.decision = ConfigDict(network_config(config).decision.to_dict())
        found.ensemble.variants = ConfigDict({name: attack(row_name, each) for name, each in ensemble.variants(config).items()})
        return found
    inner = network_config(config)
    if inner.method != "classical":
        raise ValueError(f"row {row_name} has features of a network: a power is of features of the images")
    if read := [split for splits in inner.gallery.values() for split in splits if split.startswith("train_real")]:
        raise ValueError(f"row {row_name} reads labels ({', '.join(read)}): a power is of rows that read none")
    return inner


def key(line: dict) -> str:
    """What a line is of."""
    return json.dumps(
        [*(line[name] for name in ("leak", "draw", "row", "config", "settings")), line.get("code", {})], sort_keys=True
    )


def draws(attacks: dict[str, Config], leaks: list[float], count: int, known: list[dict], settings: dict) -> Iterator[dict]:
    """A line a leak, draw and attack that is not among the `known`: {leak, draw, row, auc, p} and what it rests on."""
    done = set(map(key, known))
    for draw in range(count):
        for leak in leaks:
            drawn = None
            for name, config in attacks.items():
                line = {"leak": leak, "draw": draw, "row": name, "config": code_hash(config), "settings": settings}
                if key(line) in done:
                    continue
                drawn = drawn or Phantom(draw, leak=leak, **settings)
                auc = permutation.auc_of(drawn.scores(config))
                p = permutation.permutation_p(auc, drawn.labels)["p"][0]
                yield line | {"auc": float(auc(drawn.labels)[0]), "p": p}


def known_draws(path: Path) -> list[dict]:
    """The lines of draws.jsonl; raises ValueError that names the file where one is none that `draws` gives, see `read_journal`."""
    found = files.read_journal(path, begins='{"leak": ')
    kinds = {"leak": float, "draw": int, "row": str, "config": str, "settings": dict, "auc": float, "p": float}
    for line in found:
        if not isinstance(line, dict) or any(not isinstance(line.get(name), kind) for name, kind in kinds.items()):
            raise ValueError(f"{path}: {json.dumps(line)[:80]} is no draw: remove the line, it is drawn again")
    return found


def table(lines: list[dict], attacks: dict[str, Config], leaks: list[float]) -> list[dict[str, str]]:
    """For each attack its AUC at each leak, mean over the draws with Student's t, and the share of draws with p <= ALPHA.

    A draw counts once, however often its line is there.
    """
    once = {key(line): line for line in lines}
    found = []
    for name in attacks:
        row = {"row": name}
        for leak in leaks:
            own = [line for line in once.values() if (line["row"], line["leak"]) == (name, leak)]
            auc = metrics.over_seeds([line["auc"] for line in own])
            hits = sum(line["p"] <= ALPHA for line in own)
            row |= {
                f"AUC, leak {leak:g}": number(auc["mean"]) + (f" ({interval(*auc['interval'])})" if auc["interval"] else ""),
                f"p <= {ALPHA:g}, leak {leak:g}": f"{hits} of {len(own)} ({interval(*metrics.clopper_pearson(hits, len(own)))})",
            }
        found.append(row)
    return found


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("file", None, "A Python file whose rows() returns the systems.", required=True, flag_values=values)
    flags.DEFINE_list("rows", [], "Only these rows.", flag_values=values)
    flags.DEFINE_list("leaks", ["0", "0.3", "1"], "Leaks of the phantoms, 0..1.", flag_values=values)
    flags.DEFINE_integer("draws", 20, "Phantoms a leak, of the seeds from 0 on.", 1, flag_values=values)
    flags.DEFINE_integer("image_size", 64, "Side in pixels.", 24, 1024, flag_values=values)
    flags.DEFINE_integer("real", 100, "Labelled real images a class.", 1, flag_values=values)
    flags.DEFINE_integer("generated", 1000, "Synthetic images; half as many are test_generated.", 2, flag_values=values)
    flags.DEFINE_integer(
        "unknown", 600, "Images of test_real, half of them used: the more members, the less of each.", 2, flag_values=values
    )
    flags.DEFINE_integer("reference", 1000, "Reference images.", 2, flag_values=values)
    paths.define("output", None, "The folder of draws.jsonl and power.md.", required=True, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """All draws, then the table."""
    environment.self_test()
    rows = {row.name: row for row in sweep.load_file(values.file, "rows")}
    if unknown := sorted(set(values.rows) - set(rows)):
        raise ValueError(f"--rows={unknown[0]}: use of {', '.join(rows)}")
    attacks = {name: attack(name, resolve(row)) for name, row in rows.items() if name in (values.rows or rows)}
    try:
        leaks = [float(leak) + 0.0 for leak in values.leaks]  # -0 is 0
    except ValueError:
        leaks = []
    if not leaks or not all(0 <= leak <= 1 for leak in leaks):
        raise ValueError(f"--leaks={','.join(values.leaks)}: use numbers from 0 to 1")
    settings: dict = {name: values[name].value for name in ("real", "generated", "unknown", "reference")}
    settings["size"] = values.image_size
    path = Path(values.output) / "draws.jsonl"
    if not path.exists() and (path.parent / "power.md").exists():
        raise ValueError(f"{path.parent}/power.md is no table of ours, {path.name} is missing: give another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(path.parent / "lock", f"--output={path.parent}: %s draws there; wait for it, or give another --output"):
        lines = known_draws(path)
        with files.appending(path) as file:
            for line in draws(attacks, leaks, values.draws, lines, settings):
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                what = f"leak {line['leak']:g}, draw {line['draw']}, {line['row']}"
                print(f"{what}: AUC {line['auc']:.4f}, p {line['p']:.3f}", flush=True)
        hashes = {name: code_hash(config) for name, config in attacks.items()}
        own = [line for line in lines if line["settings"] == settings and line["config"] == hashes.get(line["row"])]
        text = markdown(table([line for line in own if line["draw"] < values.draws], attacks, leaks))
        files.write_text(path.parent / "power.md", text)
    print(text)


if __name__ == "__main__":
    cli.run("power", define_flags, main, devices=True)
