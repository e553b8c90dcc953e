"""Tiling: tiles put together are the whole frame, with the norms' statistics of the whole frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.tokenizer import tiling
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.tiling import decode_tiled, encode_tiled, receptive_field

SMALL = dict(channels=4, blocks=(0, 1), middle_blocks=0, latent_channels=3, groups=2)
TOKENIZERS = {
    'kernel 3': dict(multipliers=(1, 2), spatial_strides=(2,), temporal_strides=(2,)),
    'kernel 4': dict(multipliers=(1, 2), spatial_strides=(2,), temporal_strides=(2,), down_kernel=4),
    'three levels': dict(multipliers=(1, 1, 2), blocks=(1, 0, 0), spatial_strides=(2, 2), temporal_strides=(1, 1)),
    'stride 4': dict(multipliers=(1, 2), spatial_strides=(4,), temporal_strides=(1,), middle_blocks=1),
}


@pytest.fixture(scope='module', params=TOKENIZERS, ids=str)
def tokenizer(request, random_parameters):
    module = Tokenizer(**SMALL | TOKENIZERS[request.param])
    return module, random_parameters(module, jnp.zeros((1, 3, 8, 8, 3)))


@pytest.fixture(scope='module')
def small(random_parameters):
    module = Tokenizer(**SMALL | TOKENIZERS['kernel 3'])
    return module, random_parameters(module, jnp.zeros((1, 3, 8, 8, 3)))


def whole(module, params, method, x):
    return jax.jit(lambda params, x: module.apply({'params': params}, x, method=method))(params, x)


def frames(rng, *shape):
    """A frame that is not alike everywhere, so that a tile's statistics are not the frame's."""
    x = rng.uniform(size=shape)
    return np.float32(x * np.linspace(0.1, 0.6, shape[2])[:, None, None] + np.linspace(0, 0.4, shape[3])[:, None])


@pytest.mark.parametrize('spare', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_tiles_put_together_are_the_whole_frame(spare, tokenizer, rng):
    module, params = tokenizer
    stride = int(np.prod(module.spatial_strides))
    video = frames(rng, 1, 3, 19 * stride, 16 * stride, 3)
    z = whole(module, params, 'encode', video)
    overlap = sum(receptive_field(module, 'encode')) + spare
    tiled = encode_tiled(module, params, video, (overlap + 4, overlap + 3), overlap)
    np.testing.assert_allclose(tiled, z, atol=1e-5)

    overlap = sum(receptive_field(module, 'decode')) + spare
    tiled = decode_tiled(module, params, z, (overlap + 3, overlap + 1), overlap)
    np.testing.assert_allclose(tiled, whole(module, params, 'decode', z), atol=1e-5)


@pytest.mark.parametrize('method', ['encode', 'decode'])
def test_receptive_field_is_where_the_gradient_is_not_zero(method, tokenizer, rng):
    """Of the latent, or its pixels, in the middle of a row; the norms are given moments, which have no gradient."""
    module, params = tokenizer
    stride = int(np.prod(module.spatial_strides))
    side, middle = 25, 12
    per_latent, made = (stride, 1) if method == 'encode' else (1, stride)
    x = np.float32(rng.normal(size=(1, 1, per_latent, side * per_latent, 3)))
    masks = np.ones(1, np.float32), np.ones(side, np.float32)
    run = tiling._run_tile
    shapes = jax.eval_shape(lambda x: run(module, params, {}, False, x, *masks, method), x)[1]
    moments = jax.tree.map(lambda leaf: jnp.stack([jnp.zeros(leaf.shape[1:]), jnp.ones(leaf.shape[1:])]), shapes)

    @jax.jit
    def gradient(x, weights):
        def weighed(x):
            y, _ = run(module, params, moments, True, x, *masks, method)
            return (y * weights)[:, :, :, middle * made : (middle + 1) * made].sum()

        return jax.grad(weighed)(x)

    weights = np.float32(rng.normal(size=(1, 1, made, side * made, 3)))
    seen = np.abs(gradient(x, weights)).max((0, 1, 2, 4)).reshape(side, per_latent).max(1)
    first, *_, last = np.flatnonzero(seen)
    assert (middle - first, last - middle) == receptive_field(module, method)


@pytest.mark.parametrize('tile', [(8, 6), (100, 6), (7, 100)])
def test_a_tile_larger_than_the_frame_is_the_whole_frame(tile, small, rng, monkeypatch):
    """Computed once; a frame that is larger along one side is tiled along that alone."""
    module, params = small
    video = frames(rng, 1, 1, 14, 12, 3)
    passes = []
    one_pass = tiling._one_pass
    monkeypatch.setattr(tiling, '_one_pass', lambda *arguments: passes.append(arguments) or one_pass(*arguments))
    tiled = encode_tiled(module, params, video, tile, overlap=0)
    np.testing.assert_allclose(tiled, whole(module, params, 'encode', video), atol=1e-6)
    assert len(passes) == 1


def test_frames_of_all_sizes_share_one_compilation(small, rng, monkeypatch):
    module, params = small
    fresh = jax.jit(
        lambda *arrays, method: tiling._run_tile(*arrays, method), static_argnums=0, static_argnames='method'
    )
    monkeypatch.setattr(tiling, '_compiled_run_tile', fresh)
    for shape in [(40, 32), (30, 48)]:
        encode_tiled(module, params, frames(rng, 1, 1, *shape, 3), (12, 12))
    assert fresh._cache_size() == 1


def test_moments_of_single_tiles_are_not_those_of_the_frame(small, rng):
    """Or the passes would be for nothing: what one pass makes differs, and every further one less."""
    module, params = small
    video = frames(rng, 1, 1, 40, 40, 3)
    z = whole(module, params, 'encode', video)
    errors = [np.abs(encode_tiled(module, params, video, (12, 12), tolerance=t) - z).max() for t in (1e9, 0.1, 0)]
    assert errors[0] > 1e-3 and errors == sorted(errors, reverse=True) and errors[-1] < 1e-5


def test_less_overlap_than_the_receptive_field_is_refused_unless_asked_for(small, rng):
    module, params = small
    video = frames(rng, 1, 1, 40, 40, 3)
    reach = receptive_field(module, 'encode')
    less = sum(reach) - 1
    message = rf'overlap of {less} latents is less than the receptive field \({reach[0]}, {reach[1]}\)'
    with pytest.raises(ValueError, match=message):
        encode_tiled(module, params, video, (12, 12), less)
    z = whole(module, params, 'encode', video)
    for overlap in range(less + 1):
        tiled = encode_tiled(module, params, video, (12, 12), overlap, inexact=True)
        assert tiled.shape == z.shape and np.isfinite(tiled).all()
    assert 1e-5 < np.abs(tiled - z).mean() < 0.1


def test_sizes_and_tiles_that_do_not_fit_are_refused_with_both_values(small):
    module, params = small
    with pytest.raises(ValueError, match=r'31x32 pixels .* stride 2'):
        encode_tiled(module, params, np.zeros((1, 1, 31, 32, 3), np.float32), (12, 12))
    with pytest.raises(ValueError, match=r'tiles of 12x9 latents .* overlap of 9'):
        encode_tiled(module, params, np.zeros((1, 1, 32, 32, 3), np.float32), (12, 9), 9)
    with pytest.raises(ValueError, match=r'tiles of 0x9 latents .* overlap of 8'):
        decode_tiled(module, params, np.zeros((1, 1, 20, 20, 3), np.float32), (0, 9), 8, inexact=True)


def test_pixels_outside_0_to_1_are_refused_with_both_ranges(small):
    module, params = small
    with pytest.raises(ValueError, match=r'0\.\.1, got -1\.\.-1'):
        encode_tiled(module, params, np.full((1, 1, 16, 16, 3), -1, np.float32), (8, 8))
