"""Batches on the devices: the sampler decides which records, this process reads its block of them."""

import collections
import ctypes
import itertools
import math
import mmap
import signal
import sys
from collections.abc import Iterator

import grain
import jax
import numpy as np

from fingerprint_jax.data import shared
from fingerprint_jax.data.sampler import AnySampler
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.runtime.sharding import block, order, put


def dispatches(start: int, stop: int, count: int) -> list[range]:
    """The steps start..stop-1 in runs that end at the multiples of `count`, so that one which begins between two is shorter.

    >>> dispatches(3, 10, 4)
    [range(3, 4), range(4, 8), range(8, 10)]
    """
    begins = [start, *range(start - start % count + count, stop, count)]
    return [range(a, b) for a, b in zip(begins, [*begins[1:], stop], strict=True) if a < b]


class _Read:
    """Step -> the block of this process of the global batch, images read; several steps -> theirs, stacked.

    Picklable, for reader processes. With `shared_as` images are in shared memory of such names.
    """

    def __init__(
        self,
        sampler: AnySampler,
        source_key: tuple[str, str],
        with_images: bool,
        process_index: int,
        process_count: int,
        shared_as: str,
        parts: int,
        devices: int,
        max_damaged: int | None,
    ) -> None:
        self.sampler, self.source_key, self.with_images = sampler, source_key, with_images
        self.process_index, self.process_count, self.shared_as = process_index, process_count, shared_as
        self.parts, self.devices, self.max_damaged = parts, devices, max_damaged
        self.fingerprints = open_source(*source_key).fingerprints

    def __call__(self, steps: int | range) -> dict[str, dict[str, np.ndarray]]:
        if isinstance(steps, range):
            batch = jax.tree.map(lambda *parts: np.stack(parts), *map(self._one, steps))
        else:
            batch = self._one(steps)
        if self.shared_as:
            for stream in batch.values():
                stream["image"] = shared.give(stream["image"], self.shared_as)
        return batch

    def _one(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        batch = self.sampler(step)
        for name, stream in batch.items():
            size = len(stream["index"])
            own = order(size, self.parts, self.devices)[block(size, self.process_index, self.process_count)]
            batch[name] = {key: value[own] for key, value in stream.items()}
            if self.with_images:
                source = self._source()
                batch[name]["image"] = source.images(batch[name]["index"])
                source.require_whole(self.max_damaged)  # what was read at the start may be damaged by now
        return batch

    def _source(self) -> Source:
        """The data set, which a reader process opens for itself; raises ValueError where it is another one by then."""
        source = open_source(*self.source_key)
        if source.fingerprints != self.fingerprints:
            raise ValueError(f"{source.path} was packed anew while a run reads it: start the run again on a folder of its own")
        return source


def host_batches(
    sampler: AnySampler,
    source_key: tuple[str, str],
    start: int,
    stop: int,
    *,
    with_images: bool = True,
    per_dispatch: int = 1,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    parts: int = 1,
    devices: int = 1,
    max_damaged: int | None = None,
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """Batches of steps start..stop-1 as numpy: `{stream: {image uint8 [b,H,W,1], label [b], index [b]}}`, b = B / process_count.

    Rows are in the `order` of so many parts of a batch, and devices of all processes. Where `per_dispatch` is more than one they
    come stacked [K, b, ..], as `dispatches` says. Raises ValueError where more than `max_damaged` records are damaged, if given.
    """
    shared_as = ""
    if workers and with_images:
        shared_as = shared.claim()
        images = per_dispatch * sum(len(stream["index"]) for stream in sampler(start).values()) // process_count
        # Four batches a reader and those on their way to the device, as counted; the semaphores of a reader are 25 pages.
        held = (4 * workers + 4) * images * math.prod(open_source(*source_key).image_shape)
        shared.require(held + workers * 25 * mmap.PAGESIZE)
    read = _Read(sampler, source_key, with_images, process_index, process_count, shared_as, parts, devices, max_damaged)
    # One thread reads ahead while the trainer waits for the device; what grain returns is in order. Indices alone need none.
    ahead = int(with_images and not workers)
    steps = grain.MapDataset.range(start, stop)
    if per_dispatch > 1:
        steps = grain.MapDataset.source(dispatches(start, stop, per_dispatch))
    data = steps.map(read).to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead))
    if workers:
        # Labels and indices go through a pipe, which is faster for what is small.
        data = grain.experimental.WithOptionsIterDataset(data, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize))
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_die_with_trainer)
    return iter(data)


def _die_with_trainer(worker: int, workers: int) -> None:
    # Without this a trainer killed by SIGKILL leaves its readers behind. Linux only (PR_SET_PDEATHSIG of prctl).
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def to_devices(batches: Iterator, sharding: jax.sharding.Sharding, in_flight: int = 2) -> Iterator:
    """Global arrays from every process's block, `in_flight` batches sent ahead."""
    queue = collections.deque()

    def send(count: int) -> None:
        for batch in itertools.islice(batches, count):
            queue.append(jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch))

    send(in_flight)
    while queue:
        yield queue.popleft()
        send(1)


def device_cache(source: Source, spans: dict[str, tuple[int, int]], sharding: jax.sharding.Sharding) -> dict:
    """The images of each stream's split on every device: {stream: (uint8 [N,H,W,1], first record number)}."""
    cache = {}
    for name, (start, stop) in spans.items():
        images = source.images(np.arange(start, stop))
        # Not device_put, which has several processes compare all the images.
        cache[name] = (put(images, sharding), put(np.int32(start), sharding))
    return cache
