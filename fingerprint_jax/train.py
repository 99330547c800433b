"""The only training loop.

A run ends byte-identical however often it was stopped: by a signal, after which it saves the step it is at, or by a kill, after
which it starts from the last save.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from fingerprint_jax import checkpoint, methods, preemption, sharding
from fingerprint_jax.data import loader
from fingerprint_jax.data.sampler import PairSampler, Sampler
from fingerprint_jax.model import State, model_of
from fingerprint_jax.run import Run
from fingerprint_jax.writer import Writer

log = logging.getLogger(__name__)


def sampler_of(run: Run, paired: bool = True) -> Sampler | PairSampler:
    """The batches of a run; not `paired`, those of streams drawn apart, whose shapes are the same, before there are pairs."""
    c, stages = run.config, methods.get("pairs")
    sizes = c.data.streams.to_dict()
    if paired and stages.stage(run):
        return PairSampler(run.streams, stages.table(run), sizes["real"], c.seed, c.data.balanced)
    return Sampler(run.streams, sizes, c.seed, c.data.balanced)


def inputs(run: Run, start: int, paired: bool = True) -> tuple[Sampler | PairSampler, dict, Iterator]:
    """The sampler of a run (`sampler_of`), the images on the device, and the batches of the steps from `start` to its last."""
    c, mesh, sampler = run.config, model_of(run).mesh, sampler_of(run, paired)
    cache = {}
    if c.data.cache == "device":
        # Rows of two splits, see `Run.extra`: what lies between them is on the device too, and never asked for.
        spans = {name: (int(rows.index.min()), int(rows.index.max()) + 1) for name, rows in sampler.rows.items()}
        cache = loader.device_cache(run.source, spans, sharding.replicated(mesh))
    batches = loader.host_batches(
        sampler,
        (str(c.data_dir), c.task),
        start,
        c.num_steps,
        with_images=not cache,
        workers=c.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return sampler, cache, loader.to_devices(batches, sharding.split(mesh))


def restore(run: Run, checkpoints: checkpoint.Checkpoints, which: str) -> tuple[int, State]:
    """Step and state of an undamaged checkpoint of a run."""
    model = model_of(run)
    return checkpoints.restore(which, checkpoint.abstract(model.abstract, sharding.replicated(model.mesh)))


def check_fit(run: Run) -> None:
    """Raises ValueError where the latest checkpoint, or else the pretrained weights, are not those of the config's model.

    Where the objective has a `check`, also what that raises.
    """
    model, checkpoints = model_of(run), checkpoint.Checkpoints(run.workdir)
    if check := getattr(model.objective, "check", None):
        sizes = run.config.data.streams.values()
        check(sum(map(len, run.streams.values())), sum(sizes) // run.config.optimizer.accumulate)
    if checkpoints.manifests():
        checkpoints.compare(checkpoints.resolve("latest"), model.abstract)
    elif run.config.backbone.weights:
        model.pretrained(model.abstract, run.config.backbone.weights)


def train(run: Run, evaluate: Callable[[State], dict[str, float]], origin: Run | None = None) -> None:
    """Trains a run to `num_steps`, from its latest checkpoint where there is one; with none to take, the beginning is saved.

    The order within a step: dispatch step k; read the metrics of step k-1, which must be finite; at an interval read those of
    step k too, show pictures, evaluate, and only then save; send the batch after the next while step k runs.

    Args:
        run: the run; its config is already written.
        evaluate: state -> metrics of the split `valid`, called every `eval_every` steps and at the end.
        origin: the finished run that it begins with; read where there is no checkpoint yet.

    Raises:
        Preempted: SIGTERM or SIGINT came; the step it was at is saved.
        OSError: a checkpoint cannot be written; those before it stay.
        FloatingPointError: the loss, a gradient or the learning rate is not finite; names the step and the records.
    """
    c = run.config
    model = model_of(run)
    for name, size in c.data.streams.items():
        sharding.check_batch(f"data.streams.{name}", size, model.mesh, c.optimizer.accumulate)
    if c.data.cache not in ("none", "device"):
        raise ValueError(f"data.cache={c.data.cache!r} is unknown: use none or device")
    replicated = sharding.replicated(model.mesh)
    checkpoints = checkpoint.Checkpoints(run.workdir, c.best)
    checkpoints.prune()
    if checkpoints.manifests():
        start, state = restore(run, checkpoints, "latest")
        log.info("%s: resumes at step %d", run.workdir, start)
        if start > c.num_steps:
            raise ValueError(f"num_steps={c.num_steps} lies before step {start}, the latest checkpoint of {run.workdir}")
    else:
        start, state = 0, model.init(jax.device_put(jax.random.key(c.seed), replicated))
        if c.backbone.weights:
            state = model.load(state, c.backbone.weights)
        if origin is not None:
            _, known = restore(origin, checkpoint.Checkpoints(origin.workdir, origin.config.best), origin.step)
            params, rest = model_of(origin).weights(known)
            state = model.begin(state, params | rest, str(origin.workdir))
    sampler, cache, batches = inputs(run, start)
    key = jax.device_put(jax.random.key(c.seed + 1), replicated)
    learning_rate = jax.device_put(np.float32(c.optimizer.learning_rate), replicated)
    images_per_step = sum(c.data.streams.values())
    writer = Writer(run.workdir, run.workdir.name, start, c.num_steps)
    pending: tuple[int, dict] | None = None  # metrics of the step dispatched last, not read yet

    def read(pending) -> dict[str, float]:
        step, metrics = pending
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not metrics.pop("finite"):
            ids = [str(i) for name, rows in sampler.rows.items() for i in _ids(rows, sampler(step - 1)[name]["index"])]
            raise FloatingPointError(
                f"{run.workdir}: step {step} is not finite ({json.dumps(metrics)}); its images: {', '.join(ids)};"
                " the last checkpoint is kept. Lower optimizer.learning_rate or set optimizer.clip_norm"
            )
        return metrics

    def save(step: int, scores: dict[str, float]) -> None:
        if scores:
            writer.write(step, {f"valid_{name}": value for name, value in scores.items()})
            writer.progress(step, {f"valid {name}": value for name, value in scores.items()})
        checkpoints.save(step, state, {name: value for name, value in scores.items() if math.isfinite(value)})

    with contextlib.ExitStack() as stack:
        stack.callback(writer.close)
        stack.callback(checkpoints.close)
        signalled = stack.enter_context(preemption.deferred())
        if c.num_steps == 0 and not checkpoints.manifests():
            save(0, evaluate(state))
        clock = tick = time.perf_counter()
        waited, timed_from = 0.0, start
        for step in range(start + 1, c.num_steps + 1):
            wait_from = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - wait_from
            state, metrics = model.step(state, batch, cache, learning_rate, key)
            before, pending = pending, (step, metrics)
            if before is not None:
                values = read(before)
                if before[0] % c.log_every == 0:
                    now = time.perf_counter()
                    speed = images_per_step * (before[0] - timed_from) / max(now - clock, 1e-9)
                    values |= {"images_per_s": speed, "input_wait": waited / max(now - clock, 1e-9)}
                    clock, waited, timed_from = now, 0.0, before[0]
                    writer.write(before[0], values)
                    writer.progress(before[0], {k: values[k] for k in ("loss", "images_per_s", "input_wait")})
                if before[0] == start + 1:  # its time was that of the compilation
                    clock, waited, timed_from = time.perf_counter(), 0.0, before[0]
            checkpoints.poll()
            last, signal = step == c.num_steps, signalled()
            if last or signal or step % c.eval_every == 0 or step % c.checkpoint_every == 0:
                values = read(pending)
                pending = None
                if last or step % c.log_every == 0:
                    writer.write(step, values)
                evaluates = last or step % c.eval_every == 0
                if evaluates and model.pictures:
                    writer.pictures(step, jax.device_get(model.pictures(*model.weights(state), batch, cache)))
                save(step, evaluate(state) if evaluates else {})
                clock, waited, timed_from = time.perf_counter(), 0.0, step  # evaluation is not training time
            if signal and not last:
                checkpoints.close()
                raise preemption.Preempted(f"{run.workdir}: {signal}: saved at step {step}; the same command continues the run")
        checkpoints.close()
        log.info("%s: %d steps in %.1f s", run.workdir, c.num_steps - start, time.perf_counter() - tick)


def _ids(rows, index: np.ndarray) -> np.ndarray:
    return rows.ids[np.searchsorted(rows.index, index)]
