"""Clips beside stacks of pictures: whose elements they are, in which order, and what does not fit."""

import numpy as np
import pytest

from walt.data.joint import Joint
from walt.data.moving_digits import MovingDigits

CLIPS = MovingDigits('train', frames=5, size=16, digit_size=10, clips=4)
PICTURES = MovingDigits('train', frames=1, size=16, digit_size=10, clips=7, seed=1)


class Without:
    """A source whose elements lack some fields."""

    def __init__(self, source, *names):
        self.source, self.names, self.num_classes = source, names, source.num_classes

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return {name: value for name, value in self.source[index].items() if name not in self.names}


def test_an_element_is_its_clip_and_stacks_of_the_next_pictures():
    """Element 0 has pictures 0 to 3, element 1 has 4, 5, 6 and again 0: the seven begin anew."""
    joint = Joint(CLIPS, PICTURES, frames=2, stacks=2)
    assert len(joint) == 4 and joint.num_classes == 10
    for index, places in {0: [0, 1, 2, 3], 1: [4, 5, 6, 0]}.items():
        element, clip, chosen = joint[index], CLIPS[index], [PICTURES[place] for place in places]
        np.testing.assert_array_equal(element['video'], clip['video'])
        assert (element['label'], element['caption']) == (clip['label'], clip['caption'])
        assert element['images'].shape == (2, 2, 16, 16, 3) and element['images'].dtype == np.uint8
        np.testing.assert_array_equal(
            element['images'].reshape(4, 16, 16, 3), np.stack([picture['video'][0] for picture in chosen])
        )
        assert element['images_label'].tolist() == np.reshape([picture['label'] for picture in chosen], (2, 2)).tolist()
        assert element['images_label'].dtype == np.int32
        assert element['images_caption'].ravel().tolist() == [picture['caption'] for picture in chosen]


def test_fields_that_pictures_do_not_have_are_left_out():
    element = Joint(CLIPS, Without(PICTURES, 'label', 'caption'))[0]
    assert set(element) == {'video', 'label', 'caption', 'images'}


def test_an_index_outside_is_an_index_error():
    for index in (4, -1):
        with pytest.raises(IndexError):
            Joint(CLIPS, PICTURES)[index]


@pytest.mark.parametrize('changes', [{'frames': 0}, {'stacks': 0}], ids=str)
def test_less_than_one_picture_or_stack_is_refused(changes):
    shown = '0 and 1' if 'frames' in changes else '5 and 0'
    with pytest.raises(ValueError, match=f'frames and stacks are 1 or more, not {shown}'):
        Joint(CLIPS, PICTURES, **changes)


def test_pictures_that_are_clips_or_of_another_size_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r'pictures of \(5, 16, 16, 3\) beside clips of \(5, 16, 16, 3\)'):
        Joint(CLIPS, CLIPS)
    large = MovingDigits('train', frames=1, size=20, digit_size=10)
    with pytest.raises(ValueError, match=r'pictures of \(1, 20, 20, 3\) beside clips of \(5, 16, 16, 3\)'):
        Joint(CLIPS, large)


def test_other_classes_are_refused_with_both_numbers_where_classes_are_asked_for():
    other = Without(PICTURES)
    other.num_classes = 3
    joint = Joint(CLIPS, other)
    with pytest.raises(ValueError, match='clips have 10 classes, pictures 3'):
        _ = joint.num_classes
