"""The only training loop.

A run ends byte-identical however often it was stopped: by a signal, after which it saves the step it is at, or by a kill, after
which it starts from the last save.
"""

import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fingerprint_jax import Config
from fingerprint_jax.backbones import pretrained
from fingerprint_jax.data import loader
from fingerprint_jax.data.source import Rows
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import distributed, names, preemption, sharding
from fingerprint_jax.training import inference, profile, trackers
from fingerprint_jax.training.inference import shapes_of_outputs
from fingerprint_jax.training.inputs import arguments, of_run
from fingerprint_jax.training.model import Model, State, model_of
from fingerprint_jax.training.writer import Writer

log = logging.getLogger(__name__)


def check_fit(run: Run) -> None:
    """Raises ValueError where a config cannot be trained, or the latest checkpoint, or else the weights, are not of its model.

    A step of the training and one of the prediction are traced, which takes as long as at their first call and is not done again.
    """
    c, model, checkpoints = run.config, model_of(run), checkpoint.Checkpoints(run.workdir)
    _check_steps(c, model.mesh)
    # What it says is clearer than what its loss does.
    model.objective.check(sum(map(len, run.streams.values())), sum(c.data.streams.values()) // c.optimizer.accumulate)
    if c.num_steps:
        if not c.data.streams:
            raise ValueError("data.streams is empty: name a stream and its images a step")
        try:
            model.trace(*arguments(run))
        except KeyError as error:
            name = error.args[0]
            if name in c.data.streams or run.split_of(name) not in run.source.splits:
                raise
            given = ", ".join(c.data.streams)
            raise ValueError(f"data.streams has {given}: objective.name={c.objective.name!r} learns from {name!r} too") from error
    shapes_of_outputs(run)
    if checkpoints.begun():
        latest = checkpoints.resolve("latest")
        if latest > c.num_steps:
            raise ValueError(f"num_steps={c.num_steps} lies before step {latest}, the latest checkpoint of {run.workdir}")
        checkpoints.compare(latest, model.abstract)
    elif c.backbone.weights:
        _check_weights(model, c.backbone.weights)


@functools.lru_cache(maxsize=32)
def _check_weights(model: Model, weights: str) -> None:
    # Once for all members of one network: a file has to be read.
    model.pretrained(model.abstract, weights)


class Patience:
    """Counts the evaluations in a row that were not better than the best before them: `patience` of them end a training.

    The count lies with the figures of every checkpoint, so that a run which goes on counts on.

    Args:
        config: its `patience`, 0 for a training that always goes to its end, and `best`.
        figures: those of the checkpoint that the training goes on from.
    """

    def __init__(self, config: Config, figures: Mapping[str, Any]) -> None:
        self.most = config.get("patience", 0)  # runs from before it was a field have none
        self._mode, self._name = checkpoint.parse_best(config.best)
        self.best, self.waited = figures.get("best_so_far"), figures.get("evaluations_since", 0)

    def see(self, figures: Mapping[str, float]) -> None:
        """Takes the figures of an evaluation; the first of several equal ones is the best."""
        value = figures.get(self._name, math.nan)
        sign = 1 if self._mode == "max" else -1
        better = math.isfinite(value) and (self.best is None or sign * value > sign * self.best)
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)

    @property
    def spent(self) -> bool:
        """Whether the training ends here; the same on all processes."""
        return bool(self.most) and distributed.first(lambda: self.waited >= self.most)

    def figures(self) -> dict[str, float]:
        """What a checkpoint keeps of it; nothing where no training can end early."""
        count = {"evaluations_since": self.waited} if self.most else {}
        return count | ({"best_so_far": self.best} if self.most and self.best is not None else {})


def train(run: Run, evaluate: Callable[[State], dict[str, float]], origin: Run | None = None) -> None:
    """Trains a run to `num_steps`, from its latest checkpoint where there is one; with none to take, the beginning is saved.

    With `patience` it ends before, see `Patience`.

    The order within a step: dispatch step k; read the metrics of step k-1, which must be finite; at an interval read those of
    step k too, see that the new parameters are finite, show pictures, evaluate, and only then save; send the batch after the
    next while step k runs. With `steps_per_dispatch` all this is of so many steps at once, whose metrics are still those of each.

    Args:
        run: the run; its config is already written.
        evaluate: state -> metrics of the split `valid`, called every `eval_every` steps and at the end.
        origin: the finished run that it begins with; read where there is no checkpoint yet.

    Raises:
        Preempted: SIGTERM, SIGINT or SIGUSR1 came, to whichever process; the step it was at is saved, on all the same.
        OSError: a checkpoint cannot be written, or not be read back; those before it stay.
        FloatingPointError: the loss, a gradient or the learning rate is not finite; names the step and the records. Or what would
            be saved is not: names the step and the first such array.
    """
    c = run.config
    model = model_of(run)
    _check_steps(c, model.mesh)  # here too: devices and `steps_per_dispatch` may change from start to start
    dispatch = model.step if c.steps_per_dispatch == 1 else model.steps
    kept = c.get("keep", ())
    checkpoints = checkpoint.Checkpoints(run.workdir, c.best, kept)
    checkpoints.prune()
    if checkpoints.begun():
        start, state = inference.restore(run, "latest", whole=True)
        log.info("%s: resumes at step %d", run.workdir, start)
    else:
        start, state = 0, model.init(sharding.key(c.seed, model.mesh))
        if c.backbone.weights:
            state = model.load(state, c.backbone.weights)
            run.note_weights(c.backbone.weights, pretrained.digest(c.backbone.weights))
        if origin is not None:
            begun, known = inference.restore(origin)
            if c.init_from:  # a run that may be trained anew in its place; a child is of this run
                run.note(begins=checkpoint.Checkpoints(origin.workdir).identity(begun))
            params, rest = model_of(origin).weights(known)
            state = model.begin(state, params | rest, str(origin.workdir))
    patience = Patience(c, checkpoints.manifests()[start]["metrics"] if checkpoints.begun() else {})
    sampler, cache, batches = of_run(run, start, per_dispatch=c.steps_per_dispatch)
    key = sharding.key(c.seed + 1, model.mesh)
    learning_rate = sharding.put(np.float32(c.optimizer.learning_rate), sharding.replicated(model.mesh))
    images_per_step = sum(c.data.streams.values())
    writer = Writer(run.workdir, run.workdir.name, start, c.num_steps, trackers.begin(run, run.trackers))
    pending: tuple[range, dict] | None = None  # metrics of the steps dispatched last, not read yet

    def read(pending: tuple[range, dict]) -> dict[int, dict[str, float]]:
        steps, metrics = pending
        metrics, found = jax.device_get(metrics), {}
        for i, step in enumerate(steps):
            values = {name: float(np.ravel(value)[i]) for name, value in metrics.items()}
            if not values.pop("finite"):
                ids = [str(i) for name, rows in sampler.rows.items() for i in _ids(rows, sampler(step)[name]["index"])]
                raise FloatingPointError(
                    f"{run.workdir}: step {step + 1} is not finite ({json.dumps(values)}); its images: {', '.join(ids)};"
                    " the last checkpoint is kept. Lower optimizer.learning_rate or set optimizer.clip_norm"
                )
            found[step + 1] = values
        return found

    def check(step: int) -> None:
        # Loss and gradients are those of the parameters before the step: what it made of them nothing has seen yet.
        if name := model.not_finite(state):
            raise FloatingPointError(
                f"{run.workdir}: after step {step} {name} is not finite; this is not saved, the checkpoints before it are kept."
                " Lower optimizer.learning_rate or optimizer.weight_decay"
            )

    def save(step: int, scores: dict[str, float], last: bool) -> None:
        if scores:
            writer.write(step, {f"valid_{name}": value for name, value in scores.items()})
            writer.progress(step, {f"valid {name}": value for name, value in scores.items()})
        kept = {name: value for name, value in scores.items() if math.isfinite(value)}
        checkpoints.save(step, state, kept | patience.figures(), last)

    with contextlib.ExitStack() as stack:
        stack.push(lambda kind, *_: writer.close(finished=kind is None))
        stack.callback(checkpoints.close)
        signalled = distributed.agreed(stack.enter_context(preemption.deferred()), model.mesh)
        if c.num_steps == 0 and not checkpoints.begun():
            check(0)
            save(0, evaluate(state), last=True)
        clock = tick = time.perf_counter()
        waited, timed_from = 0.0, start
        step, spent = start, patience.spent
        dispatches = [] if spent else loader.dispatches(start, c.num_steps, c.steps_per_dispatch)
        profiler = profile.Profiler(run, len(dispatches))
        stack.callback(profiler.close)
        for steps in dispatches:
            step = steps.stop  # how many are done when these are
            preemption.step_begins()
            wait_from = time.perf_counter()
            batch = next(batches)
            ready = time.perf_counter()
            # Where the step before still runs, the devices did not wait.
            waits = 0.0 if pending and not jax.tree.leaves(pending[1])[0].is_ready() else ready - wait_from
            waited += waits
            with jax.transfer_guard("disallow"):  # all that a step takes lies on the devices already
                state, metrics = dispatch(state, batch, cache, learning_rate, key)
            profiled = profiler.dispatched(waits, time.perf_counter() - ready)
            before, pending = pending, (steps, metrics)
            if before is not None:
                found, done = read(before), before[0].stop
                profiler.read()
                if logged := [k for k in found if k % c.log_every == 0]:
                    now = time.perf_counter()
                    speed = images_per_step * (done - timed_from) / max(now - clock, 1e-9)
                    speeds = {"images_per_s": speed, "input_wait": waited / max(now - clock, 1e-9)}
                    clock, waited, timed_from = now, 0.0, done
                    for k in logged:
                        writer.write(k, found[k] | speeds)
                    writer.progress(logged[-1], {"loss": found[logged[-1]]["loss"], **speeds})
                if profiled or before[0].start == start:  # its time was that of the profile, or of the compilation
                    clock, waited, timed_from = time.perf_counter(), 0.0, done
            checkpoints.poll()
            last, signal = step == c.num_steps, signalled()
            if last or signal or step % c.eval_every == 0 or step % c.checkpoint_every == 0 or step in kept:
                for k, values in read(pending).items():
                    if k == c.num_steps or k % c.log_every == 0:
                        writer.write(k, values)
                pending = None
                profiler.read(between=True)
                check(step)
                evaluates = last or step % c.eval_every == 0
                if evaluates and model.pictures:
                    writer.pictures(step, jax.device_get(model.pictures(*model.weights(state), batch, cache)))
                scores = evaluate(state) if evaluates else {}
                if evaluates:
                    patience.see(scores)
                    spent = patience.spent
                save(step, scores, last or spent or bool(signal))
                clock, waited, timed_from = time.perf_counter(), 0.0, step  # evaluation is not training time
                if spent:
                    break
            if signal and not last:
                checkpoints.close()
                distributed.first(lambda: None)  # its manifest is there, too: the first process that ends now ends the others
                raise preemption.Preempted(f"{run.workdir}: {signal}: saved at step {step}; the same command continues the run")
        checkpoints.close()
        profiler.finish()
        log.info("%s: %d steps in %.1f s", run.workdir, step - start, time.perf_counter() - tick)
        if spent:
            reason = f"{c.patience} evaluations brought no better {c.best}"
            log.info("%s: ends at step %d of %d: %s", run.workdir, step, c.num_steps, reason)


def _check_steps(c: Config, mesh: jax.sharding.Mesh) -> None:
    for name, size in c.data.streams.items():
        sharding.check_batch(f"data.streams.{name}", size, mesh, c.optimizer.accumulate)
    sharding.check_batch("eval_batch", c.eval_batch, mesh)
    names.check("data.cache", c.data.cache, ("none", "device"))
    count, kept = c.steps_per_dispatch, c.get("keep", ())
    fields = [(name, c[name]) for name in ("eval_every", "checkpoint_every", "num_steps")]
    for name, steps in [*fields, *(("keep", step) for step in kept)]:
        if steps % count:
            raise ValueError(f"{name}={steps} is not a multiple of steps_per_dispatch={count}")
    if kept and max(kept) > c.num_steps:
        raise ValueError(f"keep={tuple(kept)}: the training ends at num_steps={c.num_steps}")


def _ids(rows: Rows, index: np.ndarray) -> np.ndarray:
    return rows.ids[np.searchsorted(rows.index, index)]
