"""What a batch of data becomes before it is trained on: rows of latents, and what of their conditions is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.denoiser.conditions import NullText
from walt.denoiser.walt import Walt
from walt.diffusion.schedules import ContinuousLinear, DiscreteLinear
from walt.randomness import row_keys
from walt.tokenizer.pixels import shrink
from walt.training.conditions import Conditioning, keys_of_rows, latent_rows

ROWS = 2000


def walt(latent_shape=(2, 4, 4, 3), **fields):
    return Walt(latent_shape, spatiotemporal_window=latent_shape[1:3], **fields)


JOINT = walt(classes=10, text_shape=(3, 5), upsample=2, images=True)


@pytest.fixture(scope='module')
def pixels():
    """Three clips, each with two stacks of as many pictures as a clip has latent frames; means of four are whole."""
    rng = np.random.default_rng(0)

    def brightness(*shape):
        return 4 * rng.integers(64, size=shape, dtype=np.uint8)

    def told(prefix, *lead):
        return {
            f'{prefix}label': rng.integers(10, size=lead),
            f'{prefix}text': rng.normal(size=(*lead, 3, 5)).astype(np.float32),
            f'{prefix}text_mask': rng.random((*lead, 3)) < 0.5,
        }

    clips = {'video': brightness(3, 5, 16, 16, 3)} | told('', 3)
    return clips | {'images': brightness(3, 2, 2, 16, 16, 3)} | told('images_', 3, 2, 2)


@pytest.fixture(scope='module')
def joint_rows(frozen, pixels):
    return jax.jit(lambda frozen, batch: latent_rows(frozen, batch, JOINT))(frozen, pixels)


@pytest.fixture(scope='module')
def encode(frozen):
    return jax.jit(lambda video: frozen.encode(video))


def test_the_first_two_latent_frames_are_those_of_the_first_five_frames_alone(encode, rng):
    """What frame prediction rests on: the given frames of a clip are known without the rest of it."""
    video = rng.integers(256, size=(1, 9, 16, 16, 3), dtype=np.uint8)
    whole, start = encode(video), encode(video[:, :5])
    assert whole.shape[1] == 3 and start.shape[1] == 2
    np.testing.assert_allclose(whole[:, :2], start, atol=1e-4)
    assert np.abs(encode(255 - video)[:, :2] - start).max() > 0.1


def test_rows_are_the_same_from_pixels_and_from_latents(joint_rows, pixels, encode):
    latents = {name: value for name, value in pixels.items() if name not in ('video', 'images')}
    latents |= {'z': encode(pixels['video']), 'low': encode(shrink(pixels['video'], 2))}
    for name, pictures in [('images_z', pixels['images']), ('images_low', shrink(pixels['images'], 2))]:
        one_by_one = [[[encode(x[None, None])[0, 0] for x in stack] for stack in stacks] for stacks in pictures]
        latents[name] = jnp.array(one_by_one)
    rows = latent_rows(None, latents, JOINT)
    assert set(rows) == set(joint_rows) == {'z', 'label', 'text', 'text_mask', 'low', 'image'}
    for name, value in rows.items():
        assert value.shape[1:] == ((2, 4, 4, 3) if name == 'z' else JOINT.conditions[name]), name
        np.testing.assert_allclose(joint_rows[name], value, atol=1e-4, err_msg=name)


def test_joint_rows_are_each_clip_then_its_stacks(joint_rows, pixels):
    """A clip repeats its label and its text for each latent frame; each picture of a stack has its own."""
    np.testing.assert_array_equal(joint_rows['image'], [False, True, True] * 3)
    for name in ('label', 'text', 'text_mask'):
        for frame in range(2):
            np.testing.assert_array_equal(joint_rows[name][::3, frame], pixels[name])
        of_stacks = pixels[f'images_{name}']
        np.testing.assert_array_equal(joint_rows[name][joint_rows['image']], of_stacks.reshape(6, *of_stacks.shape[2:]))


def test_without_images_a_row_is_a_clip_with_its_own_label_and_text(pixels):
    batch = pixels | {'z': jnp.ones((3, 2, 4, 4, 3)), 'low': jnp.zeros((3, 2, 2, 2, 3))}
    rows = latent_rows(None, batch, walt(classes=10, text_shape=(3, 5), upsample=2))
    assert set(rows) == {'z', 'label', 'text', 'text_mask', 'low'}
    for name, value in rows.items():
        assert value is batch[name]


def test_what_a_denoiser_has_no_use_for_is_passed_over(pixels):
    batch = pixels | {'z': jnp.ones((3, 2, 4, 4, 3))}
    assert set(latent_rows(None, batch, walt())) == {'z'}
    assert set(latent_rows(None, batch, walt(classes=10))) == {'z', 'label'}


def test_shrunk_pixels_are_means_of_cells():
    """Rounded; also of stacks of pictures, which have an axis more."""
    cells = np.array([[10, 20, 0, 6], [30, 40, 0, 5], [255, 255, 7, 7], [255, 255, 7, 7]], np.uint8)
    video = np.stack([cells, 255 - cells, 0 * cells], -1)
    for lead in [(1, 2), (1, 2, 3)]:
        small = shrink(np.broadcast_to(video, (*lead, *video.shape)), 2)
        assert small.shape == (*lead, 2, 2, 3) and small.dtype == jnp.uint8
        np.testing.assert_array_equal(small[0, 1, ..., 0].reshape(-1, 4)[0], [25, 3, 255, 7])
        np.testing.assert_array_equal(small[0, 0, ..., 2], 0)


@pytest.mark.parametrize(
    ('gone', 'named'),
    [
        (['video'], ['z or video', 'low or video']),
        (['label'], ['label']),
        (['text_mask', 'text'], ['text', 'text_mask']),
        (['images'], ['images_z or images', 'images_low or images']),
        (['images_label', 'images_text'], ['images_label', 'images_text']),
    ],
    ids=str,
)
def test_what_a_batch_lacks_is_named_beside_what_it_has(gone, named, pixels):
    batch = {name: value for name, value in pixels.items() if name not in gone}
    with pytest.raises(ValueError) as raised:
        latent_rows(None, batch, JOINT)
    assert str(raised.value) == f'the denoiser needs {named} of a batch, which has {sorted(batch)}'


def test_latents_alone_do_not_make_the_low_resolution(pixels):
    with pytest.raises(ValueError, match=r"\['low or video'\]"):
        latent_rows(None, {'z': jnp.ones((3, 2, 4, 4, 3))}, walt(upsample=2))


def test_stacks_of_another_length_are_refused_with_both():
    batch = {'z': jnp.zeros((3, 2, 4, 4, 3)), 'images_z': jnp.zeros((3, 1, 4, 4, 4, 3))}
    with pytest.raises(ValueError, match='stacks of 4 pictures beside clips of 2 latent frames'):
        latent_rows(None, batch, walt(images=True))


# What of the conditions is shown: many rows of few numbers, and no network.

NULL_TEXT = NullText(jnp.full((2, 3), 7.0), jnp.array([True, False]))
KEY_R = row_keys(jax.random.key(5), ROWS)


@pytest.fixture(scope='module')
def rows():
    """Rows whose latents are never zero, half of them stacks of pictures."""
    rng = np.random.default_rng(1)
    return {
        'z': jnp.asarray(2 + rng.random(size=(ROWS, 3, 2, 2, 1)), jnp.float32),
        'label': jnp.asarray(rng.integers(10, size=(ROWS, 3))),
        'text': jnp.asarray(rng.normal(size=(ROWS, 3, 2, 3)), jnp.float32),
        'text_mask': jnp.ones((ROWS, 3, 2), bool),
        'low': jnp.asarray(rng.normal(size=(ROWS, 3, 1, 1, 1)), jnp.float32),
        'image': jnp.arange(ROWS) % 2 == 0,
    }


def denoiser(*fields):
    choices = {'classes': 10, 'text_shape': (2, 3), 'upsample': 2, 'frame_prediction': True, 'images': True}
    return walt((3, 2, 2, 1), **{name: choices[name] for name in fields})


EVERYTHING = denoiser('classes', 'text_shape', 'upsample', 'frame_prediction', 'images')


def clips_only(rows):
    return {'z': rows['z'], 'low': rows['low']}


def test_cond_has_every_entry_of_the_denoiser_but_the_estimate(rows):
    cond = Conditioning(DiscreteLinear())(EVERYTHING, rows, NULL_TEXT, KEY_R)
    assert set(cond) == set(EVERYTHING.conditions) - {'estimate'}
    for name, value in cond.items():
        assert value.shape == (ROWS, *EVERYTHING.conditions[name]), name
    np.testing.assert_array_equal(cond['image'], rows['image'])
    assert set(Conditioning(DiscreteLinear())(denoiser(), rows, None, KEY_R)) == set()


@pytest.mark.parametrize(('dropout', 'least', 'most'), [(0.0, 0, 0), (0.1, 0.08, 0.12), (1.0, 1, 1)])
def test_label_and_text_are_dropped_together_with_the_probability(dropout, least, most, rows):
    """In whole rows; the others, and all other conditions, stay as they were."""
    conditioning = Conditioning(DiscreteLinear(), dropout=dropout)
    cond = conditioning(EVERYTHING, rows, NULL_TEXT, KEY_R)
    dropped = np.asarray((cond['label'] == 10).all(1))
    assert least <= dropped.mean() <= most
    null = {'label': 10, 'text': NULL_TEXT.text_SE, 'text_mask': NULL_TEXT.mask_S}
    for name, value in null.items():
        np.testing.assert_array_equal(cond[name][dropped], jnp.broadcast_to(value, cond[name][dropped].shape))
        np.testing.assert_array_equal(cond[name][~dropped], rows[name][~dropped])
    plain = Conditioning(DiscreteLinear(), dropout=0.5)(EVERYTHING, rows, NULL_TEXT, KEY_R)
    for name in ('frames', 'frames_mask', 'low', 'low_t', 'image'):
        np.testing.assert_array_equal(cond[name], plain[name])


def test_a_text_is_dropped_for_the_null_text_which_has_to_be_known(rows):
    text = denoiser('text_shape', 'images')
    with pytest.raises(ValueError, match='null text'):
        Conditioning(DiscreteLinear(), dropout=0.1)(text, rows, None, KEY_R)
    cond = Conditioning(DiscreteLinear(), dropout=0.0)(text, rows, None, KEY_R)
    np.testing.assert_array_equal(cond['text'], rows['text'])
    assert set(Conditioning(DiscreteLinear())(denoiser('classes', 'images'), rows, None, KEY_R)) == {'label', 'image'}


@pytest.mark.parametrize(
    ('probability', 'counts', 'shares'),
    [(0.5, (1, 2), (0.5, 0.25, 0.25)), (1.0, (2,), (0, 0, 1)), (0.0, (1,), (1, 0, 0)), (0.4, (2,), (0.6, 0, 0.4))],
    ids=str,
)
@pytest.mark.parametrize('schedule', [DiscreteLinear(), ContinuousLinear()], ids=['discrete', 'continuous'])
def test_given_are_the_first_frames_clean_as_many_and_as_often_as_asked(probability, counts, shares, schedule, rows):
    conditioning = Conditioning(schedule, given_frames=counts, given_probability=probability)
    cond = conditioning(denoiser('frame_prediction'), clips_only(rows), None, KEY_R)
    mask_BT = np.asarray(cond['frames_mask'])
    assert set(np.unique(mask_BT)) <= {0, 1} and (np.diff(mask_BT, axis=1) <= 0).all()
    drawn = [(mask_BT.sum(1) == count).mean() for count in range(3)]
    np.testing.assert_allclose(drawn, shares, atol=0.04)
    np.testing.assert_array_equal(cond['frames'], rows['z'] * mask_BT[..., None, None, None])


def test_pictures_are_never_given(rows):
    conditioning = Conditioning(DiscreteLinear(), given_probability=1.0)
    cond = conditioning(denoiser('frame_prediction', 'images'), rows, None, KEY_R)
    given = np.asarray(cond['frames_mask'].sum(1) > 0)
    np.testing.assert_array_equal(given, ~rows['image'])
    np.testing.assert_array_equal(np.abs(cond['frames']).max((1, 2, 3, 4)) > 0, given)


def test_given_frames_have_the_noise_that_their_mask_tells(rows):
    """(frames - alpha z) / sigma is standard normal where frames are given, with alpha of a time in U(0, 0.4)."""
    conditioning = Conditioning(ContinuousLinear(), given_frames=(2,), given_probability=1.0, given_noise=0.4)
    cond = conditioning(denoiser('frame_prediction'), clips_only(rows), None, KEY_R)
    alpha_B = np.asarray(cond['frames_mask'][:, 0])
    np.testing.assert_array_equal(cond['frames_mask'], alpha_B[:, None] * np.array([1, 1, 0]))
    least, middle, most = (float(ContinuousLinear().alpha_sigma(t)[0]) for t in (0.4, 0.2, 0.0))
    assert least <= alpha_B.min() < least + 0.01 and most - 0.01 < alpha_B.max() <= most
    np.testing.assert_allclose(np.median(alpha_B), middle, atol=0.02)
    noisy = alpha_B < 0.99
    eps = (cond['frames'] - alpha_B.reshape(-1, 1, 1, 1, 1) * rows['z'])[noisy, :2] / np.sqrt(1 - alpha_B[noisy] ** 2)[
        :, None, None, None, None
    ]
    np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.03)
    np.testing.assert_array_equal(cond['frames'][:, 2], 0)


def test_low_latents_have_the_noise_of_the_time_beside_them(rows):
    conditioning = Conditioning(ContinuousLinear(), low_noise=0.5)
    cond = conditioning(denoiser('upsample'), clips_only(rows), None, KEY_R)
    low_t = np.asarray(cond['low_t'])
    assert 0 <= low_t.min() < 0.01 and 0.49 < low_t.max() <= 0.5
    np.testing.assert_allclose(low_t.mean(), 0.25, atol=0.02)
    noisy = low_t > 0.05
    alpha, sigma = (x[noisy].reshape(-1, 1, 1, 1, 1) for x in ContinuousLinear().alpha_sigma(low_t))
    eps = (cond['low'][noisy] - alpha * rows['low'][noisy]) / sigma
    np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.03)
    clean = Conditioning(ContinuousLinear(), low_noise=0.0)(denoiser('upsample'), clips_only(rows), None, KEY_R)
    np.testing.assert_array_equal(clean['low'], rows['low'])
    np.testing.assert_array_equal(clean['low_t'], 0)


def test_the_same_key_draws_the_same_and_another_draws_all_anew(rows):
    conditioning = Conditioning(DiscreteLinear(), given_noise=0.5)
    first, again, other = (
        conditioning(EVERYTHING, rows, NULL_TEXT, row_keys(jax.random.key(seed), ROWS)) for seed in (5, 5, 6)
    )
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] == other[name]).all() == (name == 'image'), name


def test_what_is_drawn_for_a_row_does_not_depend_on_the_rows_beside_it(rows):
    conditioning = Conditioning(DiscreteLinear(), given_noise=0.5)
    some = np.array([7, 2, 1])
    together = conditioning(EVERYTHING, rows, NULL_TEXT, KEY_R)
    apart = conditioning(EVERYTHING, {name: row[some] for name, row in rows.items()}, NULL_TEXT, KEY_R[some])
    for name in together:
        np.testing.assert_array_equal(together[name][some], apart[name])


def test_every_stack_has_a_key_of_its_own_that_follows_from_that_of_its_clip():
    key_B = row_keys(jax.random.key(0), 4)
    key_R = keys_of_rows(key_B, 12)
    assert (key_R[::3] == key_B).all()
    assert len(np.unique(jax.random.key_data(key_R), axis=0)) == 12
    assert (keys_of_rows(key_B[2:3], 3) == key_R[6:9]).all()


def test_draws_of_a_row_are_independent_of_each_other(rows):
    """Correlations of: dropped, given at all, time of the low resolution, its noise, noise of the frames."""
    conditioning = Conditioning(
        ContinuousLinear(), dropout=0.5, given_frames=(1,), given_noise=0.5, given_probability=0.5, low_noise=0.5
    )
    fields = denoiser('classes', 'upsample', 'frame_prediction')
    cond = conditioning(fields, rows | {'label': rows['label'][:, 0]}, None, KEY_R)
    drawn = [cond['label'] == 10, cond['frames_mask'][:, 0] > 0, cond['low_t'], cond['low'][:, 0, 0, 0, 0]]
    correlations = np.corrcoef(np.array(drawn, float)) - np.eye(4)
    assert np.abs(correlations).max() < 0.1
    given = np.asarray(cond['frames_mask'][:, 0] > 0)
    times = np.array([cond['frames_mask'][given, 0], cond['low_t'][given]])
    assert np.abs(np.corrcoef(times)[0, 1]) < 0.1


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'dropout': -0.1}, r'dropout is in \[0, 1\], not -0.1'),
        ({'dropout': 1.1}, r'dropout is in \[0, 1\], not 1.1'),
        ({'given_probability': 2}, r'given_probability is in \[0, 1\], not 2'),
        ({'given_noise': -1}, r'given_noise is in \[0, 1\], not -1'),
        ({'low_noise': 1.5}, r'low_noise is in \[0, 1\], not 1.5'),
        ({'given_frames': ()}, r'given_frames .* not \(\)'),
        ({'given_frames': (2, 0)}, r'1 or more, not \(2, 0\)'),
    ],
    ids=str,
)
def test_probabilities_times_and_counts_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Conditioning(DiscreteLinear(), **fields)
