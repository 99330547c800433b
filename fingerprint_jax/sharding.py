"""One mesh over all devices; batches are split over it, parameters are copied to each of them."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """All devices of all processes along the axis `data`."""
    return Mesh(np.array(jax.devices()), ("data",))


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(name: str, size: int, mesh: Mesh) -> None:
    """Raises ValueError where the devices do not divide a batch."""
    if size < 1 or size % mesh.size:
        raise ValueError(f"{name}={size} is not a multiple of the {mesh.size} devices")
