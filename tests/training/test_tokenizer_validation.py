"""How a tokenizer does on held-out clips, against the same figures from all clips at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.data.contact_sheet import contact_sheet
from walt.tokenizer.bottleneck import Fsq, code_counts, code_metrics
from walt.training.tokenizer_validation import make_tokenizer_validation

LEVELS = (32, 32, 32)


def one_sided(real_NHWC, fake_NHWC):
    """Stands in for a feature network; tells the original from the reconstruction."""
    return (jnp.abs(real_NHWC - fake_NHWC) + 2 * jnp.square(fake_NHWC)).mean((1, 2, 3))


@pytest.fixture(scope='module')
def batches():
    """Two of five clips each, of squares; every clip has a contrast of its own, so that no two have the same error."""
    noise = np.random.default_rng(0).uniform(-1, 1, size=(2, 5, 5, 2, 2, 3)).repeat(4, 3).repeat(4, 4)
    return np.uint8(128 + 127 * noise * np.linspace(0.1, 1, 10).reshape(2, 5, 1, 1, 1, 1))


@pytest.fixture(scope='module')
def whole(tiny_tokenizer, batches):
    """(metrics, and of all ten clips: pixels, reconstructions, latents with their codes)."""
    module = tiny_tokenizer.module.clone(bottleneck=Fsq(levels=LEVELS))
    validate = make_tokenizer_validation(module)
    metrics = validate(tiny_tokenizer.params, jax.tree_util.Partial(one_sided), batches)
    clips = jnp.float32(batches.reshape(-1, *batches.shape[2:])) / 255
    fake, bottled = jax.jit(module.apply)({'params': tiny_tokenizer.params}, clips)
    return metrics, np.asarray(clips), np.asarray(fake), bottled


def test_psnr_is_the_mean_over_clips_of_pixels_that_can_be_shown(whole):
    metrics, clips, fake, _ = whole
    assert fake.min() < -0.1 or fake.max() > 1.1
    mse = np.square(np.clip(fake, 0, 1) - clips).mean((1, 2, 3, 4))
    assert np.ptp(mse) > 0.1 * mse.mean()
    np.testing.assert_allclose(metrics['psnr'], -10 * np.log10(mse).mean(), rtol=1e-4)


def test_the_distance_is_the_mean_over_frames_of_both_batches(whole):
    metrics, clips, fake, _ = whole
    frames = [x.reshape(-1, *x.shape[2:]) for x in (clips, np.clip(fake, 0, 1))]
    np.testing.assert_allclose(metrics['perceptual'], one_sided(*frames).mean(), rtol=1e-4)


def test_latents_and_codes_are_those_of_both_batches(whole):
    metrics, *_, bottled = whole
    z = np.asarray(bottled.z_BTHWC).reshape(-1, 3)
    for i in range(3):
        np.testing.assert_allclose(metrics[f'latent_mean/{i}'], z[:, i].mean(), atol=1e-5)
        np.testing.assert_allclose(metrics[f'latent_std/{i}'], z[:, i].std(), rtol=5e-3)
    first, expected = (
        code_metrics(code_counts(codes, 32**3)) for codes in (bottled.codes_BTHW[:5], bottled.codes_BTHW)
    )
    assert first['perplexity'] < 0.9 * expected['perplexity']
    for name in ('code_use', 'perplexity'):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


def test_the_picture_has_the_first_four_clips_each_above_its_reconstruction(whole, batches):
    metrics, _, fake, _ = whole
    shown = np.uint8(np.round(255 * np.clip(fake[:4], 0, 1)))
    rows = [row for pair in zip(batches[0], shown) for row in pair]
    picture = metrics['reconstructions']
    expected = contact_sheet(np.stack(rows), 5)
    assert picture.shape == expected.shape
    np.testing.assert_allclose(picture.astype(int), expected.astype(int), atol=1)


def test_without_codes_or_a_feature_network_nothing_is_said_of_them(tiny_tokenizer, batches):
    metrics = make_tokenizer_validation(tiny_tokenizer.module)(tiny_tokenizer.params, None, batches[:1])
    channels = {f'{moment}/{i}' for moment in ('latent_mean', 'latent_std') for i in range(3)}
    assert set(metrics) == {'psnr', 'reconstructions'} | channels
