"""Random numbers that belong to an element: those of (seed, split, index), on every machine and in any order.

Philox is counter-based: a key and a counter give a block of bits, with no state to carry from one element to the next.
Here key = (seed, split) and counter = (·, index), so every element owns 2^64 blocks and no two share one. NumPy
promises that the raw bits of a bit generator never change, but not what `Generator.integers` makes of them; so the raw
bits are all that is used. What is drawn for many elements at once, such as their order in an epoch, is another stream
of the same key, with its name in the counter.
"""

from collections.abc import Callable

import numpy as np

SPLITS = ('train', 'validation')

# Streams besides that of an element, which is number 0.
_STREAMS = {'order': 1, 'packing': 2, 'kept': 3, 'fitting': 4}


def check_stream(seed: int, split: str) -> None:
    """Raises ValueError where `split` is none of SPLITS or `seed` is negative."""
    if split not in SPLITS:
        raise ValueError(f'split is one of {SPLITS}, not {split!r}')
    if seed < 0:
        raise ValueError(f'seed must be 0 or more, got {seed}')


def element_draws(seed: int, split: str, index: int) -> Callable[[int], int]:
    """Returns `draw(n)`: each call gives the element's next integer, uniform over 0 .. n - 1."""
    key = np.array([seed, SPLITS.index(split)], np.uint64)
    counter = np.array([0, index, 0, 0], np.uint64)
    bits = np.random.Philox(key=key, counter=counter)
    return lambda n: int(bits.random_raw()) * n >> 64


def stream_bits(seed: int, split: str, stream: str, number: int, count: int) -> np.ndarray:
    """`count` random 64-bit numbers, uint64: those of `number`, an epoch or an element, of the named stream."""
    key = np.array([seed, SPLITS.index(split)], np.uint64)
    counter = np.array([0, number, _STREAMS[stream], 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def stream_uniform(seed: int, split: str, stream: str, number: int, count: int) -> np.ndarray:
    """The same as numbers between 0 and 1, both excluded: float64, multiples of 2^-52 moved by half of that."""
    return ((stream_bits(seed, split, stream, number, count) >> np.uint64(12)) + 0.5) * 2.0**-52
