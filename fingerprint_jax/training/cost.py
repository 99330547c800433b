"""What a step costs, as XLA counts it: on the devices that are here, or on those of a target that need not be."""

import logging
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding, targets
from fingerprint_jax.runtime.names import duration
from fingerprint_jax.runtime.targets import Target
from fingerprint_jax.training import hlo, inference, inputs
from fingerprint_jax.training.model import model_of

log = logging.getLogger(__name__)

STEPS, SECONDS = 5, 10.0  # that a dry run measures, and after which it measures no other
WITHOUT = "without compiling, what is read, and evaluations on `valid`"


def flops_of(lowered: Any, devices: int) -> float:
    """FLOPs of a lowered step on so many devices: as it is written where XLA counts that (CPU), else as it was compiled."""
    found = lowered.cost_analysis()
    return found["flops"] if found else devices * lowered.compile().cost_analysis()["flops"]


def flops(run: Run) -> float:
    """FLOPs of a training step of all its images, as XLA counts them."""
    # It counts the body of a loop once, so the count is that of a step without accumulation.
    config: Config = ConfigDict(run.config.to_dict())
    config.optimizer.accumulate = 1
    whole = Run(config, run.workdir)
    model = model_of(whole)
    return flops_of(model.step.lower(*inputs.arguments(run)), model.mesh.size)


def flops_of_outputs(run: Run) -> float:
    """FLOPs of the prediction of a batch of `eval_batch` images."""
    model = model_of(run)
    return flops_of(model.outputs.lower(*inference.arguments(run, model), ""), model.mesh.size)


def here(run: Run) -> list[tuple[str, str]]:
    """Rows (what, figure) of the training step of a run, compiled for the devices that are here."""
    args, images, count = inputs.arguments(run), sum(run.config.data.streams.values()), flops(run)
    step = model_of(run).step.lower(*args).compile()
    memory: Any = step.memory_analysis()
    need = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return [
        ("FLOPs a step", f"{count:.4g}, as XLA counts them; {count / images:.4g} an image"),
        ("state", _mib(sum(_held(x) for x in jax.tree.leaves(args[0])))),
        ("data on the device", _mib(sum(_held(x) for x in jax.tree.leaves(args[1:3])))),
        ("temporaries of a step", _mib(memory.temp_size_in_bytes)),
        ("memory a device", _mib(need)),
        *_timed(run, step, args, need),
    ]


def _timed(run: Run, step: Any, arguments: tuple, need: int) -> list[tuple[str, str]]:
    """Rows of the time of a compiled step, on images that are zero, and of so many as the training has."""
    model, free = model_of(run), _free()
    if jax.process_count() > 1:  # which would have to agree on how often
        return [("time of a step", "not measured by several processes")]
    if free is not None and need > free:
        return [("time of a step", f"not measured: it needs {_bytes(need)}, {_bytes(free)} are free")]
    state = model.init(sharding.key(run.config.seed, model.mesh))
    key = sharding.key(run.config.seed + 1, model.mesh)
    rest = jax.tree.map(lambda x: sharding.put(np.zeros(x.shape, x.dtype), x.sharding), arguments[1:-1])
    times: list[float] = []
    while len(times) < STEPS + 1 and sum(times) < SECONDS:  # the first is slower
        begin = time.perf_counter()
        state, _ = step(state, *rest, key)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - begin)
    found = statistics.median(times[1:] or times)
    took = f"{_ms(found)}, the median of {len(times[1:] or times)} on these devices with what else they do now"
    return [("time of a step", took), ("training", f"about {duration(found * run.config.num_steps)}, {WITHOUT}")]


def _free() -> int | None:
    """Bytes that are free on a device; None where nobody knows."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))  # of a container
        if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdecimal():
            free.append(int(most) - int(used.read_text()))
        return min(free) // jax.local_device_count() if free else None
    known = device.memory_stats() or {}
    return known["bytes_limit"] - known.get("bytes_in_use", 0) if "bytes_limit" in known else None


def on_target(run: Run, target: Target) -> list[tuple[str, str]]:
    """Rows (what, figure) of the training step and the prediction of a run, compiled for the devices of a target.

    Raises ValueError where XLA cannot compile for it, or a batch cannot be divided over its devices.
    """
    c, device, mesh = run.config, target.device, target.mesh()
    for name, size in c.data.streams.items():
        sharding.check_batch(f"data.streams.{name}", size, mesh, c.optimizer.accumulate)
    sharding.check_batch("eval_batch", c.eval_batch, mesh)
    dtype = c.backbone.get("dtype", "float32")
    top = device.bfloat16 if dtype == "bfloat16" else device.float32
    hosts = len({each.process_index for each in mesh.devices.flat})
    model = model_of(run, mesh)
    programs = {
        "step": (model.step, inputs.arguments(run, model), flops(run)),
        "prediction": (model.outputs, (*inference.arguments(run, model), ""), flops_of_outputs(run)),
    }
    each = f"{device.memory / 2**30:.1f} GiB, {device.bandwidth / 1e9:,.0f} GB/s, {top / 1e12:,.0f} TFLOP/s in {dtype}"
    rows = [("target", f"{mesh.size} x {mesh.devices.flat[0].device_kind} on {hosts} host{'s' * (hosts > 1)}; each {each}")]
    for name, (function, arguments, count) in programs.items():
        log.info("compiling the %s for %s; a large network takes minutes", name, target)
        found, least = _compiled(function, arguments, count, target, top)
        rows += [(f"{name}: {what}", figure) for what, figure in found]
        if name == "step" and least:
            rows.append(("training", f"at least {duration(least * c.num_steps)}, the floor of each step, {WITHOUT}"))
    unknown = "what autotuning will choose, clocks, what runs beside something else, the time to launch a kernel"
    return [*rows, ("not known without one", unknown)]


def _compiled(
    function: Any, arguments: tuple, flops: float, target: Target, top: float
) -> tuple[list[tuple[str, str]], float | None]:
    """Rows of a program, and the seconds that it takes at least; None where it does not fit."""
    device = target.device
    begin, before = time.perf_counter(), sum(os.times()[:4])
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("RESOURCE_EXHAUSTED"):
            return [("memory", f"does NOT fit: {reason.removeprefix('RESOURCE_EXHAUSTED: ')}")], None
        raise ValueError(f"target {target}: XLA cannot compile it {targets.explained(reason)}") from error
    seconds, processors = time.perf_counter() - begin, sum(os.times()[:4]) - before
    program, memory = hlo.read(compiled.as_text()), compiled.memory_analysis()
    once = f"; {program.loops} loops are counted once" if program.loops else ""
    need = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    need += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    fits = "fits" if need <= device.memory else "does NOT fit"
    computing, moving = flops / target.count / top, program.bytes / device.bandwidth
    floor, sending = max(computing, moving), program.sent(target.count) / target.link
    kernels = [f"{number:,} {kind}" for kind, number in program.kernels.items()]
    exchanges = [f"{number:,} {kind} ({_bytes(size)})" for kind, (number, size) in program.collectives.items()]
    share = f"; exchanges add {_ms(sending)} ({sending / (floor + sending):.1%}) at {target.link / 1e9:,.0f} GB/s"
    rows = [
        ("memory", f"{_bytes(need)} a device of {_bytes(device.memory)}: {fits}; temporaries {_bytes(memory.temp_size_in_bytes)}"),
        ("FLOPs", f"{flops:.4g} on all devices, as XLA counts them"),
        ("bytes", f"{_bytes(program.bytes)} a device, operands and results of all kernels{once}"),
        ("kernels", f"{sum(program.kernels.values()):,}: {', '.join(kernels)}"),
        ("exchanges", ", ".join(exchanges) or "none"),
        ("compiled in", f"{seconds:.1f} s ({processors:.1f} s of processors)"),
        (
            "floor",
            f"{_ms(floor)}, by {'bytes' if moving > computing else 'FLOPs'} (FLOPs {_ms(computing)}, bytes {_ms(moving)})"
            + (share if program.collectives else ""),
        ),
    ]
    return rows, floor


def _held(x: jax.ShapeDtypeStruct) -> int:
    """What a device holds of an array."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _bytes(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count:,.0f} B"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
