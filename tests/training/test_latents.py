"""Encoding a data set once, and each process's share of batches."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt.data.moving_digits import MovingDigits
from walt.data.pipeline import batches
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.training.conditions import Conditioning
from walt.training.denoiser_step import make_denoiser_step
from walt.training.latents import Encoded, check_latents, describe, encoded, latent_shape, write_latents
from walt.training.state import State

SOURCE = MovingDigits('train', frames=5, size=16, digit_size=10, clips=7)
ORIGIN = {'data': {'name': 'moving_digits', 'clips': 7}, 'tokenizer': {'checkpoint': 'here/checkpoints/4', 'step': 4}}


@pytest.fixture(scope='module')
def frozen(small_tokenizer):
    norm = LatentNorm(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.0, 2.0]))
    return FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, norm)


@pytest.fixture
def write(frozen, tmp_path):
    """write(name='a', **changes) -> the folder of the latents, in shards of three from batches of two."""

    def write(name='a', frozen=frozen, source=SOURCE, **changes):
        options = {'origin': ORIGIN, 'mesh': make_mesh(), 'batch_size': 2, 'shard_size': 3} | changes
        write_latents(tmp_path / name, 'train', frozen, source, **options)
        return tmp_path / name

    return write


def files(root):
    return {path.name: path.read_bytes() for path in (root / 'train').iterdir()}


SHARDS = [f'0000{i}-of-00003.arrayrecord' for i in range(3)]


def test_row_i_is_the_latent_the_label_and_the_caption_of_clip_i(write, frozen):
    rows = Encoded(write(), 'train')
    assert len(rows) == 7 and rows.num_classes == 10 and rows.latent_shape == (2, 4, 4, 3)
    z = jax.jit(FrozenTokenizer.encode)(frozen, np.stack([clip['video'] for clip in SOURCE]))
    for i in range(7):
        assert set(rows[i]) == {'z', 'label', 'caption'}
        np.testing.assert_allclose(rows[i]['z'], z[i], atol=1e-5)
        assert rows[i]['label'] == SOURCE[i]['label'] and rows[i]['caption'] == SOURCE[i]['caption']


def test_the_manifest_says_what_the_latents_are_of(write, frozen):
    manifest = json.loads(files(write())['manifest.json'])
    assert manifest['tokenizer'] == ORIGIN['tokenizer'] | describe(frozen)
    assert manifest['tokenizer']['mean'] == [1, 2, 3] and manifest['tokenizer']['std'] == [0.5, 1, 2]
    assert manifest['keys']['z'] == {'dtype': 'float32', 'shape': [2, 4, 4, 3]}
    others = {'label': {'dtype': 'int32', 'shape': []}, 'caption': {'dtype': 'str', 'shape': []}}
    assert manifest['keys'].items() >= others.items()
    assert manifest['shards'] == [{'file': name, 'clips': clips} for name, clips in zip(SHARDS, (3, 3, 1))]
    assert (manifest['clips'], manifest['fps'], manifest['num_classes']) == (7, None, 10)
    assert manifest['data'] == ORIGIN['data'] and manifest['walt']


@pytest.mark.parametrize(('dtype', 'atol'), [('float16', 2e-3), ('bfloat16', 2e-2)])
def test_latents_can_be_kept_in_half_precision(write, dtype, atol):
    whole, half = Encoded(write(), 'train'), Encoded(write('half', dtype=dtype), 'train')
    assert half.manifest['keys']['z']['dtype'] == dtype and half[3]['z'].dtype == np.float32
    np.testing.assert_allclose(half[3]['z'], whole[3]['z'], atol=atol)
    assert np.abs(half[3]['z'] - whole[3]['z']).max() > 0


class Stop(Exception):
    """Stands for the end of a process in the middle of its work."""


class Watched:
    """The source, which says what was read of it and cannot be read from element `end` on."""

    num_classes = 10

    def __init__(self, end=7):
        self.end, self.read = end, set()

    def __len__(self):
        return len(SOURCE)

    def __getitem__(self, index):
        if index >= self.end:
            raise Stop
        self.read.add(index)
        return SOURCE[index]


@pytest.mark.parametrize(('end', 'complete'), [(1, 0), (4, 1), (6, 2)])
def test_interrupted_anywhere_it_goes_on_and_ends_with_the_bytes_of_an_unbroken_run(write, tmp_path, end, complete):
    whole = files(write('whole'))
    with pytest.raises(Stop):
        write('broken', source=Watched(end))
    there = {path.name for path in (tmp_path / 'broken').rglob('*.arrayrecord')}
    assert there == set(SHARDS[:complete])
    source = Watched()
    assert files(write('broken', source=source)) == whole
    assert source.read == set(range(3 * complete, 7))


def test_what_a_killed_process_left_of_a_shard_is_written_over(write):
    whole = files(write('whole'))
    folder = write('broken') / 'train'
    (folder / SHARDS[1]).rename(folder / f'.{SHARDS[1]}.unfinished')
    (folder / f'.{SHARDS[1]}.unfinished').write_bytes(b'half')
    assert files(write('broken')) == whole


def test_workers_share_the_shards_and_write_what_one_would(write):
    whole = files(write('whole'))
    parts = [Watched(), Watched()]
    for worker in (1, 0):
        write('shared', source=parts[worker], worker=worker, workers=2)
    assert files(write('shared', source=Watched(0))) == whole
    assert parts[0].read == {0, 1, 2, 6} and parts[1].read == {3, 4, 5}
    with pytest.raises(ValueError, match='worker 2 must be one of 2 workers'):
        write('shared', worker=2, workers=2)


def test_what_is_encoded_is_not_encoded_again(write, frozen):
    root = write()
    source = Watched(0)
    rows = encoded(root, 'train', frozen, source, origin=ORIGIN, mesh=make_mesh(), batch_size=2, shard_size=3)
    assert len(rows) == 7 and not source.read


@pytest.mark.parametrize(('asked', 'rows'), [(2, 2), (4, 4), (100, 7)])
def test_the_first_clips_are_encoded_as_many_as_asked_for(write, asked, rows):
    assert len(Encoded(write(clips=asked), 'train')) == rows


def other(frozen):
    return frozen.replace(params=jax.tree.map(lambda leaf: leaf + 1e-6, frozen.params))


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'origin': ORIGIN | {'data': {'name': 'moving_digits', 'clips': 9}}}, 'data.clips: 7 there, 9 now'),
        ({'clips': 5}, 'clips: 7 there, 5 now'),
        ({'shard_size': 4}, 'shard_size: 3 there, 4 now'),
    ],
    ids=str,
)
def test_a_folder_of_something_else_is_refused_with_both_values_and_left_as_it_was(write, changes, line):
    before = files(write())
    with pytest.raises(ValueError, match=f'was begun with something else:\\n.*{line}'):
        write(**changes)
    assert files(write()) == before


def test_a_folder_of_another_precision_is_refused_before_a_shard_is_added(write):
    (write() / 'train' / SHARDS[2]).unlink()
    with pytest.raises(ValueError, match=r"keys.z.dtype: 'float32' there, 'float16' now"):
        write(dtype='float16')


def test_a_folder_of_another_tokenizer_is_refused_with_both_checksums(write, frozen):
    write()
    there, now = (describe(one)['checksum'] for one in (frozen, other(frozen)))
    with pytest.raises(ValueError, match=f"tokenizer.checksum: '{there}' there, '{now}' now"):
        write(frozen=other(frozen))


def test_the_same_tokenizer_in_another_place_goes_on(write):
    (write() / 'train' / SHARDS[2]).unlink()
    moved = ORIGIN | {'tokenizer': {'checkpoint': 'elsewhere/checkpoints/4', 'step': 4}}
    assert len(Encoded(write(origin=moved), 'train')) == 7


def test_latents_of_another_tokenizer_than_the_runs_are_refused_with_both(write, frozen):
    latents = Encoded(write(), 'train')
    check_latents(latents, frozen)
    assert latent_shape(frozen, latents) == latent_shape(frozen, SOURCE) == (2, 4, 4, 3)
    there, now = (describe(one)['checksum'] for one in (frozen, other(frozen)))
    assert there != now
    message = f'the tokenizer {there} .here/checkpoints/4., the tokenizer of this run is {now}'
    for check in (lambda: check_latents(latents, other(frozen)), lambda: latent_shape(other(frozen), latents)):
        with pytest.raises(ValueError, match=message):
            check()


def test_the_checksum_sees_the_norm_and_where_each_number_is(frozen):
    shifted = frozen.replace(norm=LatentNorm(frozen.norm.mean_C + 1, frozen.norm.std_C))
    turned = frozen.replace(params=jax.tree.map(lambda leaf: leaf[..., ::-1], frozen.params))
    assert len({describe(one)['checksum'] for one in (frozen, shifted, turned)}) == 3


def letters(texts):
    """A text encoder: token s of a text is its letter's number, all over the width; four tokens at the most."""
    codes_BS = np.array([[ord(letter) for letter in text[:4].ljust(4, '\0')] for text in texts])
    return np.repeat(codes_BS[..., None], 5, axis=-1).astype(np.float32), codes_BS > 0


TEXT = {'text': letters, 'origin': ORIGIN | {'text': {'name': 'letters'}}}


def test_texts_are_encoded_beside_the_latents_and_the_null_text_once(write):
    rows = Encoded(write(**TEXT), 'train')
    element = rows[6]
    assert element['text'].dtype == np.float16 and element['text'].shape == (4, 5)
    assert ''.join(chr(int(code)) for code in element['text'][:, 0]) == SOURCE[6]['caption'][:4]
    assert element['text_mask'].dtype == bool and element['text_mask'].tolist() == [True] * 4
    null = rows.null_text()
    assert (null['text'] == 0).all() and null['text'].shape == (4, 5) and null['text'].dtype == np.float16
    assert null['text_mask'].tolist() == [False] * 4


def test_texts_need_captions_and_a_name_of_their_encoder(write):
    class Silent(Watched):
        def __getitem__(self, index):
            return {key: value for key, value in SOURCE[index].items() if key != 'caption'}

    with pytest.raises(ValueError, match=r"from 'caption', but elements of the data have \['label', 'video'\]"):
        write(source=Silent(), **TEXT)
    with pytest.raises(ValueError, match=r"origin\['text'\], come together; origin has \['data', 'tokenizer'\]"):
        write(text=letters)
    with pytest.raises(ValueError, match='come together'):
        write(origin=TEXT['origin'])


def test_further_arrays_of_a_batch_are_kept_row_by_row(write):
    """Also of the last batch, which is filled up."""

    def encode(frozen, pixels):
        assert pixels['video'].shape[0] == 2 and set(pixels) == {'video'}
        return {'z': frozen.encode(pixels['video']), 'low': pixels['video'].mean((2, 3, 4))}

    rows = Encoded(write(encode=encode), 'train')
    for i in (0, 3, 6):
        np.testing.assert_allclose(rows[i]['low'], SOURCE[i]['video'].mean((1, 2, 3)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"keys \['label'\] are given twice"):
        write('b', encode=lambda frozen, pixels: {'label': pixels['video'].mean((1, 2, 3, 4))})


def test_an_unknown_precision_is_refused_with_the_choices(write):
    with pytest.raises(ValueError, match=r"'float8'; choices: .*'bfloat16'"):
        write(dtype='float8')


@pytest.mark.slow
def test_training_from_latents_has_the_losses_of_training_from_pixels(write, frozen, small_denoiser):
    """The same clips in the same batches; three steps, so that gradients are compared too."""
    optimizer = optax.sgd(0.1)
    params, loss = small_denoiser.params, DenoisingLoss(DiscreteLinear(), self_conditioning=0.0)
    step = jax.jit(make_denoiser_step(small_denoiser.module, loss, optimizer, 0.9, Conditioning(DiscreteLinear())))

    def losses(source, key):
        state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params), params)
        for number, batch in enumerate(itertools.islice(batches(source, 4, keys=(key, 'label'), seed=5), 3)):
            state, metrics = step(state, frozen, batch, jax.random.key(number))
            yield float(metrics['loss'])

    from_pixels = list(losses(SOURCE, 'video'))
    np.testing.assert_allclose(list(losses(Encoded(write(), 'train'), 'z')), from_pixels, rtol=1e-5)
    assert len(set(from_pixels)) == 3
