"""Latents of clips of many sizes: encoded size by size, kept in order, and packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt import tokens
from walt.data.encoded import Encoded
from walt.data.fitted import Fitted
from walt.data.mixed_digits import MixedDigits
from walt.data.packing import Packed
from walt.data.resolution import Uniform
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.training.latents import write_latents

SOURCE = Fitted(MixedDigits('train', pictures=7), (4, 4), 24, Uniform(8, 14))
ORIGIN = {'data': {'name': 'fitted'}, 'tokenizer': {'checkpoint': 'here/checkpoints/4', 'step': 4}}


@pytest.fixture(scope='module')
def frozen(tiny_tokenizer):
    norm = LatentNorm(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.0, 2.0]))
    return FrozenTokenizer(tiny_tokenizer.module, tiny_tokenizer.params, norm)


@pytest.fixture(scope='module')
def root(frozen, tmp_path_factory):
    root = tmp_path_factory.mktemp('mixed')
    options = {'origin': ORIGIN, 'mesh': make_mesh(), 'batch_size': 2, 'shard_size': 4}
    write_latents(root, 'train', frozen, SOURCE, **options)
    return root


def test_every_clip_has_its_own_latents_and_the_size_of_its_own(root, frozen):
    latents = Encoded(root, 'train')
    assert len(np.unique(SOURCE.sizes_N3, axis=0)) > 2
    assert latents.latent_shape == (None, None, None, 3) and len(latents) == 7 and latents.num_classes == 10
    np.testing.assert_array_equal(latents.sizes_N3[:, 1:], SOURCE.sizes_N3[:, 1:] // 2)
    for i in range(7):
        assert latents[i]['z'].shape == (*latents.sizes_N3[i], 3) and latents[i]['label'] == SOURCE[i]['label']
    for i in (0, 6):
        np.testing.assert_allclose(latents[i]['z'], jax.jit(frozen.encode)(SOURCE[i]['video'][None])[0], atol=1e-5)


def test_they_are_packed_as_they_are(root):
    latents = Encoded(root, 'train')
    rows = Packed(latents, (1, 2, 2), 48, 6, shuffle=False, repeat=False)
    clips = [clip for number in range(len(rows)) for clip in tokens.unpack(rows[number])]
    assert sorted(int(clip['index']) for clip in clips) == list(range(7))
    for clip in clips:
        np.testing.assert_array_equal(tokens.to_clip(clip, (1, 2, 2)), latents[int(clip['index'])]['z'])


def test_the_same_command_goes_on_and_ends_with_the_same_bytes(root, frozen, tmp_path):
    options = {'origin': ORIGIN, 'mesh': make_mesh(), 'batch_size': 2, 'shard_size': 4}
    for worker in (1, 0):
        write_latents(tmp_path, 'train', frozen, SOURCE, worker=worker, workers=2, **options)
    one, other = ({path.name: path.read_bytes() for path in (r / 'train').iterdir()} for r in (root, tmp_path))
    assert one == other and 'sizes.npy' in one


class Turns:
    """Two sizes that take turns."""

    num_classes = 10
    sizes_N3 = np.array([(1, 8, 8), (1, 4, 12)] * 3)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {'video': rng.integers(0, 256, (*self.sizes_N3[index], 3)).astype(np.uint8), 'label': np.int32(index)}


def test_clips_stay_in_order_where_those_of_one_size_are_encoded_together(frozen, tmp_path):
    options = {'origin': ORIGIN, 'mesh': make_mesh(), 'batch_size': 2, 'shard_size': 6}
    write_latents(tmp_path, 'train', frozen, Turns(), **options)
    latents = Encoded(tmp_path, 'train')
    assert [int(latents[i]['label']) for i in range(6)] == list(range(6))
    encode = jax.jit(frozen.encode)
    for i in range(6):
        np.testing.assert_allclose(latents[i]['z'], encode(Turns()[i]['video'][None])[0], atol=1e-5)
