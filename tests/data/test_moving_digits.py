"""MovingDigits: real scans, exact captions, walls, and the same bytes everywhere."""

import hashlib

import numpy as np
import pytest

from walt.data.moving_digits import NAMES, MovingDigits


def centre_of_mass(video_THWC):
    """float64 (T, 2), rows (y, x)."""
    weight_THW = video_THWC[..., 0].astype(np.float64)
    grid_2HW = np.indices(weight_THW.shape[1:])
    return np.einsum('thw,chw->tc', weight_THW, grid_2HW) / weight_THW.sum((1, 2))[:, None]


def test_train_and_validation_use_disjoint_scans():
    train, validation = MovingDigits('train'), MovingDigits('validation')
    scans = {split: {scan.tobytes() for scan in data.scans_NHW} for split, data in zip('tv', (train, validation))}
    assert len(train.scans_NHW) + len(validation.scans_NHW) == 1797
    assert not scans['t'] & scans['v']


def test_every_class_gives_a_fifth_of_its_scans_to_validation():
    train, validation = (np.bincount(MovingDigits(split).labels_N) for split in ('train', 'validation'))
    np.testing.assert_allclose(validation / (train + validation), 0.2, atol=0.01)


@pytest.mark.parametrize(
    ('fields', 'digest'),
    [
        ({'split': 'train'}, '21931089ab33049e'),
        ({'split': 'validation', 'digits': 2, 'size': 40, 'frames': 9, 'seed': 7}, '19cb2d7283f429b7'),
        ({'split': 'train', 'crisp': True}, '51125363d1d0d55b'),
    ],
)
def test_same_index_same_clip_on_every_machine(fields, digest):
    data = MovingDigits(**fields)
    seen = hashlib.sha256()
    for index in (0, 1, 19_999):
        clip = data[index]
        seen.update(clip['video'].tobytes() + bytes([clip['label']]) + clip['caption'].encode())
    assert seen.hexdigest()[:16] == digest


def test_clips_differ_by_index_split_and_seed():
    videos = [MovingDigits('train')[0], MovingDigits('train')[1], MovingDigits('validation')[0]]
    videos.append(MovingDigits('train', seed=1)[0])
    assert len({clip['video'].tobytes() for clip in videos}) == 4


def test_crisp_ink_is_black_or_white_but_for_its_edges():
    """At the greatest enlargement edges are a small part of a scan; a smooth scan has every grey."""
    shares = {}
    for crisp in (False, True):
        scans_NHW = MovingDigits('train', size=64, digit_size=40, crisp=crisp).scans_NHW
        shares[crisp] = np.isin(scans_NHW, (0, 255)).mean()
    assert shares[False] < 0.5 and shares[True] > 0.85, shares


def test_crisp_scans_are_the_same_handwriting():
    smooth_NHW, crisp_NHW = (MovingDigits('train', crisp=crisp).scans_NHW.astype(float) for crisp in (False, True))
    alike = [np.corrcoef(smooth.ravel(), crisp.ravel())[0, 1] for smooth, crisp in zip(smooth_NHW, crisp_NHW)]
    assert min(alike) > 0.8, min(alike)


def test_element_is_a_grey_uint8_clip_with_an_int32_label():
    clip = MovingDigits('train', frames=5, size=24, digit_size=12)[3]
    assert clip['video'].dtype == np.uint8 and clip['video'].shape == (5, 24, 24, 3)
    assert (clip['video'] == clip['video'][..., :1]).all()
    assert clip['label'].dtype == np.int32 and clip['label'].shape == ()


def test_caption_names_digit_and_initial_direction():
    data = MovingDigits('train')
    seen = set()
    for index in range(60):
        clip = data[index]
        name, words = clip['caption'].removeprefix('the digit ').split(' moving ')
        seen.add(words)
        assert name == NAMES[clip['label']]
        step_T2 = np.diff(centre_of_mass(clip['video'])[:5], axis=0)
        down, right = np.sign(step_T2.round(1)).T
        assert (down == ('down' in words) - ('up' in words)).all(), clip['caption']
        assert (right == ('right' in words) - ('left' in words)).all(), clip['caption']
    assert len(seen) == 8


def test_nothing_bounces_within_the_lead():
    """At 1 pixel a frame in a room of 12, 10 steps are straight with a lead of 10, and often not without one."""
    straight = {}
    for lead in (0, 10):
        source = MovingDigits('train', lead=lead, speed=(1.0, 1.0))
        centres = [centre_of_mass(source[index]['video'])[:11] for index in range(40)]
        steps = [np.diff(centre_T2, axis=0) for centre_T2 in centres]
        straight[lead] = np.mean([np.abs(step_T2 - step_T2[0]).max() < 0.1 for step_T2 in steps])
    assert straight[10] == 1 and straight[0] < 0.6


def test_speed_is_constant_and_within_its_bounds_along_the_motion():
    data = MovingDigits('train', size=64, speed=(0.5, 1.5))
    speeds = []
    for index in range(60):
        step_T2 = np.diff(centre_of_mass(data[index]['video'])[:5], axis=0)
        np.testing.assert_allclose(step_T2, step_T2[:1].repeat(4, 0), atol=0.02)
        speeds.append(np.linalg.norm(step_T2[0]))
    assert 0.49 < min(speeds) < 0.65 and 1.35 < max(speeds) < 1.51


def test_digit_never_leaves_the_canvas():
    data = MovingDigits('train', frames=40, size=24, speed=(1, 3))
    for index in range(40):
        mass_T = data[index]['video'].sum((1, 2, 3))
        np.testing.assert_allclose(mass_T, mass_T[0], rtol=0.01)


def test_digit_turns_back_at_the_walls_and_nowhere_else():
    data = MovingDigits('train', frames=60, size=32, digit_size=20, speed=(1, 1))
    right = next(clip for clip in map(data.__getitem__, range(100)) if clip['caption'].endswith('moving right'))
    y_T, x_T = centre_of_mass(right['video']).T
    np.testing.assert_allclose(y_T, y_T[0], atol=0.02)
    assert 11 < np.ptp(x_T) < 12.05
    step_T = np.diff(x_T)
    turning = np.abs(step_T) < 0.95  # a step that holds a bounce is shorter
    np.testing.assert_allclose(np.abs(step_T[~turning]), 1, atol=0.02)
    assert set(np.diff(np.flatnonzero(turning))) == {12}


def test_another_digit_leaves_the_first_as_it_was():
    one, two = MovingDigits('train'), MovingDigits('train', digits=2)
    for index in range(10):
        assert (two[index]['video'] >= one[index]['video']).all()
        assert (two[index]['video'] > one[index]['video']).any()
        assert two[index]['label'] == one[index]['label']
        assert two[index]['caption'].startswith(one[index]['caption'] + ' and the digit')


def test_caption_joins_several_digits_as_prose():
    caption = MovingDigits('train', digits=3, clips=1)[0]['caption']
    assert (
        caption.count('the digit') == 3 and caption.count(', the digit') == 1 and caption.count(' and the digit') == 1
    )


def test_iteration_stops_at_the_length():
    assert len(list(MovingDigits('train', clips=3, frames=1))) == 3


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'split': 'test'}, r"\('train', 'validation'\), not 'test'"),
        ({'frames': 0}, 'frames .* 0'),
        ({'digits': 0}, 'digits .* 0'),
        ({'clips': 0}, 'clips .* 0'),
        ({'digit_size': 32}, '32 .* 32'),
        ({'speed': (2, 1)}, r'\(2, 1\)'),
        ({'speed': (0, 1)}, r'\(0, 1\)'),
        ({'speed': (1, 13)}, r'\(1, 13\) .* 12'),
        ({'seed': -1}, 'seed .* -1'),
        ({'lead': -1}, 'lead .* -1'),
    ],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MovingDigits(**{'split': 'train', **fields})
