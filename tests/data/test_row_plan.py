"""Plans of rows: nothing is lost, rows are full, and a row is found wherever one starts to look."""

import itertools

import numpy as np
import pytest

from walt.data import row_plan
from walt.data.row_plan import RowPlan

LENGTH = 64


def mixed(epoch):
    return np.random.default_rng(epoch).integers(1, 40, 500)


def plan(tokens=mixed, clips=500, most=8, open_rows=8, epochs=None):
    return RowPlan(tokens, clips, LENGTH, most, open_rows, epochs)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_plan, 'BLOCK', 50)
    monkeypatch.setattr(row_plan, '_KEPT', 2)


def test_every_clip_of_a_pass_comes_once_large_or_small_and_no_row_has_too_much():
    rows = plan(epochs=3)
    placed = [rows.row(number) for number in range(len(rows))]
    assert sorted(itertools.chain(*placed)) == list(range(1500))
    tokens = np.concatenate([mixed(epoch) for epoch in range(3)])
    assert max(tokens[row].sum() for row in placed) <= LENGTH and max(map(len, placed)) <= 8
    with pytest.raises(IndexError, match=f'row {len(rows)} of {len(rows)} rows'):
        rows.row(len(rows))


def test_rows_of_mixed_sizes_are_filled_to_95_percent():
    placed = [plan(open_rows=16).row(number) for number in range(150)]
    tokens = np.concatenate([mixed(epoch) for epoch in range(20)])
    assert np.mean([tokens[row].sum() for row in placed]) >= 0.95 * LENGTH


def test_no_clip_waits_for_ever_large_or_small():
    """Among the clips that the first rows could have, those that are not in them yet are those of the open rows."""
    rows = [plan().row(number) for number in range(200)]
    there = set(itertools.chain(*rows))
    missing = set(range(max(there))) - there
    assert len(missing) <= 8 * 8


def test_a_row_is_the_same_in_whatever_order_rows_are_asked_for():
    """So is one that is asked for first, by a run that goes on, or after blocks were forgotten."""
    in_order = [plan().row(number) for number in range(260)]
    jumping = plan()
    for number in (259, 3, 120, 0, 51, 258, 4):
        assert jumping.row(number) == in_order[number]


def test_a_full_row_takes_no_more_clips():
    ones = plan(lambda epoch: np.ones(500, int), most=3, open_rows=2)
    assert [ones.row(number) for number in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    alone = plan(lambda epoch: np.full(500, 10), most=1, open_rows=4)
    assert sorted(itertools.chain(*(alone.row(number) for number in range(20)))) == list(range(20))


def test_a_plan_without_an_end_has_no_length():
    with pytest.raises(TypeError, match='no length'):
        len(plan())
    with pytest.raises(ValueError, match='1 or more, not 500, 64, 0, 8'):
        plan(most=0)
