"""From a random-access source to batches: shuffled, repeated, shared among processes, resumable.

    source --shuffle, a new order each epoch--> repeat --> map keys --> batch --every process_count-th batch-->

Every stage is a function of an index: batch s of process p of n is number s n + p of one endless order of small
batches. So what all processes read in a step, put one after another, is the same for any number of them, and a run
that goes on needs no more than the number of batches it has had. Batches are made ahead of need by threads; video
stays uint8 until it is on the device.
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
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
) -> grain.IterDataset:
    """Returns full batches, {key: array (batch_size, ...)}; text becomes an array of NumPy strings.

    A pass without `repeat` gives every process the same number of batches and drops what does not fill one in all of
    them: fewer than batch_size * process_count elements, others in each shuffle.

    Args:
        source: elements are dicts of arrays, numbers or text
        batch_size: elements in a batch of this process
        keys: which entries of an element to keep
        seed: for the shuffle
        shuffle: whether to draw a new order in every epoch
        repeat: whether to go on for ever
        start: how many batches of every process to leave out
        process_index, process_count: this process and how many there are
        threads: batches made at the same time; twice as many wait to be taken. 0 makes them when asked

    Raises ValueError where a key is missing, where a process is out of range, and where a source without `repeat` is
    shorter than one batch of all processes.
    """
    _check(source, batch_size, keys, threads)
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index {process_index} must be one of {process_count} processes')
    elements = grain.MapDataset.source(source)
    if shuffle:
        elements = elements.shuffle(seed=seed)
    if repeat:
        elements = elements.repeat()
    else:
        step = batch_size * process_count
        if len(source) < step:
            raise ValueError(
                f'a source of {len(source)} elements is shorter than one batch of {batch_size} in {process_count} '
                'process(es), and does not repeat'
            )
        elements = elements[: len(source) // step * step]
    batched = _batched(elements, batch_size, keys, drop_remainder=True)
    return _ahead(batched[start * process_count + process_index :: process_count], threads)


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
