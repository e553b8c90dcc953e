"""A distance between frames: zero where it should be, growing with what one sees, and fit to be a loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from walt.features import squeezenet
from walt.features.perceptual import squeezenet_distance
from walt.weights import sha256


@pytest.fixture(scope='module')
def perceptual():
    return squeezenet_distance()


@pytest.fixture(scope='module')
def distance(perceptual):
    """(frames_a_NHWC, frames_b_NHWC) -> distances and their gradient with respect to the first, jitted."""

    @jax.jit
    def of(perceptual, a, b):
        distance_N, pull_back = jax.vjp(lambda a: perceptual(a, b), a)
        return distance_N, pull_back(jnp.ones_like(distance_N))[0]

    def padded(a, b):
        """Always eight rows, so that one compilation serves all tests."""
        rows = len(a)
        a, b = (np.resize(x, (8, *x.shape[1:])).astype(np.float32) for x in (a, b))
        return tuple(np.asarray(x)[:rows] for x in of(perceptual, a, b))

    return padded


@pytest.fixture(scope='module')
def photos():
    """Two photos, (2, 64, 64, 3) in [0, 1]."""
    return np.stack(
        [resize(photo, (64, 64), anti_aliasing=True) for photo in (skimage.data.chelsea(), skimage.data.coffee())]
    )


def blurred(photo, sigma):
    return gaussian_filter(photo, (sigma, sigma, 0))


def shifted(photo, pixels):
    return np.roll(photo, pixels, axis=1)


def noisy(photo, sigma):
    return np.clip(photo + sigma * np.random.default_rng(0).normal(size=photo.shape), 0, 1)


def test_a_frame_is_at_distance_zero_from_itself_with_a_gradient_of_zero(distance, photos):
    frames = np.concatenate([photos, np.zeros_like(photos[:1]), np.ones_like(photos[:1])])
    distance_N, gradient = distance(frames, frames)
    np.testing.assert_allclose(distance_N, 0, atol=1e-10)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_where_nothing_is_active_the_gradient_is_finite(perceptual, photos):
    frames = jnp.asarray(photos, jnp.float32)
    dark = perceptual.replace(features=lambda weights, frames_NHWC: (0 * frames_NHWC,), heads=(jnp.ones(3),))
    gradient = jax.grad(lambda frames: dark(frames, jnp.ones_like(frames)).sum())(frames)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ('distort', 'levels'),
    [(noisy, (0, 0.02, 0.05, 0.1, 0.2)), (blurred, (0, 0.5, 1, 2, 4)), (shifted, (0, 1, 2, 4))],
    ids=['noise', 'blur', 'shift'],
)
def test_distance_grows_with_the_distortion(distort, levels, distance, photos):
    for photo in photos:
        frames = np.stack([distort(photo, level) for level in levels])
        distance_N, gradient = distance(frames, np.stack([photo] * len(levels)))
        assert (np.diff(distance_N) > 0.002).all(), distance_N
        assert np.isfinite(gradient).all()


def test_moved_grain_is_nearer_than_its_mean_though_not_in_pixels(distance):
    """What a distance of features is for: where pixels cannot be told, squared error asks for their mean."""
    grain = np.random.default_rng(0).random((64, 64, 3))
    distance_N, _ = distance(np.stack([shifted(grain, 1), np.full_like(grain, 0.5)]), np.stack([grain, grain]))
    squared_N = [np.square(other - grain).mean() for other in (shifted(grain, 1), 0.5)]
    assert squared_N[0] > squared_N[1]
    assert distance_N[0] < distance_N[1] / 2


def test_distance_is_symmetric(distance, photos):
    there, _ = distance(photos, photos[::-1])
    back, _ = distance(photos[::-1], photos)
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert (there > 0.1).all()


def test_rows_are_independent(distance, photos):
    a = np.stack([photos[0], noisy(photos[0], 0.1), photos[1]])
    b = np.stack([photos[1], photos[0], photos[1]])
    distance_N, gradient = distance(a, b)
    for row in range(3):
        alone, gradient_alone = distance(a[row : row + 1], b[row : row + 1])
        np.testing.assert_allclose(alone[0], distance_N[row], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(gradient_alone[0], gradient[row], rtol=1e-3, atol=1e-7)


def test_following_the_gradient_brings_frames_nearer(distance, photos):
    a, b = noisy(photos[:1], 0.05), photos[:1]
    before, gradient = distance(a, b)
    after, _ = distance(a - 1e-2 * gradient / np.linalg.norm(gradient), b)
    assert after < before - 1e-4


def test_weights_get_no_gradient(perceptual, photos):
    a, b = jnp.asarray(photos[:1], jnp.float32), jnp.asarray(photos[1:], jnp.float32)
    gradient = jax.jit(jax.grad(lambda perceptual: perceptual(a, b).sum()))(perceptual)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_lower_precision_is_near(perceptual, distance, photos):
    a, b = noisy(photos, 0.1).astype(np.float32), photos.astype(np.float32)
    exact, _ = distance(a, b)
    near = jax.jit(lambda perceptual: perceptual(a, b))(dataclasses.replace(perceptual, dtype=jnp.bfloat16))
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(near, exact, rtol=0.03)


def test_two_distances_share_one_compilation(perceptual):
    assert jax.tree.structure(perceptual) == jax.tree.structure(squeezenet_distance())
    hash(jax.tree.structure(perceptual))


def test_frames_that_are_too_small_or_of_other_kinds_are_refused(perceptual):
    def expect(message, a, b):
        with pytest.raises(ValueError, match=message):
            perceptual(a, b)

    expect(
        'at least 17x17 pixels, got 16x32', np.zeros((1, 16, 32, 3), np.float32), np.zeros((1, 16, 32, 3), np.float32)
    )
    expect(r'\(1, 32, 32, 3\) and float32 \(2, 32', *(np.zeros((rows, 32, 32, 3), np.float32) for rows in (1, 2)))
    expect('uint8', *[np.zeros((1, 32, 32, 3), np.uint8)] * 2)
    expect(r'\(1, 32, 32, 1\)', *[np.zeros((1, 32, 32, 1), np.float32)] * 2)


def test_only_the_backbone_that_lpips_was_fitted_on_is_called_lpips(perceptual, monkeypatch):
    assert perceptual.name == 'squeezenet'
    file = squeezenet.PACKAGED.find()
    assert squeezenet_distance(file).name == 'squeezenet'
    monkeypatch.setattr(squeezenet, 'TORCHVISION_SHA256', (sha256(file)[:8],))
    assert squeezenet_distance(file).name == 'lpips_squeezenet'


def test_negative_heads_are_refused(tmp_path, write_torch):
    heads = {f'lin{i}.model.1.weight': np.ones((1, n, 1, 1), np.float32) for i, n in enumerate(squeezenet.CHANNELS)}
    heads['lin3.model.1.weight'][0, 7] = -0.5
    with pytest.raises(ValueError, match=r'lin3.*-0\.5'):
        squeezenet_distance(heads=write_torch(tmp_path / 'heads.pth', heads))
