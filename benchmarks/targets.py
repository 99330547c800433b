"""Every network that a published config trains, compiled for devices that are not here: the table of docs/performance.md.

    python -m benchmarks.targets

Each network and target is a dry run of `fingerprint_jax.main` in a process of its own, on phantoms that are made for it. What it
prints goes to benchmarks/results/targets/targets.json at once, and from there into the page. The same command goes on where it was
stopped; `--rows` and `--targets` compile what they name, finished or not. It wants the extras target-cuda and target-tpu,
and Python 3.12 or newer.
"""

import dataclasses
import fnmatch
import importlib
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

import configs
from benchmarks import table
from fingerprint_jax import Config, backbones
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.runtime import cli, files, targets

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "targets" / "targets.json"
DOCS = ROOT / "docs" / "performance.md"
MARKS = "<!-- targets: begin -->\n", "<!-- targets: end -->\n"
TARGETS = ("h100", "h100:8", "tpu-v5e:16")
LARGEST = 256  # devices that are tried where a network does not fit
PUBLISHED = 224  # pixels of networks that begin with weights of other images; the others see the official images as they are
OFFICIAL = 256


@dataclasses.dataclass
class Network:
    """A network that a config trains.

    Attributes:
        module: of the config, `configs.subtask1.taozi_moco`.
        path: where in it the network is, names of sections; empty: it is the config.
        config: of the network alone.
        others: configs that train the same.
    """

    module: str
    path: tuple[str, ...]
    config: Config
    others: list[str]

    @property
    def name(self) -> str:
        """`subtask1/taozi_moco`, of a network that is not the last member of a config with what it is in there."""
        inside = [part for part in self.path if part not in ("member", "ensemble", "variants")]
        return " ".join([short(self.module), *inside])

    @property
    def pixels(self) -> int:
        """The side of its images."""
        return PUBLISHED if self.config.backbone.weights or "pretrain" in self.config or "pretrain" in self.path else OFFICIAL

    @property
    def dtype(self) -> str:
        """bfloat16 where all its backbones are networks of ImageNet, else what its config says."""
        known = backbones.variants()
        families = [sys.modules[known[name][0].__module__] for name in self.config.backbone.name.split("+")]
        return "bfloat16" if all(hasattr(family, "TIMM") for family in families) else self.config.backbone.dtype


def short(module: str) -> str:
    """`subtask1/taozi_moco` of `configs.subtask1.taozi_moco`."""
    return module.removeprefix("configs.").replace(".", "/")


def networks() -> list[Network]:
    """Those that the configs of both subtasks train, each once, by its name; the first of equal ones is the least deep."""
    found: dict[str, Network] = {}
    modules = [info.name for info in pkgutil.walk_packages(configs.__path__, "configs.") if info.name.startswith("configs.subtask")]
    modules = [name for name in modules if name.count(".") == 2]
    all_of_them = [(name, *inside) for name in modules for inside in trained(importlib.import_module(name).get_config())]
    for module, path, config in sorted(all_of_them, key=lambda each: (len(each[1]), each[0])):
        known = found.setdefault(program(config), Network(module, path, config, []))
        if known.module != module and short(module) not in known.others:
            known.others.append(short(module))
    return sorted(found.values(), key=lambda network: network.name)


def trained(config: Config) -> Iterator[tuple[tuple[str, ...], Config]]:
    """Path and config of every network in a config that is trained, those of an ensemble's variants included."""
    if config.method == "gradient" and config.num_steps:
        yield (), config
    variants = config.ensemble.variants if "ensemble" in config else {}
    for name in variants:
        inside = ("ensemble", "variants", name)
        yield from (((*inside, *path), found) for path, found in trained(at(config, inside)))
    for name in ("member", "pretrain", "pairs"):
        if name in config and not (name == "member" and variants):
            yield from (((name, *path), found) for path, found in trained(config[name]))


def at(config: Config, path: tuple[str, ...]) -> Config:
    """What is at a path in a config; a variant of an ensemble's member is the member with its fields."""
    for i, name in enumerate(path):
        if path[i - 1 : i] == ("variants",) and "method" not in config.ensemble.variants[name]:
            member = ConfigDict(config.member.to_dict())
            member.update(config.ensemble.variants[name].to_dict())
            return at(member, path[i + 1 :])
        if name in ("ensemble", "variants"):
            continue
        config = config.ensemble.variants[name] if path[i - 1 : i] == ("variants",) else config[name]
    return config


def program(config: Config) -> str:
    """What the compiled programs of a network depend on, but for the augmentation, as text."""
    c = config.to_dict()
    kept = {name: c[name] for name in ("task", "views", "backbone", "objective", "optimizer", "eval_batch")}
    kept["optimizer"].pop("learning_rate")
    kept["backbone"].pop("weights")
    return json.dumps(kept | {name: c["data"][name] for name in ("streams", "cache", "normalize")}, sort_keys=True)


def shared(streams: dict[str, int], devices: int) -> dict[str, int]:
    """The images of a step that so many devices share: each stream a multiple, in all as many as before where that can be."""
    if all(count % devices == 0 for count in streams.values()):
        return streams
    found = {name: -(-count // devices) * devices for name, count in streams.items()}
    largest = max(found, key=lambda name: found[name])
    kept = sum(streams.values()) - sum(found.values()) + found[largest]
    return found | ({largest: kept} if kept > 0 and kept % devices == 0 else {})


class Data:
    """Phantoms, packed when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, task: str, size: int) -> Path:
        """The packed data of a task with images of a size."""
        root = self.folder / f"{task}_{size}"
        if (root / "data").exists():
            return root / "data"
        if task == "subtask1":
            splits = phantom.subtask1(0, size, 0.5, real=100, generated=200, unknown=20, reference=200)
        else:
            splits = phantom.subtask2(0, size, 0.5, real=50, generated=50, unknown=20)
        phantom.write(root, "subtask1" if task == "subtask1" else "subtask2", splits, 0)
        train = root / "train" / ("real" if task == "images" else "")
        more: dict[str, Any] = {}
        if task == "subtask1":
            more = {"reference_dir": root / "reference", "groups": root / "groups.csv"}
        test = {} if task == "images" else {"test_dir": root / "test"}
        packing.pack(task, root / "data", train, **test, **more)
        return root / "data"


def dry_run(network: Network, target: targets.Target, data: Data) -> dict[str, Any]:
    """What a dry run prints of a network, `{"figures": {what: figure}, ..}`, or why it prints nothing, `{"failed": line}`."""
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        file = Path(folder) / "network.py"
        module = f"import importlib\nfrom benchmarks import targets\nconfig = importlib.import_module({network.module!r})\n"
        file.write_text(f"{module}def get_config():\n    return targets.at(config.get_config(), {network.path!r})\n")
        streams = shared(network.config.data.streams.to_dict(), target.count)
        overrides = {f"data.streams.{name}": count for name, count in streams.items()}
        overrides |= {
            "backbone.dtype": network.dtype,
            "backbone.weights": "",
            "data_dir": data.of(network.config.task, network.pixels),
        }
        if "pretrain" in network.config:
            overrides["pretrain.num_steps"] = 0
        command = [sys.executable, "-m", "fingerprint_jax.main", f"--config={file}", f"--workdir={folder}/run", "--dry_run"]
        command += [f"--target={target}", *(f"--config.{name}={value}" for name, value in overrides.items())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error: " in line] or done.stderr.splitlines()[-1:]
        return {"streams": streams, "failed": lines[-1].partition("error: ")[2] or lines[-1]}
    return {"streams": streams, "figures": printed(done.stdout)}


def fits(found: dict[str, Any]) -> bool:
    """Whether step and prediction fit the memory of a device."""
    return not any(what.endswith(": memory") and "NOT fit" in figure for what, figure in found.get("figures", {}).items())


def compiled(network: Network, target: targets.Target, data: Data) -> dict[str, Any]:
    """The dry run of a network for a target, and `least`, that for more devices of the kind, where it does not fit."""
    found, number = dry_run(network, target, data), target.count
    while not fits(found) and (number := 2 * number) <= LARGEST:
        larger = targets.parse(f"{target.device.name}:{number}")
        tried = dry_run(network, larger, data)
        if "figures" in tried and fits(tried):
            return found | {"least": {"target": str(larger), **tried}}
    return found


def versions() -> dict[str, str]:
    """Of what compiles."""
    found = {"python": ".".join(map(str, sys.version_info[:2])), "jax": jax.__version__}
    for package in ("libtpu", "jax-cuda13-pjrt"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def kept(path: Path) -> dict[str, Any]:
    """The results of a file, `{"versions": .., "rows": {}}` where there is none; raises ValueError for those of other versions."""
    found = versions()
    if not path.exists():
        return {"versions": found, "rows": {}}
    before = json.loads(path.read_text())
    if before["versions"] != found:
        raise ValueError(f"{path} is of {before['versions']}, this is {found}: remove it to begin anew")
    return before


def printed(text: str) -> dict[str, str]:
    """What a dry run prints, `{what: figure}`."""
    return {line[:24].strip(): line[24:] for line in text.splitlines()}


HEADER = (
    "| network | backbone | pixels, dtype, images | memory of a device | floor of a step | FLOPs alone | exchanges | they add |"
    " compiled in |\n|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, about: dict[str, Any], found: dict[str, Any]) -> str:
    """A network on a target as a row of Markdown."""
    images = "+".join(map(str, found["streams"].values()))
    first = f"| `{name}` | {about['backbone']} | {about['pixels']}, {about['dtype']}, {images}"
    if "failed" in found:
        return f"{first} | {found['failed'].replace('|', '/')} |  |  |  |  |  |"
    figures = found["figures"]
    refused = [each for each in ("step", "prediction") if "NOT" in figures[f"{each}: memory"]]
    memory = "; ".join(_memory(figures, each) for each in refused)
    least = found["least"] if "least" in found else None
    memory = memory or _memory(figures, "step")
    if least:
        memory += f"; `{least['target']}` is the least: {_memory(least['figures'], 'step')}"
        figures = figures if "step: floor" in figures else least["figures"]
    elif not fits(found):
        memory += f"; nor on {LARGEST} of them"
    if "step: floor" not in figures:
        return f"{first} | {memory} |  |  |  |  |  |"
    floor = figures["step: floor"]
    whole, by, flops = re.findall(r"^([\d.e+-]+ ms), by (\w+) \(FLOPs ([\d.e+-]+ ms)", floor)[0]
    adds = re.findall(r"exchanges add ([\d.e+-]+ ms)", floor)
    exchanges = figures["step: exchanges"]
    seconds = figures["step: compiled in"].removesuffix(" of processors)").replace(" (", ", ")
    return f"{first} | {memory} | {whole}, by {by} | {flops} | {exchanges} | {adds[0] if adds else ''} | {seconds} |"


def _memory(figures: dict[str, str], program: str) -> str:
    text = figures[f"{program}: memory"]
    if "a device of" not in text:  # what XLA itself refuses
        return f"{program} {text.partition(':')[0]}"
    need, rest = text.split(" a device of ")
    return need if program == "step" and "NOT" not in rest else f"{program} {need}, does not fit"


def tables(results: dict[str, Any]) -> str:
    """A table for each target, of all networks that were compiled for it, and what they were compiled with."""
    made = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [f"Compiled with {made}; seconds as a clock sees them, then of all processors.\n"]
    for target in dict.fromkeys(name for about in results["rows"].values() for name in about["targets"]):
        rows = [row(name, about, about["targets"][target]) for name, about in results["rows"].items() if target in about["targets"]]
        each = next(about["targets"][target] for about in results["rows"].values() if target in about["targets"])
        parts.append(f"`{target}`" + (f": {each['figures']['target']}" if "figures" in each else "") + "\n")
        parts.append("\n".join([HEADER, *rows]) + "\n")
    others = {name: ", ".join(f"`{other}`" for other in about["others"]) for name, about in results["rows"].items()}
    same = [f"`{name}`: {configs}" for name, configs in others.items() if configs]
    if same:
        parts.append(f"Configs that train one of these networks too: {'; '.join(same)}.\n")
    return "\n".join(parts)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("rows", [], "Compile these networks, patterns such as subtask1/*; default: what is open.", flag_values=values)
    flags.DEFINE_list("targets", [*TARGETS], "Compile for these, as `main --target` names them.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Compiles, and writes file and page after every network."""
    known = {network.name: network for network in networks()}
    for pattern in values.rows:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"--rows={pattern}: no such network, use {', '.join(known)}, or patterns such as subtask1/*")
    for target in map(targets.parse, values.targets):
        target.check()
    results = kept(OUTPUT)
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder))
        for name, network in known.items():
            if values.rows and not any(fnmatch.fnmatch(name, pattern) for pattern in values.rows):
                continue
            old = results["rows"].get(name, {"targets": {}})
            about = {"backbone": network.config.backbone.name, "pixels": network.pixels, "dtype": network.dtype}
            about |= {"others": network.others, "targets": old["targets"]}
            for target in values.targets:
                if target in about["targets"] and not values.rows:
                    continue
                about["targets"][target] = compiled(network, targets.parse(target), data)
                results["rows"] = dict(sorted((results["rows"] | {name: about}).items()))
                files.write_text(OUTPUT, json.dumps(results, indent=1))
                table.place(DOCS, MARKS, tables(results))
                print(f"{target:12}{row(name, about, about['targets'][target])}", flush=True)


if __name__ == "__main__":
    cli.run("targets", define_flags, main)
