"""One mesh over all devices of all processes; batches are split over it, parameters are copied to each of them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes along the axis `data`, those of a process side by side: they hold one block of a batch.

    `devices` in their place are those of a machine that is compiled for and need not be there.
    """
    found = jax.devices() if devices is None else devices
    return Mesh(np.array(sorted(found, key=lambda device: (device.process_index, device.id))), ("data",))


def own(mesh: Mesh) -> Mesh:
    """The devices of this process alone, for what it does by itself; of a single process `mesh`."""
    return mesh if jax.process_count() == 1 else Mesh(np.array(mesh.local_devices), ("data",))


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first or another, is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def readable(mesh: Mesh) -> NamedSharding:
    """For results of a row each: split where one process can read all of them, else on every device."""
    return split(mesh) if len({device.process_index for device in mesh.devices.flat}) == 1 else replicated(mesh)


def block(size: int, index: int, count: int) -> slice:
    """The rows of a batch that process `index` of `count` reads; `check_batch` has seen that they are as many on each."""
    rows = size // count
    return slice(index * rows, (index + 1) * rows)


def put(x: np.ndarray | np.generic, sharding: jax.sharding.Sharding) -> jax.Array:
    """What each process has whole, on all devices, as each of them needs it."""
    return jax.make_array_from_process_local_data(sharding, np.asarray(x), x.shape)


def key(seed: int, mesh: Mesh) -> jax.Array:
    """A random key on all devices."""
    data = np.asarray(jax.device_get(jax.random.key_data(jax.random.key(seed))))
    return jax.random.wrap_key_data(put(data, replicated(mesh)))


def abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and types of a tree of arrays, every leaf with the same sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def copied(tree: Any, mesh: Mesh) -> Any:
    """Replicated arrays of all processes on the devices `own` of this one; of a single process they are there."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), replicated(mesh)), tree)


def parts(batch: dict, count: int, mesh: Mesh) -> dict:
    """Arrays [B, ..] cut into consecutive parts [count, B / count, ..], every part split over the devices."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x.reshape(count, -1, *x.shape[1:]), split(mesh, 1)), batch)


def check_batch(name: str, size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises ValueError where a batch, or each of its `parts` of gradient accumulation, cannot be divided over the devices."""
    if size % (mesh.size * parts):
        what = f"{mesh.size} devices" + (f" times optimizer.accumulate={parts}" if parts != 1 else "")
        raise ValueError(f"{name}={size} is not a multiple of the {what}")
