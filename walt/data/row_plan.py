"""Which clips share a row: greedy first fit over a stream of clips, planned ahead from their numbers of tokens alone.

    stream of clips    5 3 9 4 2 7 ..      each goes to the first open row that has room for it (NaViT, appendix A)

    open rows of 12    [5 3 4]  [9 2]  [7     ]       no room and too many open: the fullest is closed

A closed row is the next of the plan. So a plan is a function of the numbers of tokens and of nothing else, which every
process knows without having read a clip: the same rows on all of them, however many they are, and after every resume.
No clip is left out or comes twice, large or small.

A row is found by its number. Every so many rows the plan notes how far the stream was and what was open (`_Mark`), and
goes on from there; rows further on are planned when they are asked for, which takes about a second for a million clips.
"""

import collections
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 4096
"""Rows that are planned together."""

# Blocks in memory: enough for all that is read ahead of need.
_KEPT = 64


class _Mark(NamedTuple):
    """Where to go on: how many clips of the stream were placed, and the clips of every open row and the room in it."""

    placed: int
    rows: tuple[tuple[int, ...], ...]
    room: tuple[int, ...]


class RowPlan:
    """row number -> numbers of its clips in the stream, in the order in which they came.

    Safe to be asked by several threads.

    Args:
        tokens: epoch -> how many tokens every clip of it has, int (clips of an epoch,), 1 to `length`. The clips of
            epoch e come in the stream from `e` times that number on.
        clips: of an epoch.
        length: tokens of a row.
        most: clips of a row, at most.
        open_rows: that may be open at a time. More fill rows better and mix clips from further apart.
        epochs: None for a stream without an end. At its end all open rows are closed.
    """

    def __init__(
        self,
        tokens: Callable[[int], np.ndarray],
        clips: int,
        length: int,
        most: int,
        open_rows: int,
        epochs: int | None = None,
    ):
        if min(clips, length, most, open_rows) < 1:
            raise ValueError(
                f'clips, length, most and open_rows are 1 or more, not {clips}, {length}, {most}, {open_rows}'
            )
        self._tokens, self._clips, self._epochs = tokens, clips, epochs
        self._length, self._most, self._open_rows = length, most, open_rows
        self._marks = [_Mark(0, (), ())]
        self._blocks = collections.OrderedDict()
        self._lock = threading.Lock()

    def row(self, number: int) -> list[int]:
        """Raises IndexError where a plan with an end has fewer rows."""
        block, place = divmod(number, BLOCK)
        with self._lock:
            clips, ends = self._block(block)
        if not 0 <= place < len(ends) - 1:
            raise IndexError(f'row {number} of {block * BLOCK + len(ends) - 1} rows')
        return clips[ends[place] : ends[place + 1]].tolist()

    def __len__(self) -> int:
        """The rows of a plan with an end: all of it is planned. Raises TypeError where there is none."""
        if self._epochs is None:
            raise TypeError('a plan without an end has no length')
        block = 0
        while True:
            with self._lock:
                rows = len(self._block(block)[1]) - 1
            if rows < BLOCK:
                return block * BLOCK + rows
            block += 1

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips of all rows of a block, one after another, and where each row begins and the last one ends."""
        while len(self._marks) <= number:
            self._plan(len(self._marks) - 1)
        if number not in self._blocks:
            self._plan(number)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _plan(self, number: int) -> None:
        rows, after = self._fill(self._marks[number])
        if number + 1 == len(self._marks):
            self._marks.append(after)
        ends = np.cumsum([0, *map(len, rows)])
        self._blocks[number] = np.array([clip for row in rows for clip in row], np.int64), ends
        while len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)

    def _fill(self, mark: _Mark) -> tuple[list[list[int]], _Mark]:
        """The next rows, a block of them unless the stream ends, and the mark behind them."""
        rows, room, done = [list(row) for row in mark.rows], list(mark.room), []

        def close_fullest():
            place = room.index(min(room))
            done.append(rows.pop(place))
            room.pop(place)

        for number, tokens in self._stream(mark.placed):
            if len(done) == BLOCK:
                return done, _Mark(number, tuple(map(tuple, rows)), tuple(room))
            for place, free in enumerate(room):
                if tokens <= free:
                    rows[place].append(number)
                    room[place] = free - tokens if len(rows[place]) < self._most else 0
                    break
            else:
                if len(rows) == self._open_rows:
                    close_fullest()
                rows.append([number])
                room.append(self._length - tokens if self._most > 1 else 0)
        while rows and len(done) < BLOCK:
            close_fullest()
        return done, _Mark(self._epochs * self._clips, tuple(map(tuple, rows)), tuple(room))

    def _stream(self, start: int) -> Iterator[tuple[int, int]]:
        """The numbers of the clips from `start` on, and how many tokens each has."""
        epoch, first = divmod(start, self._clips)
        while self._epochs is None or epoch < self._epochs:
            yield from enumerate(self._tokens(epoch)[first:].tolist(), start=epoch * self._clips + first)
            epoch, first = epoch + 1, 0
