"""Rows of token ids: where tokens stand, what is cut, and how rows go through a network."""

import sys

import numpy as np
import pytest

from walt.text.rows import ROWS, Rows, by_rows, tokenizer_file


def letters(text):
    """A token a letter, between marks 1 and 2."""
    return [1, *map(ord, text), 2]


def test_tokens_come_first_and_the_mask_says_how_many():
    ids_BS, mask_BS = Rows(letters, 6, end_mark=True)(['ab', ''])
    assert ids_BS.tolist() == [[1, 97, 98, 2, 0, 0], [1, 2, 0, 0, 0, 0]] and ids_BS.dtype == np.int32
    assert mask_BS.tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]


def test_the_end_mark_stays_where_a_prompt_is_cut():
    assert Rows(letters, 4, end_mark=True)(['abcdef'])[0].tolist() == [[1, 97, 98, 2]]
    assert Rows(letters, 4, end_mark=False)(['abcdef'])[0].tolist() == [[1, 97, 98, 99]]


@pytest.mark.parametrize('rows', [1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 3])
def test_a_network_sees_one_shape_and_every_row_once(rows):
    shapes = set()

    def network(ids, mask):
        shapes.add((ids.shape, mask.shape))
        return np.stack([ids, mask], axis=-1)

    ids_BS, mask_BS = np.arange(rows * 3).reshape(rows, 3), np.arange(rows * 3).reshape(rows, 3) % 2 == 0
    found = by_rows(network, ids_BS, mask_BS)
    np.testing.assert_array_equal(found, np.stack([ids_BS, mask_BS], axis=-1))
    assert shapes == {((ROWS, 3), (ROWS, 3))}


def test_without_tokenizers_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(ModuleNotFoundError, match=r"needs tokenizers: pip install -e '\.\[text\]'"):
        tokenizer_file('tokenizer.json')
