"""One mesh over all devices; batches are split over it, parameters are copied to each of them."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """All devices of all processes along the axis `data`."""
    return Mesh(np.array(jax.devices()), ("data",))


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first or another, is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def parts(batch: dict, count: int, mesh: Mesh) -> dict:
    """Arrays [B, ..] cut into consecutive parts [count, B / count, ..], every part split over the devices."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x.reshape(count, -1, *x.shape[1:]), split(mesh, 1)), batch)


def check_batch(name: str, size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises ValueError where a batch, or each of its `parts` of gradient accumulation, cannot be divided over the devices."""
    if size < 1 or parts < 1 or size % (mesh.size * parts):
        what = f"{mesh.size} devices" + (f" times optimizer.accumulate={parts}" if parts != 1 else "")
        raise ValueError(f"{name}={size} is not a multiple of the {what}")
