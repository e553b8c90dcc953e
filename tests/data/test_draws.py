"""The random numbers of an element: its own, uniform, and the same on every machine."""

import numpy as np

from walt.data.draws import element_draws, stream_bits, stream_uniform


def drawn(*stream, count=40, below=2**64):
    draw = element_draws(*stream)
    return [draw(below) for _ in range(count)]


def test_same_stream_same_numbers_on_every_machine():
    assert drawn(0, 'train', 5, count=6, below=1000) == [411, 446, 781, 576, 891, 635]


def test_no_two_elements_share_a_number():
    streams = [(seed, split, index) for seed in (0, 1) for split in ('train', 'validation') for index in range(20)]
    numbers = [number for stream in streams for number in drawn(*stream)]
    assert len(set(numbers)) == len(numbers)


def test_numbers_are_uniform():
    counts = np.bincount(drawn(0, 'train', 0, count=6000, below=6), minlength=6)
    assert len(counts) == 6 and (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()


def test_streams_of_many_elements_are_the_same_on_every_machine_and_share_no_number():
    assert stream_bits(0, 'train', 'order', 3, 2).tolist() == [7404914826603000424, 5187036670288200622]
    streams = [
        (seed, split, name, number)
        for seed in (0, 1)
        for split in ('train', 'validation')
        for name in ('order', 'packing', 'kept')
        for number in range(4)
    ]
    numbers = [number for stream in streams for number in stream_bits(*stream, 40).tolist()]
    numbers += [number for index in range(4) for number in drawn(0, 'train', index)]
    assert len(set(numbers)) == len(numbers)


def test_uniform_numbers_are_never_0_or_1():
    uniform = stream_uniform(0, 'train', 'order', 0, 20_000)
    assert 0 < uniform.min() < 1e-3 and 1 > uniform.max() > 1 - 1e-3 and abs(uniform.mean() - 0.5) < 0.01
