"""One mesh over all devices of all processes; batches are split over it, parameters are copied to each of them."""

import contextlib
import contextvars
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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


def share(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Of an array that all devices would hold alike each holds a part, of the first axis that they divide; else all of it."""
    axis = next((i for i, size in enumerate(shape) if mesh.size > 1 and size and size % mesh.size == 0), None)
    return replicated(mesh) if axis is None else split(mesh, axis)


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


def order(size: int, parts: int, devices: int) -> np.ndarray:
    """The order [size] in which the rows of a batch go to the devices: each gets its rows of every part, and `parts` moves none."""
    return np.arange(size).reshape(parts, devices, -1).swapaxes(0, 1).reshape(-1)


def parts(batch: dict, count: int, mesh: Mesh) -> dict:
    """Arrays [B, ..] in that `order` -> consecutive parts of the batch [count, B / count, ..], each split over the devices."""

    def cut(x: jax.Array) -> jax.Array:
        rows = x.reshape(mesh.size, count, -1, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(rows.reshape(count, -1, *x.shape[1:]), split(mesh, 1))

    return jax.tree.map(cut, batch)


_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def over(mesh: Mesh) -> Generator[None]:
    """Within it batches are split over the devices of `mesh`, see `by_rows`."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def by_rows(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A function of each row of a batch [B, ..] by itself, on every device of its own rows.

    For operations that XLA does not split, and would do on every device for the whole batch.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return function(x)
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)(x)


class Joined:
    """Arrays of several streams as one batch: every device has its rows of all of them, so that none of their rows moves.

    Args:
        sizes: rows of each stream, a multiple of the devices.
        mesh: over which each stream is split.

    Attributes:
        place: the place of each row where the streams lie one after the other; None where they do, on a single device.
    """

    def __init__(self, sizes: Sequence[int], mesh: Mesh) -> None:
        self._sizes, self._mesh = list(sizes), mesh
        starts = np.cumsum([0, *self._sizes[:-1]])
        rows = [start + np.arange(size).reshape(mesh.size, -1) for start, size in zip(starts, self._sizes, strict=True)]
        self.place = None if mesh.size == 1 else np.concatenate(rows, axis=1).reshape(-1)

    def join(self, streams: Sequence[jax.Array]) -> jax.Array:
        """Arrays [B, ..] of the streams -> [sum of B, ..]."""
        if self.place is None:
            return jnp.concatenate(streams)
        blocks = [self._split(x.reshape(self._mesh.size, -1, *x.shape[1:])) for x in streams]
        return self._split(jnp.concatenate(blocks, axis=1).reshape(-1, *streams[0].shape[1:]))

    def split(self, x: jax.Array) -> list[jax.Array]:
        """What `join` gave -> the arrays of the streams, split over the devices as they were."""
        count, ends = self._mesh.size, np.cumsum(self._sizes)[:-1]
        if self.place is None:
            return jnp.split(x, ends)
        blocks = jnp.split(self._split(x).reshape(count, -1, *x.shape[1:]), ends // count, axis=1)
        return [self._split(block.reshape(-1, *x.shape[1:])) for block in blocks]

    def whole(self, x: jax.Array) -> jax.Array:
        """What `join` gave, the streams one after the other, on every device: embeddings that a loss compares with each other."""
        # Split first, else XLA may compute on every device what leads to it.
        return x if self.place is None else self._copied(self._split(x))[np.argsort(self.place)]

    def spread(self, x: jax.Array) -> jax.Array:
        """What every device has [P, ..], split over them where P allows: pairs of what `whole` gave."""
        return x if self.place is None or len(x) % self._mesh.size else self._split(self._copied(x))

    def _split(self, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, split(self._mesh))

    def _copied(self, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, replicated(self._mesh))


def check_batch(name: str, size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises ValueError where a batch, or each of its `parts` of gradient accumulation, cannot be divided over the devices."""
    if size % (mesh.size * parts):
        what = f"{mesh.size} devices" + (f" times optimizer.accumulate={parts}" if parts != 1 else "")
        raise ValueError(f"{name}={size} is not a multiple of the {what}")
