"""What a training would take, before it is started: parameters, FLOPs and memory of a step. Nothing is written or trained."""

from typing import Any

import jax
from ml_collections import ConfigDict

from fingerprint_jax import Config, methods, train
from fingerprint_jax.methods import classical, ensemble, gradient, pseudo_label
from fingerprint_jax.model import model_of
from fingerprint_jax.run import Run, network


def describe(run: Run) -> list[tuple[str, str]]:
    """Rows `(what, figure)`; for a method that trains children those of a child, with the number of children."""
    method = run.config.method
    if method == "ensemble":
        children = [member for _, member in ensemble.members(run)]
        chosen = next((child for child in children if network(child.config).method == "gradient"), children[0])
        which = "one of them:" if run.config.ensemble.variants else "each:"
        return [("children", f"{len(children)}, {which}"), *describe(chosen)]
    if method == "pseudo_label":
        return [("rounds", f"{run.config.pseudo.rounds + 1}, each:"), *describe(pseudo_label.round_of(run, 0))]
    if method == "classical":
        encoder = classical.encoder(run)
        return [("encoder", str(encoder.workdir)), *describe(encoder)] if encoder else [("features", run.config.features.name)]
    methods.get(method)  # an unknown one is named
    return _gradient(run)


def _gradient(run: Run) -> list[tuple[str, str]]:
    c, model = run.config, model_of(run)
    args = train.arguments(run)
    memory: Any = model.step.lower(*args).compile().memory_analysis()
    images, flops_a_step = sum(c.data.streams.values()), flops(run)
    params, state = model.abstract["params"], model.abstract
    source = gradient.origin(run)
    begins = f"{source.workdir}, {source.config.num_steps:,} steps on {source.config.task}" if source else ""
    return [
        *([("begins with", begins)] if source else []),
        ("parameters", f"{sum(x.size for x in params.values()):,}"),
        ("statistics and queues", f"{sum(x.size for x in state['rest'].values()):,}"),
        ("images a step", f"{images:,} of {'x'.join(map(str, run.source.image_shape))}"),
        ("FLOPs a step", f"{flops_a_step:.4g}, as XLA counts them; {flops_a_step / images:.4g} an image"),
        ("state", _mib(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))),
        ("data on the device", _mib(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args[1:3])))),
        ("temporaries of a step", _mib(memory.temp_size_in_bytes)),
        ("memory a device", _mib(memory.argument_size_in_bytes + memory.temp_size_in_bytes)),
        ("steps", f"{c.num_steps:,}, {c.num_steps * images:,} images"),
    ]


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
    return flops_of(model.step.lower(*train.arguments(run)), model.mesh.size)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
