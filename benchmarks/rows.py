"""The rows of `python -m benchmarks`: what is measured, of whom, and under which settings.

A row is `{about, lines}`, a line one side: `{side, unit, figure, ..}` with the spread of its repeats, or `{side, open}` with what
is missing. The sides of a row take turns. Its first line is ours, or the smallest; the others have the spread of the ratios to it.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.objectives import Step
from benchmarks.timing import Peer, PeerError, ratios, rounds, spread, turns
from configs import base, quickstart
from configs.generators import flow
from configs.subtask1 import aimm_siamese
from fingerprint_jax import Config, backbones, methods
from fingerprint_jax.data import loader, packing, phantom
from fingerprint_jax.data.sampler import Sampler
from fingerprint_jax.data.source import open_source
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import targets
from fingerprint_jax.training import loop, sampling
from fingerprint_jax.training.model import Model

ROOT = Path(__file__).parents[1]
NETS = ("siamese_cnn", "resnet18", "efficientnet_b0", "vit_small_patch16")
QUICK = 48  # side of every image of a quick run, in pixels


@dataclasses.dataclass
class Side:
    """Who takes a turn: the seconds of some rounds, what a round gives in the unit of the row, and the FLOPs of a round."""

    run: Callable[[int], float]
    amount: float
    flops: float = 0.0
    dtype: str = "float32"


class Bench:
    """The settings of one command, and what its rows share: the peer and the data.

    Args:
        folder: of everything that is written.
        cores: that both sides use.
        peer_python: a Python that has torch and timm; empty: the peer's lines stay open.
        quick: sizes and networks shrunk.
        repeats: turns of each side.
        seconds: of a turn, at least one round.
    """

    def __init__(
        self, folder: Path, cores: int, peer_python: str = "", quick: bool = False, repeats: int = 5, seconds: float = 1.0
    ) -> None:
        self.folder, self.cores, self.quick, self.repeats, self.seconds = folder, cores, quick, repeats, seconds
        self.device, self.gpu = jax.devices()[0].device_kind, jax.default_backend() == "gpu"
        # Its compiler caches on disk: ours is off, too.
        environment = {"OMP_NUM_THREADS": str(cores), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        # As `cli.keep_freed_memory` has it for us.
        environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
        self.peer = Peer(peer_python, **environment) if peer_python else None

    def close(self) -> None:
        """Ends the peer."""
        if self.peer:
            self.peer.close()

    def pixels(self, size: int) -> int:
        """The side of the images."""
        return QUICK if self.quick else size

    @functools.cache  # noqa: B019 - lives as long as the command
    def data(self, size: int, count: int, task: str = "subtask2") -> tuple[Path, str]:
        """A phantom with about `count` synthetic images: their folder of PNG files, and where it is packed."""
        root = self.folder / f"{task}_{size}_{count}"
        if task == "subtask1":
            splits = phantom.subtask1(0, size, 0.5, real=100, generated=count, unknown=10, reference=10)
        else:
            splits = phantom.subtask2(0, size, 0.5, real=2, generated=count // 5, unknown=5)
        phantom.write(root, task, splits, 0)
        with contextlib.redirect_stdout(io.StringIO()):  # its counts are no result
            packing.pack(task, root / "data", root / "train")
        return root / "train" / "generated", str(root / "data")

    def theirs(self, amount: float, **request: Any) -> Callable[[], Side]:
        """Makes the peer's side of a request to torch_peer.py."""

        def make() -> Side:
            if self.peer is None:
                raise PeerError("needs --peer_python")
            peer, key = self.peer, json.dumps(request)
            peer.ask(make=key, **request)
            return Side(lambda n: peer.ask(run=key, steps=n)["seconds"], amount)

        return make

    def compare(self, unit: str, makers: dict[str, Callable[[], Side]], growth: bool = False) -> list[dict]:
        """A line a side; the ratio of a side is that of the first rate to its own, in a row of growth of its own to the first."""
        sides, lines, ready = {}, {}, {}
        for name, make in makers.items():
            begin = time.perf_counter()
            try:
                side = make()
                side.run(1)  # compiles
            except PeerError as error:
                lines[name] = {"side": name, "open": str(error)}
                continue
            sides[name], ready[name] = side, time.perf_counter() - begin

        def turn(side: Side) -> Callable[[], float]:
            count = rounds(side.run, self.seconds)
            return lambda: side.amount * count / side.run(count)

        rates = turns({name: turn(side) for name, side in sides.items()}, self.repeats)
        for name, side in sides.items():
            lines[name] = line(name, unit, rates[name], rates[next(iter(sides))], growth) | {"ready_seconds": ready[name]}
            if side.flops:
                lines[name] |= share(self.device, side.dtype, side.flops * statistics.median(rates[name]) / side.amount)
        if self.peer:
            self.peer.ask(forget=True)
        jax.clear_caches()
        return [lines[name] for name in makers]


def line(side: str, unit: str, values: list[float], first: list[float], growth: bool) -> dict:
    """The line of a side; `values` is that of the first line itself where it is the first."""
    found: dict = {"side": side, "unit": unit, "figure": spread(values)}
    if values is not first:
        found |= {"ratio": ratios(values, first) if growth else ratios(first, values), "growth": growth}
    return found


def share(device: str, dtype: str, flops: float) -> dict:
    """FLOPs a second, and where the peak of the device is known their share of it; float32 runs as TF32 on a GPU."""
    peak = targets.peak(device, dtype)
    found = {"share_of_peak": flops / peak} if peak else {}
    return {"flops_per_second": flops} | found


def classifier(name: str, batch: int, dtype: str = "float32") -> Config:
    """The config of a softmax classifier of five classes, with Adam and without augmentation."""
    c = base.gradient("subtask2")
    c.backbone = ConfigDict({"name": name, "weights": "", "dtype": dtype})
    c.data.streams = ConfigDict({"generated": batch})
    return c


def siamese(pairs: int, dtype: str = "float32", mode: str = "sampled") -> Config:
    """The config of AI Multimedia Lab's network: `pairs` real and as many synthetic images a step."""
    c = aimm_siamese.get_config().member
    c.backbone.dtype = dtype
    c.data.streams = ConfigDict({"real": pairs, "generated": pairs})
    c.objective.pairs, c.objective.num_pairs = mode, pairs
    return c


def ours(config: Config, size: int, amount: float = 0) -> Callable[[], Side]:
    """Makes the side of our compiled step, which gives `amount` a round; 0: its images."""

    def make() -> Side:
        step = Step(config, size, 0)
        return Side(lambda n: n * step.seconds(n), amount or step.images, step.flops, config.backbone.get("dtype", "float32"))

    return make


def loader_row(bench: Bench, size: int) -> dict:
    """(a) Records a second from ArrayRecord, beside a DataLoader over the PNG files. A round is an epoch."""
    count, batch = (100, 10) if bench.quick else ({64: 4000}.get(size, 800), 32)
    folder, data_dir = bench.data(bench.pixels(size), count)
    key, steps = (data_dir, "subtask2"), count // batch
    sampler = Sampler({"generated": open_source(*key).rows("train_generated")}, {"generated": batch}, 0, True)

    def run(epochs: int) -> float:
        begin = time.perf_counter()
        for _ in loader.host_batches(sampler, key, 0, epochs * steps):
            pass
        return time.perf_counter() - begin

    makers = {"ours": lambda: Side(run, steps * batch)}
    for workers in (0, 2):
        request = {"kind": "loader", "folder": str(folder), "batch": batch, "workers": workers}
        makers[f"DataLoader over PNG, {workers} workers"] = bench.theirs(steps * batch, **request)
    return {"about": f"{count} files, batch {batch}, uint8 on the host", "lines": bench.compare("records/s", makers)}


def training_row(bench: Bench, name: str, size: int, dtype: str) -> dict:
    """(b) Training images a second on images that lie on the device, Adam, beside PyTorch with channels_last."""
    pixels = bench.pixels(size)
    batch = 8 if bench.quick else 256 if bench.gpu else 32
    if name == "siamese_cnn":
        config, request = siamese(batch // 2, dtype), {"kind": "siamese", "pairs": batch // 2}
    else:
        config, request = classifier(name, batch, dtype), {"kind": "classifier", "name": name, "batch": batch, "classes": 5}
        request |= {"adam": True, "channels_last": True}
    if bench.quick:
        config.backbone.name = backbones.tiny(name)
    request |= {"size": pixels, "dtype": dtype}
    makers = {"ours": ours(config, pixels)}
    for side, compiled in (("PyTorch, eager", False), ("PyTorch, torch.compile", True)):
        makers[side] = bench.theirs(batch, compiled=compiled, **request)
    return {"about": f"{pixels} px, batch {batch}, {dtype}", "lines": bench.compare("images/s", makers)}


def _flow(bench: Bench) -> tuple[Config, int, dict]:
    """The config of a generator, the pixels of its images, and the peer's request for the same network on as many images."""
    name, size, batch = ("unet_base", 64, 64) if bench.gpu else ("unet_small", 32, 32)
    config = flow.get_config("members")
    config.backbone.name = name = "unet_tiny" if bench.quick else name
    size, batch = (16, 4) if bench.quick else (size, batch)
    config.data.streams = ConfigDict({"real:1": batch})
    config.num_steps = config.eval_every = config.checkpoint_every = 1
    net = Model(config, 2, (size, size, 1)).init(jax.random.key(0))
    parameters = sum(array.size for array in jax.tree.leaves(net["params"]))
    return config, size, {"kind": "flow", "size": size, "batch": batch, "parameters": parameters, **backbones.variants()[name][1]}


def flow_row(bench: Bench) -> dict:
    """(b) Training images a second of a generator by rectified flow, with clipping and averaged weights."""
    config, size, request = _flow(bench)
    makers = {"ours": ours(config, size), "PyTorch, eager": bench.theirs(request["batch"], **request)}
    about = f"{config.backbone.name}, {size} px, batch {request['batch']}, float32"
    return {"about": about, "lines": bench.compare("images/s", makers)}


def sampling_row(bench: Bench) -> dict:
    """(b) Images a second that a generator makes, by 25 steps of Heun's method, on the host in the end."""
    config, size, request = _flow(bench)
    config.data_dir = bench.data(size, 100, "subtask1")[1]
    batch = request["batch"]

    def make() -> Side:
        run = Run(config, tempfile.mkdtemp(dir=bench.folder))
        methods.fit(run)
        sampler, labels = sampling.Sampler(run, 0), np.full(batch, -1)

        def seconds(count: int) -> float:
            begin = time.perf_counter()
            for i in range(count):
                np.asarray(sampler(np.arange(i * batch, (i + 1) * batch), labels))
            return time.perf_counter() - begin

        return Side(seconds, batch)

    makers = {"ours": make, "PyTorch, eager": bench.theirs(batch, steps=25, **request)}
    return {"about": f"{config.backbone.name}, {size} px, {batch} at a time, float32", "lines": bench.compare("images/s", makers)}


def pairs_row(bench: Bench) -> dict:
    """(c) Pairs a second of the loss of all pairs, beside pairs as published, each of two images encoded for it."""
    pixels, count = bench.pixels(256 if bench.gpu else 64), 4 if bench.quick else 32
    name = "siamese_cnn_tiny" if bench.quick else "siamese_cnn"
    configs = {mode: siamese(count, mode=mode) for mode in ("all", "sampled")}
    for config in configs.values():
        config.backbone.name = name
    makers = {
        "ours, all pairs": ours(configs["all"], pixels, count**2),
        "ours, sampled pairs": ours(configs["sampled"], pixels, count),
        "PyTorch, sampled pairs": bench.theirs(count, kind="siamese", size=pixels, pairs=count),
    }
    return {"about": f"{pixels} px, {count} real and {count} synthetic images a step", "lines": bench.compare("pairs/s", makers)}


def _binary(name: str, *given: str, **environment: str) -> subprocess.Popen:
    """A binary of the package in a process of its own; what it says is kept, for a failure."""
    command = [sys.executable, "-m", f"fingerprint_jax.{name}", *given]
    env = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | environment
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(processes: list[subprocess.Popen]) -> None:
    """Waits for all. Raises ValueError with the last line of one that failed; none is left behind."""
    try:
        for process in processes:
            error = process.communicate()[1]
            if process.returncode:
                raise ValueError(f"{process.args}: {(error.strip() or 'no word').splitlines()[-1]}")
    finally:
        for process in processes:
            process.kill()


def results_row(bench: Bench, variant: str) -> dict:
    """(d) Seconds from packed data to results.json by the two binaries, without and with compiled programs on disk."""
    _, data_dir = bench.data(bench.pixels(64), 100 if bench.quick else 1000)
    cache = bench.folder / "cache"

    def run(fresh: bool) -> float:
        workdir = Path(tempfile.mkdtemp(dir=bench.folder))
        if fresh:
            shutil.rmtree(cache, ignore_errors=True)
        config, environment = f"--config=configs/quickstart.py{variant}", {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        begin = time.perf_counter()
        _finish([_binary("main", config, f"--config.data_dir={data_dir}", f"--workdir={workdir}", **environment)])
        _finish([_binary("evaluate", f"--workdir={workdir}", "--split=heldout", **environment)])
        seconds = time.perf_counter() - begin
        if not (workdir / "results.json").exists():
            raise ValueError(f"{workdir}: evaluate wrote no results.json")
        return seconds

    sides = {"nothing compiled": lambda: run(True), "compiled programs on disk": lambda: run(False)}
    times = turns(sides, 1 if bench.quick else 3)
    first = times["nothing compiled"]
    lines = [line(name, "s", values, first, True) for name, values in times.items()]
    return {"about": f"configs/quickstart.py{variant}, main and evaluate", "lines": lines}


def _speed(workdir: Path) -> tuple[float, float]:
    """Images a second and share of the time waiting for input, as the training loop has written them."""
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return next((entry["images_per_s"], entry["input_wait"]) for entry in lines if "images_per_s" in entry)


class Loop:
    """The training loop of a config on packed data, up to the last step: images a second, and the shares of input wait."""

    def __init__(self, bench: Bench, config: Config, data_dir: str, cache: str, per_dispatch: int = 1) -> None:
        config = ConfigDict(config.to_dict())
        config.data_dir, config.data.cache, config.steps_per_dispatch = data_dir, cache, per_dispatch
        self.bench, self.config, self.waits = bench, config, []
        least = max(6, 3 * per_dispatch)
        steps = int(self._train(least) * bench.seconds / sum(config.data.streams.values()))
        self.turn = functools.partial(self._train, max(least, steps - steps % per_dispatch))
        self.waits.clear()

    def _train(self, steps: int) -> float:
        config = self.config
        # The one line with a speed has the steps between the first, which compiles, and the last, which saves.
        config.num_steps = config.eval_every = config.checkpoint_every = steps
        config.log_every = steps - config.steps_per_dispatch
        run = Run(config, tempfile.mkdtemp(dir=self.bench.folder))
        with methods.fitting(run):
            loop.train(run, lambda state: {})
        speed, wait = _speed(run.workdir)
        self.waits.append(wait)
        return speed


def _loops(bench: Bench, loops: dict[str, Loop], alone: Callable[[], Side] | None = None) -> list[dict]:
    """A line a loop, after that of the compiled step `alone`; the ratios are to the first line."""
    sides: dict[str, Callable[[], float]] = {name: loop.turn for name, loop in loops.items()}
    if alone:
        side = alone()
        side.run(1)
        count = rounds(side.run, bench.seconds)
        sides = {"the compiled step alone": lambda: side.amount * count / side.run(count)} | sides
    rates = turns(sides, bench.repeats)
    lines = [line(name, "images/s", values, rates[next(iter(rates))], True) for name, values in rates.items()]
    for found in lines:
        if found["side"] in loops:
            found["input_wait"] = statistics.median(loops[found["side"]].waits)
    jax.clear_caches()
    return lines


def _network(bench: Bench) -> tuple[str, int, str]:
    """Backbone, pixels and dtype of the rows of growth."""
    if bench.quick:
        return "siamese_cnn_tiny", QUICK, "float32"
    return ("resnet18", 256, "bfloat16") if bench.gpu else ("siamese_cnn", 64, "float32")


def loop_row(bench: Bench) -> dict:
    """(b) What of the compiled step's rate the whole training loop keeps, and how long it waits for input."""
    size, pairs, dtype = bench.pixels(256 if bench.gpu else 64), 4 if bench.quick else 32, "bfloat16" if bench.gpu else "float32"
    _, data_dir = bench.data(size, 100 if bench.quick else 1000, "subtask1")
    config = siamese(pairs, dtype)
    if bench.quick:
        config.backbone.name = "siamese_cnn_tiny"
    names = {"the loop, images on the device": "device", "the loop, records read each step": "none"}
    loops = {text: Loop(bench, config, data_dir, cache) for text, cache in names.items()}
    about = f"{config.backbone.name}, {size} px, {pairs} real and {pairs} synthetic images a step, {dtype}"
    return {"about": about, "lines": _loops(bench, loops, ours(config, size))}


def dispatch_row(bench: Bench) -> dict:
    """(b) The training loop of a network whose step is short, several steps a dispatch."""
    size = bench.pixels(64)
    _, data_dir = bench.data(size, 100 if bench.quick else 1000)
    config = quickstart.get_config("smoke" if bench.quick else "")
    loops = {f"{count} a dispatch": Loop(bench, config, data_dir, "device", count) for count in (1, 2, 4)}
    return {"about": f"configs/quickstart.py, {size} px, images on the device, the loop", "lines": _loops(bench, loops)}


def data_row(bench: Bench) -> dict:
    """(e) The training loop on packed sets of several sizes, records read each step."""
    name, size, dtype = _network(bench)
    counts = (50, 100) if bench.quick else (500, 1000) if bench.gpu else (500, 2000, 8000)
    config = classifier(name, 10 if bench.quick else 32, dtype)
    loops = {f"{count:,} images": Loop(bench, config, bench.data(size, count)[1], "none") for count in counts}
    return {"about": f"{name}, {size} px, {dtype}, the loop", "lines": _loops(bench, loops)}


def batch_row(bench: Bench) -> dict:
    """(e) The compiled step at several batches."""
    name, size, dtype = _network(bench)
    batches = (4, 8) if bench.quick else (32, 128, 512) if bench.gpu else (16, 64, 256)
    makers = {f"batch {batch}": ours(classifier(name, batch, dtype), size) for batch in batches}
    return {"about": f"{name}, {size} px, {dtype}", "lines": bench.compare("images/s", makers, growth=True)}


def pixels_row(bench: Bench) -> dict:
    """(e) The compiled step at several sizes of the images."""
    name, _, dtype = _network(bench)
    sizes, batch = ((48, 64), 4) if bench.quick else ((64, 128, 256), 128 if bench.gpu else 16)
    makers = {f"{size} px": ours(classifier(name, batch, dtype), size) for size in sizes}
    return {"about": f"{name}, batch {batch}, {dtype}", "lines": bench.compare("images/s", makers, growth=True)}


def processes_row(bench: Bench) -> dict:
    """(e) The training loop in one process, in one with two devices, and in two processes, on the same cores."""
    _, data_dir = bench.data(bench.pixels(64), 100 if bench.quick else 1000)
    steps = 6 if bench.quick else 60
    variant = ":smoke" if bench.quick else ""

    def run(processes: int, devices: int) -> float:
        workdir = Path(tempfile.mkdtemp(dir=bench.folder))
        fields = {"data_dir": data_dir, "num_steps": steps, "log_every": steps - 1, "eval_every": steps, "checkpoint_every": steps}
        given = [f"--config=configs/quickstart.py{variant}", *(f"--config.{name}={value}" for name, value in fields.items())]
        environment = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_COMPILATION_CACHE_DIR": str(bench.folder / "cache_processes")}
        many = [f"--coordinator=127.0.0.1:{_free_port()}", f"--processes={processes}"] if processes > 1 else []
        own = [[*many, f"--process={i}"] if many else [] for i in range(processes)]
        _finish([_binary("main", *given, *more, f"--workdir={workdir}", **environment) for more in own])
        return _speed(workdir)[0]

    sides = {"1 process": (1, 1), "1 process, 2 devices": (1, 2), "2 processes": (2, 1)}
    rates = turns({name: functools.partial(run, *side) for name, side in sides.items()}, 1 if bench.quick else 3)
    lines = [line(name, "images/s", values, rates["1 process"], True) for name, values in rates.items()]
    return {"about": f"configs/quickstart.py{variant}, the same {bench.cores} cores", "lines": lines}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclasses.dataclass
class Row:
    """What measures a row, and the device that it needs, `gpu` or `cpu`; empty: any."""

    run: Callable[[Bench], dict]
    needs: str = ""


def _training(size: int, dtype: str, needs: str = "") -> dict[str, Row]:
    return {
        f"training/{name}/{size}/{dtype}": Row(functools.partial(training_row, name=name, size=size, dtype=dtype), needs)
        for name in NETS
    }


ROWS = {
    **{f"loader/{size}": Row(functools.partial(loader_row, size=size)) for size in (64, 256)},
    **_training(64, "float32"),
    **_training(64, "bfloat16"),
    **_training(256, "bfloat16", "gpu"),
    "generator/training": Row(flow_row),
    "generator/sampling": Row(sampling_row),
    "loop": Row(loop_row),
    "dispatch": Row(dispatch_row),
    "pairs": Row(pairs_row),
    "results/smoke": Row(functools.partial(results_row, variant=":smoke")),
    "results/quickstart": Row(functools.partial(results_row, variant="")),
    "growth/data": Row(data_row),
    "growth/batch": Row(batch_row),
    "growth/pixels": Row(pixels_row),
    "growth/processes": Row(processes_row, "cpu"),
}
