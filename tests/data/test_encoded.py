"""Latents from disk as a data set: in order, through the pipeline, and only what is whole and was asked for."""

import itertools
import json
import os
import pickle

import numpy as np
import pytest

from walt.data.encoded import Encoded
from walt.data.pipeline import batches
from walt.data.records import keys_of, pack, shards_of, write_shard

CLIPS = 7


@pytest.fixture
def root(tmp_path):
    """Seven clips of which z is full of the clip's number, in shards of three."""
    elements = [
        {'z': np.full((2, 4, 4, 3), i, np.float16), 'label': np.int32(i % 2), 'caption': f'clip {i}'}
        for i in range(CLIPS)
    ]
    keys, shards = keys_of(elements[0]), shards_of(CLIPS, 3)
    folder = tmp_path / 'train'
    folder.mkdir()
    for i, shard in enumerate(shards):
        write_shard(folder / shard['file'], (pack(element, keys) for element in elements[3 * i : 3 * i + 3]))
    manifest = {'format': 1, 'split': 'train', 'clips': CLIPS, 'num_classes': 2, 'keys': keys, 'shards': shards}
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    return tmp_path


def test_element_i_is_clip_i_across_shards_with_float32_latents(root):
    source = Encoded(root, 'train')
    assert len(source) == CLIPS and source.num_classes == 2 and source.latent_shape == (2, 4, 4, 3)
    for i in (6, 0, 3, 2, 5):
        element = source[i]
        assert element['z'].dtype == np.float32 and (element['z'] == i).all() and element['z'].shape == (2, 4, 4, 3)
        assert element['label'] == i % 2 and element['caption'] == f'clip {i}'
    for index in (-1, CLIPS):
        with pytest.raises(IndexError, match=f'index {index} of 7'):
            source[index]


def test_it_runs_through_the_pipeline_and_into_other_processes(root):
    source = pickle.loads(pickle.dumps(Encoded(root, 'train')))
    keys = ('z', 'label', 'caption')
    drawn = list(itertools.islice(batches(source, 2, keys=keys, shuffle=False), 3))
    assert np.concatenate([batch['z'][:, 0, 0, 0, 0] for batch in drawn]).tolist() == list(range(6))
    assert drawn[2]['caption'].tolist() == ['clip 4', 'clip 5']


def test_a_missing_folder_or_split_is_named(root):
    with pytest.raises(FileNotFoundError, match=r'no encoded data set in .*/validation'):
        Encoded(root, 'validation')
    with pytest.raises(ValueError, match='root is empty'):
        Encoded('', 'train')


def test_a_folder_of_another_split_or_format_is_refused_with_both(root):
    os.rename(root / 'train', root / 'validation')
    with pytest.raises(ValueError, match="is of split 'train', asked for is 'validation'"):
        Encoded(root, 'validation')
    manifest = json.loads((root / 'validation' / 'manifest.json').read_text())
    (root / 'validation' / 'manifest.json').write_text(json.dumps(manifest | {'format': 2}))
    with pytest.raises(ValueError, match='is of format 2, asked for is 1'):
        Encoded(root, 'validation')


def test_an_unfinished_data_set_is_refused_with_what_is_missing(root):
    (root / 'train' / '00001-of-00003.arrayrecord').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 3 shards are missing in .*: 00001-of-00003'):
        Encoded(root, 'train')


def test_a_shard_of_another_length_is_refused_with_both(root):
    folder = root / 'train'
    os.replace(folder / '00002-of-00003.arrayrecord', folder / '00001-of-00003.arrayrecord')
    write_shard(folder / '00002-of-00003.arrayrecord', [b'x'])
    with pytest.raises(ValueError, match=r'00001-of-00003.arrayrecord has 1 elements, manifest.json says 3'):
        Encoded(root, 'train')


def test_without_texts_there_is_no_null_text(root):
    with pytest.raises(FileNotFoundError, match=r'null_text.npz'):
        Encoded(root, 'train').null_text()
