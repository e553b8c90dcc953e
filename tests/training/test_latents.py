"""Encoding a data set once, and each process's share of batches."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from walt.data.arrays import Arrays
from walt.data.moving_digits import MovingDigits
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.training.feed import process_batches
from walt.training.latents import encoded

SOURCE = MovingDigits('train', frames=5, size=16, digit_size=10, clips=6)


@pytest.fixture(scope='module')
def frozen(small_tokenizer):
    return FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, LatentNorm.identity(3))


def test_row_i_is_the_latent_and_the_label_of_clip_i(frozen, tmp_path):
    rows = encoded(frozen, SOURCE, 4, tmp_path / 'latents')
    assert len(rows) == 6
    z = jax.jit(FrozenTokenizer.encode)(frozen, np.stack([clip['video'] for clip in SOURCE]))
    for i in range(6):
        np.testing.assert_allclose(rows[i]['z'], z[i], atol=1e-5)
        assert rows[i]['label'] == SOURCE[i]['label']


def test_what_is_encoded_is_not_encoded_again(frozen, tmp_path):
    first = encoded(frozen, SOURCE, 2, tmp_path / 'latents', clips=2)
    broken = dataclasses.replace(frozen, params=None)
    again = encoded(broken, SOURCE, 2, tmp_path / 'latents', clips=2)
    np.testing.assert_array_equal(again[1]['z'], first[1]['z'])


@pytest.mark.parametrize(('asked', 'rows'), [(2, 2), (4, 4), (100, 6)])
def test_the_first_clips_are_encoded_as_many_as_asked_for(frozen, tmp_path, asked, rows):
    assert len(encoded(frozen, SOURCE, 2, tmp_path / 'latents', clips=asked)) == rows


def test_processes_share_a_batch_in_equal_parts(monkeypatch):
    numbers = Arrays({'n': np.arange(12)})

    def first_batches(index):
        monkeypatch.setattr(jax, 'process_count', lambda: 2)
        monkeypatch.setattr(jax, 'process_index', lambda: index)
        dataset = process_batches(numbers, 6, keys=('n',), seed=0)
        return [batch['n'].tolist() for batch in itertools.islice(dataset, 2)]

    parts = [first_batches(index) for index in range(2)]
    assert [len(batch) for part in parts for batch in part] == [3] * 4
    assert sorted(n for part in parts for batch in part for n in batch) == list(range(12))
    with pytest.raises(ValueError, match=r'batch_size 7 .* 2 processes'):
        process_batches(numbers, 7, keys=('n',), seed=0)
