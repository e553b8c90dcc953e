"""From a random-access source to batches: shuffled, repeated, shared among processes, resumable.

    source --shuffle, a new order each epoch--> repeat --> the rows of this process --> map keys --> batch

Every stage is a function of an index: row r of batch s is element s B + r of one endless order. So a step has the same
rows in the same places whatever processes read them, and a run that goes on needs no more than the number of batches it
has had. Batches are made ahead of need by threads; video stays uint8 until it is on the device.
"""

from collections.abc import Sequence

import grain


def batches(
    source: grain.sources.RandomAccessDataSource,
    batch_size: int,
    *,
    keys: Sequence[str] = ('video', 'label'),
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    start: int = 0,
    rows: Sequence[int] | None = None,
    threads: int = 4,
) -> grain.IterDataset:
    """Returns full batches, {key: array (len(rows), ...)}; text becomes an array of NumPy strings.

    A pass without `repeat` gives every process the same number of batches and drops what does not fill one in all of
    them: fewer than batch_size elements, others in each shuffle.

    Args:
        source: elements are dicts of arrays, numbers or text
        batch_size: elements in a batch of all processes
        keys: which entries of an element to keep
        seed: for the shuffle
        shuffle: whether to draw a new order in every epoch
        repeat: whether to go on for ever
        start: how many batches to leave out
        rows: which rows of a batch this process reads, in this order; all by default
        threads: batches made at the same time; twice as many wait to be taken. 0 makes them when asked

    Raises ValueError where a key is missing, where a row is not in the batch, and where a source without `repeat` is
    shorter than one batch.
    """
    _check(source, batch_size, keys, threads)
    rows = range(batch_size) if rows is None else rows
    if not rows or not set(rows) <= set(range(batch_size)):
        raise ValueError(f'rows {list(rows)} must be some of those of a batch of {batch_size}')
    elements = grain.MapDataset.source(source)
    if shuffle:
        elements = elements.shuffle(seed=seed)
    if repeat:
        elements = elements.repeat()
    else:
        if len(source) < batch_size:
            raise ValueError(
                f'a source of {len(source)} elements is shorter than one batch of {batch_size}, and does not repeat'
            )
        elements = elements[: len(source) // batch_size * batch_size]
    batched = _batched(_Rows(elements[start * batch_size :], batch_size, rows), len(rows), keys, drop_remainder=True)
    return _ahead(batched, threads)


class _Rows(grain.MapDataset):
    """Of elements that come in batches of `batch_size`, some rows of every batch."""

    def __init__(self, elements: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(elements)
        self._batch_size, self._rows = batch_size, tuple(rows)

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int | slice):
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[place]]


def epoch(
    source: grain.sources.RandomAccessDataSource,
    batch_size: int,
    *,
    keys: Sequence[str] = ('video', 'label'),
    threads: int = 4,
) -> grain.IterDataset:
    """Returns every element once, in order, in batches of which the last may be smaller.

    For passes that must leave nothing out, such as encoding or metrics over a whole set. Where several processes
    meet in every step use `batches(..., repeat=False)`, which gives each the same number. Arguments and errors as
    `batches`.
    """
    _check(source, batch_size, keys, threads)
    return _ahead(_batched(grain.MapDataset.source(source), batch_size, keys, drop_remainder=False), threads)


def _batched(
    elements: grain.MapDataset, batch_size: int, keys: Sequence[str], drop_remainder: bool
) -> grain.MapDataset:
    elements = elements.map(lambda element: {key: element[key] for key in keys})
    return elements.batch(batch_size, drop_remainder=drop_remainder)


def _ahead(batched: grain.MapDataset, threads: int) -> grain.IterDataset:
    return batched.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))


def _check(source: grain.sources.RandomAccessDataSource, batch_size: int, keys: Sequence[str], threads: int) -> None:
    if batch_size < 1 or threads < 0:
        raise ValueError(f'batch_size must be 1 or more and threads 0 or more, got {batch_size} and {threads}')
    if not len(source):
        raise ValueError('the source has no elements')
    present = tuple(source[0])
    if not keys or not set(keys) <= set(present):
        raise ValueError(f'keys {tuple(keys)} must be some of those of an element, {present}')
