"""Step -> {stream: rows}: a pure function of (seed, step), the same on every host and after every restart."""

import functools
import zlib

import numpy as np

from fingerprint_jax.data.source import Rows
from fingerprint_jax.stats import bootstrap


class StreamSampler:
    """Shuffled, repeated rows of one stream; balanced, labels take turns, each shuffled and repeated by itself."""

    def __init__(self, rows: Rows, batch_size: int, seed: int, name: str, balanced: bool) -> None:
        if not len(rows):
            raise ValueError(f"data.streams.{name}: no rows to train on")
        self.batch_size = batch_size
        labels = np.unique(rows.labels) if balanced else [None]
        self._orders = []
        for label in labels:
            chosen = np.arange(len(rows)) if label is None else np.flatnonzero(rows.labels == label)
            self._orders.append((chosen, zlib.crc32(f"{seed}/{name}/{label}".encode())))

    def __call__(self, step: int) -> np.ndarray:
        """Row positions of the batch of a step: [batch_size]."""
        turns = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        batch = np.empty(self.batch_size, np.int64)
        for k, (chosen, seed) in enumerate(self._orders):
            where = np.flatnonzero(turns % len(self._orders) == k)
            epochs, places = np.divmod(turns[where] // len(self._orders), len(chosen))
            for epoch in np.unique(epochs):
                now = epochs == epoch
                batch[where[now]] = chosen[_order(len(chosen), seed, int(epoch))[places[now]]]
        return batch


@functools.lru_cache(maxsize=32)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    # The raw stream of a bit generator is fixed over the versions of numpy, its `permutation` is not. An order an epoch costs
    # less than a look-up an element in a shuffled grain.MapDataset: 0.3 ms each on short streams.
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(count), kind="stable")


class Sampler:
    """All streams of a training: step -> {stream: {'label', 'index'}}."""

    def __init__(self, streams: dict[str, Rows], batch_sizes: dict[str, int], seed: int, balanced: bool) -> None:
        self.rows = streams
        self._streams = {name: StreamSampler(rows, batch_sizes[name], seed, name, balanced) for name, rows in streams.items()}

    def __call__(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        """The global batch of a step: `label` int32 [B] and record number `index` int32 [B] of each stream."""
        return {name: _batch(self.rows[name].take(stream(step))) for name, stream in self._streams.items()}


class PairSampler:
    """Pairs of a table, shuffled and repeated: two aligned streams, step -> {stream: {'label', 'index'}}.

    Args:
        streams: the rows that may be drawn, in the order of their record numbers.
        pairs: record numbers of each stream [M].
        batch_size: pairs a step.
        seed: of the order.
        balanced: pairs with each label of the real image take turns.

    Raises ValueError where a pair has a row that is not among the streams: it may be held out.
    """

    def __init__(self, streams: dict[str, Rows], pairs: dict[str, np.ndarray], batch_size: int, seed: int, balanced: bool) -> None:
        self.rows, self._aligned = streams, {}
        for name, rows in streams.items():
            if foreign := int((~np.isin(pairs[name], rows.index)).sum()):
                raise ValueError(f"data.streams.{name}: {foreign} pairs of the table have an image that is not trained on")
            self._aligned[name] = rows.take(np.searchsorted(rows.index, pairs[name]))
        self._stream = StreamSampler(self._aligned["real"], batch_size, seed, "pairs", balanced)

    def __call__(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        """As `Sampler` gives it; row i of both streams is one pair."""
        chosen = self._stream(step)
        return {name: _batch(rows.take(chosen)) for name, rows in self._aligned.items()}


class PatientSampler:
    """Two images of each of several patients, one after the other: step -> {stream: {'label', 'index'}}, as of `Sampler`.

    The label is the number of the patient. Patients are shuffled and repeated as rows are; which two of the images of one are
    taken is drawn each time. Patients of one image are left out.

    Args:
        streams: the rows of one stream, each of a patient.
        batch_sizes: images a step, an even number.
        seed: of the order, and of the images.

    Raises ValueError where there are no two patients of two images each.
    """

    def __init__(self, streams: dict[str, Rows], batch_sizes: dict[str, int], seed: int) -> None:
        if len(streams) != 1:
            raise ValueError(f"data.streams={sorted(streams)}: pairs of one patient are drawn from one stream, name one")
        ((name, rows),) = streams.items()
        if batch_sizes[name] % 2:
            raise ValueError(f"data.streams.{name}={batch_sizes[name]}: two images of a patient are drawn, use an even number")
        patient = bootstrap.as_they_come(rows.groups)
        sizes = np.bincount(patient)
        members = np.split(np.argsort(patient, kind="stable"), np.cumsum(sizes)[:-1])
        self._members = [each for each in members if len(each) > 1]
        if len(self._members) < 2:
            raise ValueError(
                f"data.streams.{name}: {len(self._members)} patients have two images or more, and pairs of one patient and of two"
                " are learned from: pack the data with --groups=CSV, which names the patient of each image"
            )
        self.rows, self._name = streams, name
        first = rows.take(np.array([each[0] for each in self._members]))
        self._patients = StreamSampler(first, batch_sizes[name] // 2, seed, name, balanced=False)
        self._seed = zlib.crc32(f"{seed}/{name}/images".encode())

    def __call__(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        """Images 2i and 2i + 1 of a batch are of one patient."""
        patients, pairs = self._patients(step), []
        drawn = np.random.Philox(key=[self._seed, step]).random_raw(2 * len(patients)).tolist()
        for patient, one, other in zip(patients.tolist(), drawn[::2], drawn[1::2], strict=True):
            members = self._members[patient]
            first, further = one % len(members), 1 + other % (len(members) - 1)
            pairs += [members[first], members[(first + further) % len(members)]]
        index = self.rows[self._name].index[pairs].astype(np.int32)
        return {self._name: {"label": np.repeat(patients, 2).astype(np.int32), "index": index}}


AnySampler = Sampler | PairSampler | PatientSampler


def _batch(rows: Rows) -> dict[str, np.ndarray]:
    return {"label": rows.labels.astype(np.int32), "index": rows.index.astype(np.int32)}
