"""Packed rows of pictures and clips of any size."""

import dataclasses
import itertools

import numpy as np
import pytest

from walt import tokens
from walt.data.dropping import Beta, Constant
from walt.data.encoded import Encoded
from walt.data.mixed_digits import MixedDigits
from walt.data.moving_digits import MovingDigits
from walt.data.packing import Packed, resized
from walt.data.pictures_and_clips import PicturesAndClips
from walt.data.pipeline import batches
from walt.data.resolution import Fixed, Native, TruncatedNormal

PATCH = (1, 4, 4)
KEYS = ('tokens', 'segment', 'place', 'size', 'label')


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Pictures and clips whose pixels all say which one they are, of sizes in whole patches."""

    num_classes: int = 40

    @property
    def sizes_N3(self):
        rng = np.random.default_rng(0)
        return np.stack([rng.integers(1, 4, 40), *4 * rng.integers(1, 6, (2, 40))], axis=1)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {'video': np.full((*self.sizes_N3[index], 3), index, np.uint8), 'label': np.int32(index)}


def packed(source=None, **fields):
    fields = {'patch': PATCH, 'length': 96, 'most': 8} | fields
    return Packed(source or Boxes(), **fields)


def digits(pictures=400):
    return MixedDigits('train', pictures=pictures)


def clips_of(rows, count):
    return [clip for number in range(count) for clip in tokens.unpack(rows[number])]


def same(row, other):
    return row.keys() == other.keys() and all(np.array_equal(row[name], other[name]) for name in row)


def test_every_clip_comes_once_in_a_pass_whole_and_with_its_label():
    rows = packed(repeat=False)
    clips = clips_of(rows, len(rows))
    assert sorted(int(clip['label']) for clip in clips) == list(range(40))
    for clip in clips:
        source = Boxes()[int(clip['label'])]['video']
        np.testing.assert_array_equal(tokens.to_clip(clip, PATCH), source)


def test_epochs_have_orders_of_their_own_and_the_same_one_for_the_same_seed():
    def labels(rows):
        clips = clips_of(rows, 30)
        return [int(clip['label']) for clip in clips]

    drawn = labels(packed())
    assert drawn == labels(packed()) != labels(packed(seed=1))
    orders = [packed()._epoch(epoch).order_N.tolist() for epoch in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert labels(packed(shuffle=False)) != drawn


def test_pictures_and_clips_of_other_lengths_and_shapes_share_rows():
    clips = MovingDigits('train', frames=4, size=16, digit_size=10, clips=200)
    both = PicturesAndClips(digits(200), clips)
    rows = packed(both, length=128, resolution=TruncatedNormal(12, 32))
    sizes = [tuple(clip['size']) for number in range(10) for clip in tokens.unpack(rows[number])]
    assert {t for t, _, _ in sizes} == {1, 4} and len(set(sizes)) > 8
    mixed = [{clip['size'][0] for clip in tokens.unpack(rows[number])} for number in range(10)]
    assert {1, 4} in mixed


def test_of_real_digits_at_mixed_aspect_ratios_95_percent_of_positions_are_filled():
    rows = packed(digits(2000), length=256, most=16, resolution=TruncatedNormal(16, 48))
    filled = [tokens.statistics({name: value[None] for name, value in rows[number].items()}) for number in range(150)]
    assert np.mean([row['filled'] for row in filled]) >= 0.95


def test_dropping_keeps_a_share_in_order_and_says_the_whole_size():
    rows = packed(Boxes(), dropping=Constant(0.5), repeat=False)
    for clip in clips_of(rows, len(rows)):
        whole = int(clip['size'].prod())
        assert len(clip['place']) == max(1, whole - round(whole / 2))
        order = np.ravel_multi_index(tuple(clip['place'].T), tuple(clip['size']))
        assert (np.diff(order) > 0).all()
        assert (clip['tokens'] == clip['label']).all()


def test_what_is_dropped_of_a_clip_is_another_draw_for_each():
    rows = packed(MovingDigits('train', frames=1, size=32, clips=8), dropping=Constant(0.5), length=128)
    places = [clip['place'].tobytes() for number in range(8) for clip in tokens.unpack(rows[number])]
    assert len(set(places)) == len(places)


def test_no_token_is_dropped_for_validation():
    rows = packed(Boxes(), dropping=Constant(0.5), split='validation')
    assert all(len(clip['place']) == clip['size'].prod() for clip in clips_of(rows, 5))


def test_large_clips_are_not_left_out_more_than_small_ones():
    """Of the stream's first thousand clips, those in the first rows are of the sizes that the stream has."""
    rows = packed(digits(), length=64, resolution=TruncatedNormal(12, 32), dropping=Beta(0.3, 0.8))
    numbers = [number for row in range(300) for number in rows.plan.row(row)]
    epochs = [rows.kept_tokens(epoch) for epoch in range(max(numbers) // 400 + 1)]
    all_tokens = np.concatenate(epochs)[: max(numbers) + 1]
    missing = np.delete(all_tokens, numbers)
    assert len(missing) < 16 * 8 and np.concatenate(epochs)[numbers].max() == all_tokens.max()


def test_rows_of_a_batch_are_the_same_on_any_number_of_processes_and_after_a_resume():
    rows = packed(dropping=Beta(0.3, 0.8))

    def read(start=0, mine=None, count=4):
        stream = batches(rows, 4, keys=KEYS, shuffle=False, repeat=False, start=start, rows=mine, threads=2)
        return list(itertools.islice(iter(stream), count))

    whole = read()
    halves = [read(mine=mine) for mine in ((0, 1), (2, 3))]
    for batch, first, second in zip(whole, *halves):
        assert same(batch, {name: np.concatenate([first[name], second[name]]) for name in batch})
    rows = packed(dropping=Beta(0.3, 0.8))  # Another process, later: nothing is known from before.
    assert all(same(*pair) for pair in zip(whole[2:], read(start=2, count=2), strict=True))


def test_the_largest_grid_is_what_no_clip_exceeds():
    rows = packed(digits(), length=256, resolution=TruncatedNormal(16, 48))
    found = np.max([clip['size'] for clip in clips_of(rows, 100)], axis=0)
    assert (found <= rows.largest).all() and (np.array(rows.largest) <= found * 1.25).all()


@dataclasses.dataclass(frozen=True)
class Latents(Boxes):
    def __getitem__(self, index):
        return {'z': np.full((*self.sizes_N3[index], 2), index, np.float32), 'label': np.int32(index)}


def test_latents_are_packed_as_they_are_and_never_resized():
    rows = packed(Latents(), repeat=False)
    (clip, *_) = tokens.unpack(rows[0])
    assert clip['tokens'].dtype == np.float32 and (clip['tokens'] == clip['label']).all()
    with pytest.raises(ValueError, match=r'latents of .* cannot be resized'):
        packed(Latents(), resolution=Fixed(17.0))[0]


def test_encoded_latents_say_their_sizes(monkeypatch):
    monkeypatch.setattr(Encoded, '__post_init__', lambda self: None)
    source = Encoded('root', 'train')
    object.__setattr__(source, 'manifest', {'clips': 3, 'keys': {'z': {'shape': [5, 4, 8, 2]}}})
    assert source.sizes_N3.tolist() == [[5, 4, 8]] * 3


def test_a_picture_made_smaller_has_the_mean_of_what_it_shows():
    frame = np.zeros((8, 16, 3), np.uint8)
    frame[::2] = 200
    assert abs(int(resized(frame, 2, 4).mean()) - 100) <= 8 and resized(frame, 2, 4).shape == (2, 4, 3)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match='list cannot be packed'):
        packed([{'video': 0}])
    with pytest.raises(ValueError, match=r"keys .*'caption'.* among"):
        packed(keys=('caption',))
    with pytest.raises(ValueError, match=r'three extents of 1 or more, not \(4, 4\)'):
        packed(patch=(4, 4))
    with pytest.raises(IndexError):
        packed(resolution=Native())[-1]
