"""Packed rows: exact inverses, counts that add up, and what is refused."""

import numpy as np
import pytest

from walt.tokens import counts, from_clip, grid_of, pack, places, rows_of, statistics, to_clip, unpack

SHAPES = [(1, 4, 8, 3), (3, 6, 2, 3), (2, 2, 2, 3)]
PATCH = (1, 2, 2)


def clips(shapes=SHAPES, patch=PATCH):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(1, 256, shape).astype(np.uint8) for shape in shapes]
    return pixels, [from_clip(clip, patch) | {'label': np.int32(7 + i)} for i, clip in enumerate(pixels)]


@pytest.mark.parametrize('patch', [(1, 1, 1), (1, 2, 2), (2, 2, 1)])
def test_a_clip_becomes_tokens_and_the_same_clip_again(patch):
    clip_THWC = np.random.default_rng(0).normal(size=(4, 6, 2, 5))
    tokens = from_clip(clip_THWC, patch)
    assert len(tokens['tokens']) == np.prod(tokens['size']) == np.prod(grid_of(clip_THWC.shape, patch))
    np.testing.assert_array_equal(to_clip(tokens, patch), clip_THWC)


def test_a_token_holds_the_patch_at_its_place():
    clip_THWC = np.random.default_rng(0).normal(size=(4, 6, 4, 5))
    of_clip = from_clip(clip_THWC, (2, 3, 2))
    for token_C, (t, h, w) in zip(of_clip['tokens'], of_clip['place']):
        patch = clip_THWC[2 * t : 2 * t + 2, 3 * h : 3 * h + 3, 2 * w : 2 * w + 2]
        np.testing.assert_array_equal(token_C, patch.ravel())


def test_clips_of_any_size_share_a_row_and_come_back_unchanged():
    pixels, tokens = clips()
    row = pack(tokens, 32, 5)
    assert {name: value.shape for name, value in row.items()} == {
        'tokens': (32, 12),
        'segment': (32,),
        'place': (32, 3),
        'size': (5, 3),
        'label': (5,),
    }
    back = unpack(row)
    assert [int(clip['label']) for clip in back] == [7, 8, 9]
    for clip, real in zip(back, pixels, strict=True):
        assert clip['tokens'].dtype == np.uint8
        np.testing.assert_array_equal(to_clip(clip, PATCH), real)


def test_tokens_are_counted_by_clip_and_add_up_and_padding_is_zero():
    _, tokens = clips()
    row = pack(tokens, 32, 5)
    of_clip_E = counts(row['segment'][None], 5)[0]
    assert of_clip_E.tolist() == [8, 9, 2, 0, 0] == row['size'].prod(-1).tolist()
    filled_L = row['segment'] > 0
    assert filled_L.sum() == 19 and not any(row[name][~filled_L].any() for name in ('tokens', 'place'))
    assert not row['size'][3:].any() and not row['label'][3:].any()


def test_a_batch_comes_apart_into_its_rows():
    _, tokens = clips()
    rows = [pack(tokens, 32, 5), pack(tokens[::-1], 32, 5)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    assert [[int(clip['label']) for clip in unpack(row)] for row in rows_of(batch)] == [[7, 8, 9], [9, 8, 7]]


def test_of_a_clip_with_dropped_tokens_places_and_size_stay_and_no_clip_can_be_made():
    _, (tokens, *_) = clips()
    kept = np.array([0, 3, 7])
    dropped = tokens | {name: tokens[name][kept] for name in ('tokens', 'place')}
    (back,) = unpack(pack([dropped], 8, 2))
    np.testing.assert_array_equal(back['place'], places((1, 2, 4))[kept])
    assert back['size'].tolist() == [1, 2, 4]
    with pytest.raises(ValueError, match=r'\(1, 2, 4\) tokens is not whole.*3 tokens'):
        to_clip(back, PATCH)


def test_what_does_not_fit_is_refused_with_both_numbers():
    _, tokens = clips()
    with pytest.raises(ValueError, match=r'3 clips of 19 tokens for a row of 18 tokens'):
        pack(tokens, 18, 5)
    with pytest.raises(ValueError, match=r'3 clips of 19 tokens for a row of 32 tokens of 1 to 2 clips'):
        pack(tokens, 32, 2)
    with pytest.raises(ValueError, match=r'patches of \(1, 2, 2\) do not tile a clip of \(1, 3, 4\)'):
        grid_of((1, 3, 4, 3), (1, 2, 2))


def test_statistics_count_positions_clips_and_what_was_dropped():
    _, tokens = clips()
    dropped = tokens[0] | {name: tokens[0][name][::2] for name in ('tokens', 'place')}
    rows = [pack(tokens, 32, 5), pack([dropped], 32, 5)]
    told = statistics({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    assert told == {'filled': 23 / 64, 'clips_a_row': 2, 'tokens_a_row': 11.5, 'dropped': 1 - 23 / 27}
