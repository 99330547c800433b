"""Features of images, without gradients: `f(images uint8 [N,H,W,1], **options) -> float32 [N, ...]`, a row from its image alone.

Each file has `FEATURES = {name: function}`, and together they are the registry of `config.features.name`. Worker processes import
this file and that of their function: neither may import JAX, nor what imports it.
"""

import collections
import ctypes
import functools
import hashlib
import importlib
import inspect
import json
import multiprocessing
import os
import pkgutil
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from ml_collections import ConfigDict

from fingerprint_jax.runtime import distributed, names, plugins
from fingerprint_jax.runtime.preemption import SIGNALS

if TYPE_CHECKING:
    from fingerprint_jax.data.source import Rows
    from fingerprint_jax.runs.run import Run

BLOCK = 64  # images read, and given to a process, at once


def get(name: str, enhance: str | None = None, field: str = "features.name", **options: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A feature with its options set, of the images as the filter `enhance` leaves them; options that are None keep the default.

    The name may be `package.module:function`. Raises ValueError with the known names, filters or options.
    """
    return _plan(name, enhance, field, **options)[0]


def slow(feature: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Marks a feature that goes from image to image in Python: its images are shared among processes."""
    feature.slow = True  # pyright: ignore[reportFunctionMemberAccess]
    return feature


def _function(name: str, field: str) -> Callable[..., np.ndarray]:
    if plugins.dotted(name):
        return plugins.find(field, name)
    known = registry()
    names.check(field, name, [*["network"] * (field == "features.name"), *sorted(known)])
    return known[name]


def registry() -> dict[str, Callable[..., np.ndarray]]:
    """All features of images by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {feature: function for module in modules for feature, function in getattr(module, "FEATURES", {}).items()}


def extract(run: "Run", rows: "Rows", name: str, options: dict, cache: Path, processes: int = 0) -> np.ndarray:
    """A feature of some rows: [N, ...] float32, read from `cache` where it is there.

    Args:
        run: whose images are read.
        rows: at least one.
        name: of the feature.
        options: of `get`.
        cache: a folder; files in it go by the content of the data, record numbers, name and options.
        processes: for features and filters that go image by image; 0: one a usable core, 1: this process. The result is the same.
    """
    function, key, slow = _plan(name, **options)
    content = json.dumps([run.source.fingerprints, rows.index.tolist(), key], sort_keys=True)
    path = cache / f"{name.replace(':', '-')}-{hashlib.sha256(content.encode()).hexdigest()[:32]}.npz"
    blocks = [rows.index[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    processes = min(processes or joblib.cpu_count(), len(blocks)) if slow else 1
    images = map(run.source.images, blocks)
    compute = functools.partial(_compute, function, images, len(rows), name, processes)
    return run.source.cached(path, lambda: distributed.first(lambda: {"x": compute()}), rows, "x")["x"]


def _plan(
    name: str, enhance: str | None = None, field: str = "features.name", **options: Any
) -> tuple[Callable[[np.ndarray], np.ndarray], list, bool]:
    """The function, what tells it from others, and whether it is worth processes: it loops over the images in Python."""
    feature = _function(name, field)
    defaults = {p.name: p.default for p in inspect.signature(feature).parameters.values() if p.name != "images"}
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        names.check_option("features", option, name, ["enhance", *defaults])
    for option, default in (defaults | options).items():
        if default is inspect.Parameter.empty:
            raise ValueError(f"features.{option} is missing: {name} needs it")
    function = functools.partial(feature, **options)
    enhance = enhance or "none"
    filters = importlib.import_module(f"{__name__}.enhance").FILTERS
    names.check("features.enhance", enhance, filters)
    if enhance != "none":
        function = functools.partial(_enhanced, enhance, function)
    slow = enhance != "none" or getattr(feature, "slow", False)
    code = plugins.code(ConfigDict({"name": name}))
    return function, [name, enhance, defaults | options] + [code] * bool(code), slow


def _enhanced(filter: str, function: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    # Not imported above: the networks, which share the filters of the residual, have no use for scikit-image.
    return function(importlib.import_module(f"{__name__}.enhance").enhance(images, filter))


def _compute(function: Callable, blocks: Iterable[np.ndarray], total: int, name: str, processes: int) -> np.ndarray:
    from fingerprint_jax.runtime.progress import progress  # here, for the worker processes

    parts = []
    with progress(name, total) as advance:
        for part in _in_processes(function, blocks, processes):
            parts.append(part)
            for _ in part:
                advance()
    return np.concatenate(parts)


def _in_processes(function: Callable, blocks: Iterable[np.ndarray], processes: int) -> Iterator[np.ndarray]:
    """The function of each block, in order."""
    if processes == 1:
        yield from map(function, blocks)
        return
    pool = ProcessPoolExecutor(processes, _Context(), _begin)
    try:
        pending = collections.deque()
        for block in blocks:
            pending.append(pool.submit(function, block))
            if len(pending) > 2 * processes:  # else all the images would lie in memory
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker(SpawnProcess):
    # A spawned process imports the main module again; that of the binaries imports JAX, for seconds and half a gigabyte.
    def start(self) -> None:
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _Context(SpawnContext):  # never fork: it segfaults where an ArrayRecord was read
    Process = _Worker


def _begin() -> None:
    # Signals go to a whole job: the parent decides, and ends the workers as it ends, or they with it (PR_SET_PDEATHSIG of prctl,
    # Linux only; without it one killed by SIGKILL leaves them behind).
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent and os.getppid() != parent.pid:  # it went before this was set
            os._exit(1)
