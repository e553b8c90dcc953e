"""From prompts to rows of token ids of one length, and through a network some rows at a time.

    length 6        'a cat walks'                          'a cat walks over the lawn'
    ids             [CLS] a cat walks [SEP] 0              [CLS] a cat walks over [SEP]
    mask              1   1  1    1     1   0                1   1  1    1    1     1

A mark at the end of the text stays there where a prompt is cut.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

# Rows that a network takes at a time, always: the shape of a product decides in which order its sums are taken, and so
# the last bits of a prompt's embeddings would depend on how many others came with it.
ROWS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A function of prompts: (ids_BS int32, mask_BS bool).

    Fields:
        split: text -> ids of all its tokens, marks of beginning and end among them; at least one
        length: S, places in a row
        end_mark: whether the last token is a mark that must not be cut off

    Raises ValueError where there is no place for a token besides the marks at both ends.
    """

    split: Callable[[str], Sequence[int]]
    length: int
    end_mark: bool

    _cut: set[str] = dataclasses.field(default_factory=set, init=False, repr=False)

    def __post_init__(self):
        marks = len(self.split(''))
        if self.length <= marks:
            raise ValueError(f'length must be more than the {marks} mark(s) of an empty prompt, got {self.length}')

    def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Raises ValueError where there is no prompt, or where one is no text; warns of each that is cut, once."""
        if isinstance(prompts, str) or not len(prompts):
            raise ValueError(f'expected a sequence of prompts, got {prompts!r}')
        ids_BS = np.zeros((len(prompts), self.length), np.int32)
        mask_BS = np.zeros((len(prompts), self.length), bool)
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f'a prompt is text, got {prompt!r} at place {row}')
            ids = self._fitting(prompt)
            ids_BS[row, : len(ids)] = ids
            mask_BS[row, : len(ids)] = True
        return ids_BS, mask_BS

    def _fitting(self, prompt: str) -> list[int]:
        ids = list(self.split(prompt))
        if len(ids) <= self.length:
            return ids
        if prompt not in self._cut:
            self._cut.add(prompt)
            logging.warning('a prompt of %d tokens is cut to %d: %r', len(ids), self.length, prompt)
        end = ids[-1:] if self.end_mark else []
        return ids[: self.length - len(end)] + end


def by_rows(network: Callable, ids_BS: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
    """`network(ids, mask)`, (ROWS, S, D) from arrays (ROWS, S), over all rows: (B, S, D)."""
    parts = []
    for first in range(0, len(ids_BS), ROWS):
        ids, mask = ids_BS[first : first + ROWS], mask_BS[first : first + ROWS]
        # What is missing to ROWS repeats the last row.
        places = np.minimum(np.arange(ROWS), len(ids) - 1)
        parts.append(np.asarray(network(ids[places], mask[places]))[: len(ids)])
    return np.concatenate(parts)


def tokenizer_file(path: str | Path) -> Callable[[str], list[int]]:
    """text -> ids of its tokens, by a `tokenizer.json` of the library tokenizers.

    Raises:
        ModuleNotFoundError: if tokenizers is not installed, with the command that installs it.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        message = f"{path} needs tokenizers: pip install -e '.[text]' -c launch/constraints.txt"
        raise ModuleNotFoundError(message) from error
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()  # files may ask for both
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text).ids
