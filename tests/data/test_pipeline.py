"""Batches: every element once an epoch, shared among processes, resumed exactly."""

import itertools

import numpy as np
import pytest

from walt.data.moving_digits import MovingDigits
from walt.data.pipeline import batches, epoch


def numbers(length):
    return [{'n': n, 'twice': 2 * n} for n in np.arange(length)]


def drawn(dataset, count=None):
    """The numbers in `count` batches, one list."""
    return [int(n) for batch in itertools.islice(dataset, count) for n in batch['n']]


def test_batches_stack_the_keys_asked_for():
    batch = next(iter(batches(MovingDigits('train', frames=3), 4, keys=('video', 'label', 'caption'))))
    assert batch['video'].shape == (4, 3, 32, 32, 3) and batch['video'].dtype == np.uint8
    assert batch['label'].shape == (4,) and batch['label'].dtype == np.int32
    assert batch['caption'].shape == (4,) and batch['caption'][0].startswith('the digit ')
    assert set(next(iter(batches(numbers(4), 4, keys=('twice',))))) == {'twice'}


def test_each_epoch_has_every_element_once_in_a_new_order():
    first, second = np.split(np.array(drawn(batches(numbers(12), 4, keys=('n',)), 6)), 2)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first.tolist() != second.tolist() and first.tolist() != list(range(12))


def test_order_depends_on_the_seed_alone():
    def order(seed, threads):
        return drawn(batches(numbers(20), 4, keys=('n',), seed=seed, threads=threads), 5)

    assert order(0, 0) == order(0, 1) == order(0, 3) != order(1, 0)


def test_without_shuffle_the_order_is_the_source_order():
    assert drawn(batches(numbers(6), 2, keys=('n',), shuffle=False), 4) == [0, 1, 2, 3, 4, 5, 0, 1]


@pytest.mark.parametrize('parts', [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 2], [3]], [[1], [1]]], ids=str)
@pytest.mark.parametrize('threads', [0, 3])
def test_rows_of_a_step_are_the_same_whoever_reads_them_and_from_any_start(parts, threads):
    """Also rows that do not lie together, and rows that two read; across the ends of epochs, of 10 elements each."""
    shared = {'keys': ('n',), 'seed': 3, 'threads': threads}
    alone = np.reshape(drawn(batches(numbers(10), 4, **shared), 8), (8, 4))
    for start in (0, 5):
        for rows in parts:
            read = drawn(batches(numbers(10), 4, start=start, rows=rows, **shared), 3)
            np.testing.assert_array_equal(np.reshape(read, (3, -1)), alone[start : start + 3, rows])


def test_one_pass_gives_every_process_the_same_number_of_full_batches():
    shared = {'keys': ('n',), 'repeat': False}
    parts = [list(batches(numbers(23), 8, rows=rows, **shared)) for rows in (range(4), range(4, 8))]
    assert [[len(batch['n']) for batch in part] for part in parts] == [[4, 4], [4, 4]]
    assert len({int(n) for part in parts for batch in part for n in batch['n']}) == 16


def test_source_shorter_than_a_batch_is_named_unless_it_repeats():
    with pytest.raises(ValueError, match=r'3 elements .* 4'):
        batches(numbers(3), 4, keys=('n',), repeat=False)
    assert len(drawn(batches(numbers(3), 4, keys=('n',)), 2)) == 8


def test_epoch_leaves_nothing_out():
    assert [batch['n'].tolist() for batch in epoch(numbers(5), 2, keys=('n',))] == [[0, 1], [2, 3], [4]]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\('n', 'label'\) .* \('n', 'twice'\)"):
        batches(numbers(4), 2, keys=('n', 'label'))
    with pytest.raises(ValueError, match=r'rows \[1, 2\] must be some of those of a batch of 2'):
        batches(numbers(4), 2, keys=('n',), rows=[1, 2])
    with pytest.raises(ValueError, match='no elements'):
        epoch(numbers(0), 2, keys=('n',))
