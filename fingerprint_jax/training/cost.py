"""What a step costs, as XLA counts it."""

from typing import Any

from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inputs
from fingerprint_jax.training.model import model_of


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
