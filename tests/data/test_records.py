"""Records: what is packed comes back, to the bit, or is refused."""

import numpy as np
import pytest

from walt.data.records import keys_of, pack, shards_of, unpack, write_shard

ELEMENT = {
    'z': np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    'half': np.array([1.5, -2.0], 'bfloat16'),
    'label': np.int32(7),
    'caption': 'schräg nach oben',
    'captions': np.array([['a', 'schräg'], ['', 'bc']]),
    'mask': np.array([True, False]),
}


def test_an_element_comes_back_from_its_record_with_dtypes_and_shapes():
    keys = keys_of(ELEMENT)
    again = unpack(pack(ELEMENT, keys), keys)
    assert list(again) == list(ELEMENT) and again['caption'] == ELEMENT['caption']
    for key in ('z', 'half', 'label', 'mask'):
        assert again[key].dtype == ELEMENT[key].dtype and again[key].shape == np.shape(ELEMENT[key])
        np.testing.assert_array_equal(again[key], ELEMENT[key])


@pytest.mark.parametrize('other', [{'label': np.int64(7)}, {'mask': np.array([True])}, {'more': np.int32(0)}], ids=str)
def test_an_element_of_other_keys_dtypes_or_shapes_is_refused(other):
    with pytest.raises(ValueError, match=r'an element has .* the data set'):
        pack(ELEMENT | other, keys_of(ELEMENT))


def test_a_record_of_another_length_is_refused_with_both():
    keys = keys_of({'z': ELEMENT['z']})
    with pytest.raises(ValueError, match=r'25 bytes, but .* take 24'):
        unpack(pack({'z': ELEMENT['z']}, keys) + b'x', keys)


def test_python_objects_are_no_elements():
    with pytest.raises(ValueError, match="'note' must be numbers or text, not object"):
        keys_of({'note': {'a': 1}})


@pytest.mark.parametrize(('clips', 'sizes'), [(1, [1]), (4, [4]), (9, [4, 4, 1])])
def test_shards_hold_all_clips_in_order(clips, sizes):
    shards = shards_of(clips, 4)
    assert [shard['clips'] for shard in shards] == sizes
    names = [shard['file'] for shard in shards]
    assert names == sorted(names) and len(set(names)) == len(sizes)


def test_a_shard_is_there_when_it_is_complete_and_not_before(tmp_path):
    path, seen = tmp_path / 'shard', []

    def records():
        for _ in range(3):
            seen.append(path.exists())
            yield b'x' * 100

    write_shard(path, records())
    assert seen == [False] * 3 and [file.name for file in tmp_path.iterdir()] == ['shard']


def test_extents_that_no_manifest_says_stand_in_the_record():
    keys = keys_of(ELEMENT)
    keys['z']['shape'] = [None, 2, None]
    for z in (ELEMENT['z'], np.ones((5, 2, 1), np.float32), np.ones((0, 2, 7), np.float32)):
        again = unpack(pack(ELEMENT | {'z': z}, keys), keys)
        np.testing.assert_array_equal(again['z'], z)
        assert again['label'] == 7 and again['captions'].tolist() == ELEMENT['captions'].tolist()
    for z in (np.ones((1, 3, 3), np.float32), np.ones((1, 2), np.float32), ELEMENT['z'].astype(np.float64)):
        with pytest.raises(ValueError, match=r'an element has .* the data set'):
            pack(ELEMENT | {'z': z}, keys)
