"""What the steps of a training read: the sampler, images on the device, batches."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fingerprint_jax import objectives
from fingerprint_jax.data import loader
from fingerprint_jax.data.sampler import AnySampler, PairSampler, PatientSampler, Sampler
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding
from fingerprint_jax.training import pair_table
from fingerprint_jax.training.model import Model, model_of


def sampler_of(run: Run, paired: bool = True) -> AnySampler:
    """The batches of a run.

    With `paired=False` those of its streams each by itself: for a dry run before the table of pairs exists; shapes are the same.
    """
    c = run.config
    sizes = c.data.streams.to_dict()
    if objectives.of(c.objective.name).of_patients:
        known = {name: rows.take(run.source.patients(rows.groups)) for name, rows in run.streams.items()}
        return PatientSampler(known, sizes, c.seed)
    if paired and pair_table.stage(run):
        return PairSampler(run.streams, pair_table.table(run), sizes["real"], c.seed, c.data.balanced)
    return Sampler(run.streams, sizes, c.seed, c.data.balanced)


def spans(run: Run, sampler: AnySampler) -> dict[str, tuple[int, int]]:
    """The record numbers of each stream that `data.cache=device` holds, first and one after the last: whole splits.

    Also what lies between two of them, see `Run.extra`, and rows that are held out; none of these is ever asked for. Without them
    each fold would have arrays of another length, and a compiled step of its own.
    """
    ends = [run.source.span(split) for split in run.source.splits]
    return {
        name: (max(a for a, _ in ends if a <= rows.index.min()), min(b for _, b in ends if b > rows.index.max()))
        for name, rows in sampler.rows.items()
    }


def of_run(run: Run, start: int, paired: bool = True, per_dispatch: int = 1) -> tuple[AnySampler, dict, Iterator]:
    """The sampler of a run (`sampler_of`), the images on the device, and the batches of the steps from `start` to its last.

    Where `per_dispatch` is more than one, those of so many steps are stacked.
    """
    c, mesh, sampler = run.config, model_of(run).mesh, sampler_of(run, paired)
    cache = {}
    if c.data.cache == "device":
        cache = loader.device_cache(run.source, spans(run, sampler), sharding.replicated(mesh))
        run.source.require_whole(c.data.max_damaged)
    batches = loader.host_batches(
        sampler,
        (str(c.data_dir), c.task),
        start,
        c.num_steps,
        with_images=not cache,
        per_dispatch=per_dispatch,
        workers=c.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_damaged=c.data.max_damaged,
        parts=c.optimizer.accumulate,
        devices=mesh.size,
    )
    return sampler, cache, loader.to_devices(batches, sharding.split(mesh, int(per_dispatch > 1)))


def arguments(run: Run, model: Model | None = None) -> tuple:
    """What `Model.step` takes, without content: shapes, types and places as `train` has them, so that both are one program.

    `model` is that of the run, for the devices of another mesh.
    """
    c, model = run.config, model or model_of(run)
    whole, split = sharding.replicated(model.mesh), sharding.split(model.mesh)
    sampler = sampler_of(run, paired=False)
    batch: dict[str, dict[str, Any]] = {**sampler(0)}
    cache = {}
    for name, (begin, end) in spans(run, sampler).items():
        if c.data.cache == "device":
            cache[name] = (jax.ShapeDtypeStruct((end - begin, *run.source.image_shape), np.uint8), np.int32(0))
        else:
            shape = (len(batch[name]["index"]), *run.source.image_shape)
            batch[name]["image"] = jax.ShapeDtypeStruct(shape, np.uint8)
    key = jax.eval_shape(jax.random.key, 0)
    trees = (batch, split), (cache, whole), (np.float32(0), whole), (key, whole)
    return model.abstract, *(sharding.abstract(tree, place) for tree, place in trees)
