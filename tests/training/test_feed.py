"""Texts in batches: each is encoded once, and stands where its caption stood."""

import numpy as np
import pytest
from tiny import Letters

from walt.parallel.mesh import abstract_mesh
from walt.training.feed import Texts, process_batches


class Counted:
    """An encoder that remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        return Letters().encode(prompts)


@pytest.fixture
def encode():
    return Counted()


def test_captions_become_texts_as_encoding_them_would_and_all_else_stays(encode):
    captions, label = np.array(['a dog', '', 'a dog', 'snow']), np.arange(4)
    batch = {'caption': captions, 'label': label}
    out = Texts(encode)(batch)
    text_BSE, mask_BS = Letters().encode(captions.tolist())
    assert set(out) == {'text', 'text_mask', 'label'} and out['label'] is label
    np.testing.assert_array_equal(out['text'], text_BSE)
    np.testing.assert_array_equal(out['text_mask'], mask_BS)
    assert out['text_mask'].dtype == bool and out['text'].dtype == np.float32
    assert set(batch) == {'caption', 'label'}


def test_captions_of_any_rank_keep_their_places(encode):
    captions = np.array([['a', 'b', 'c'], ['d', 'a', 'b']])[:, None]
    out = Texts(encode)({'images_caption': captions, 'caption': np.array(['b', 'e'])})
    assert out['images_text'].shape == (2, 1, 3, 3, 4) and out['images_text_mask'].shape == (2, 1, 3, 3)
    assert out['text'].shape == (2, 3, 4)
    for place, caption in np.ndenumerate(captions):
        text_1SE, mask_1S = Letters().encode([str(caption)])
        np.testing.assert_array_equal(out['images_text'][place], text_1SE[0])
        np.testing.assert_array_equal(out['images_text_mask'][place], mask_1S[0])
    np.testing.assert_array_equal(out['text'][0], out['images_text'][0, 0, 1])


def test_a_caption_is_encoded_once(encode):
    texts = Texts(encode)
    for captions in (['a', 'b', 'a'], ['b', 'c'], ['a', 'c']):
        texts({'caption': np.array(captions)})
    assert encode.asked == [['a', 'b'], ['c']]


def test_what_is_remembered_is_forgotten_when_it_is_full_and_stays_right(encode):
    texts = Texts(encode, kept=2)
    for captions in (['a', 'b'], ['b', 'c'], ['c', 'b'], ['a']):
        out = texts({'caption': np.array(captions)})
        np.testing.assert_array_equal(out['text'], Letters().encode(captions)[0])
    assert encode.asked == [['a', 'b'], ['b', 'c'], ['a']]


def test_a_batch_with_more_captions_than_are_kept_is_encoded_all_the_same(encode):
    captions = ['a', 'b', 'c', 'a']
    out = Texts(encode, kept=1)({'caption': np.array(captions)})
    np.testing.assert_array_equal(out['text'], Letters().encode(captions)[0])


def test_a_batch_that_devices_do_not_divide_is_refused_with_both_values():
    mesh = abstract_mesh(3, data=3)
    with pytest.raises(ValueError, match='batch_size 4 is not divisible by the 3 devices'):
        process_batches([{'video': 0}], mesh, 4)
