"""Stable Diffusion's autoencoder, imported: diffusers' values, in both directions."""

import re

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.interop import autoencoder_kl
from walt.interop.table import flat
from walt.tokenizer.autoencoder_kl import AutoencoderKl
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.tokenizer.pixels import from_uint8
from walt.tokenizer.streaming import encode_stream

MODULE = AutoencoderKl(channels=32, multipliers=(1, 2), blocks=1, groups=8)


def abstract(module):
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3))))['params']
    return nn.unbox(boxed)


@pytest.fixture(scope='module')
def shapes():
    return foreign.shapes('autoencoder_kl')


@pytest.fixture(scope='module')
def theirs(shapes):
    return foreign.weights(shapes)


@pytest.fixture(scope='module')
def golden():
    return foreign.golden('autoencoder_kl')


@pytest.fixture(scope='module')
def params(theirs):
    return autoencoder_kl.table(MODULE).load(theirs, abstract(MODULE), 'golden')


def frames_last(x_BCHW):
    """A picture a clip."""
    return np.moveaxis(x_BCHW, 1, -1)[:, None]


def test_means_and_log_variances_are_those_of_diffusers(params, golden):
    video_BTHWC = (frames_last(golden['video']) + 1) / 2
    moments = MODULE.apply({'params': params}, 2 * video_BTHWC - 1, method=lambda module, video: module.encoder(video))
    mean = jax.jit(lambda params, video: MODULE.apply({'params': params}, video, method='encode'))(params, video_BTHWC)
    np.testing.assert_allclose(mean, frames_last(golden['mean']), atol=1e-4)
    np.testing.assert_allclose(moments[..., 4:], frames_last(golden['logvar']), atol=1e-4)


def test_pixels_are_those_of_diffusers(params, golden):
    z_BTHWC = frames_last(golden['z'])
    video = jax.jit(lambda params, z: MODULE.apply({'params': params}, z, method='decode'))(params, z_BTHWC)
    np.testing.assert_allclose(2 * video - 1, frames_last(golden['decoded']), atol=1e-4)


def test_a_key_draws_latents_around_the_mean_with_the_deviation_of_the_posterior(params, golden):
    """Latents of one picture, drawn 400 times."""
    video_BTHWC = jnp.repeat((frames_last(golden['video'][:1, :, :8, :8]) + 1) / 2, 400, axis=0)

    @jax.jit
    def encode(params, video, key_B):
        h = MODULE.apply({'params': params}, 2 * video[:1] - 1, method=lambda module, video: module.encoder(video))
        return MODULE.apply({'params': params}, video, key_B, method='encode'), h

    z_BTHWC, h = encode(params, video_BTHWC, jax.random.split(jax.random.key(0), 400))
    mean, log_variance = np.split(h[0], 2, axis=-1)
    np.testing.assert_allclose((z_BTHWC.mean(0) - mean) / np.exp(log_variance / 2), 0, atol=5 / 400**0.5)
    np.testing.assert_allclose(z_BTHWC.std(0) / np.exp(log_variance / 2), 1, atol=5 / 800**0.5)


def test_import_export_import_is_the_identity(params, theirs):
    table = autoencoder_kl.table(MODULE)
    exported = table.export(params)
    assert set(exported) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(exported[name], array, strict=True)
    again = flat(table.load(exported, params, 'export'))
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(again[path], leaf, strict=True)


def test_names_and_shapes_of_the_whole_network_are_those_of_diffusers():
    """Of Stable Diffusion's size."""
    module = AutoencoderKl()
    exported = jax.eval_shape(autoencoder_kl.table(module).export, abstract(module))
    assert {name: leaf.shape for name, leaf in exported.items()} == foreign.shapes('autoencoder_kl_sd')


def test_older_files_are_read_too(theirs, params):
    """Other names of the attention's projections, which some have as 1x1 convolutions."""
    names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    older = {}
    for name, array in theirs.items():
        for new, old in names.items():
            if f'.attentions.0.{new}.' in name:
                name, array = name.replace(new, old), array[..., None, None] if array.ndim == 2 else array
        older[name] = array
    assert len(set(older) - set(theirs)) == 16
    found = flat(autoencoder_kl.table(MODULE).load(autoencoder_kl.newer(older, 'older'), params, 'older'))
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(found[path], leaf, strict=True)
    both = older | {name: theirs[name] for name in list(theirs) if 'to_q' in name}
    with pytest.raises(ValueError, match=re.escape('older has encoder.mid_block.attentions.0.to_q.weight twice')):
        autoencoder_kl.newer(both, 'older')


def test_frames_of_a_clip_are_pictures_by_themselves(params, rng):
    frozen = FrozenTokenizer(MODULE, params, LatentNorm(jnp.zeros(4), jnp.full(4, 1 / autoencoder_kl.LATENT_SCALE)))
    video = rng.integers(0, 256, (2, 3, 8, 8, 3)).astype(np.uint8)
    z, each = jax.jit(lambda video: (frozen.encode(video), frozen.encode_each(video)))(video)
    assert z.shape == (2, *MODULE.latent_shape(3, 8, 8)) and MODULE.clip_shape(*z.shape[1:4]) == (3, 8, 8, 3)
    np.testing.assert_allclose(z, each, atol=1e-5)
    latents = jax.jit(lambda video: MODULE.apply({'params': params}, from_uint8(video), method='encode'))(video)
    np.testing.assert_allclose(z, autoencoder_kl.LATENT_SCALE * latents, atol=1e-5)
    assert jax.eval_shape(frozen.decode, z).shape == video.shape


def test_a_stream_of_pictures_has_the_values_of_the_whole(params, rng):
    video_BTHWC = rng.uniform(size=(1, 5, 8, 8, 3)).astype(np.float32)
    z_BTHWC = MODULE.apply({'params': params}, video_BTHWC, method='encode')
    pieces = list(encode_stream(MODULE, params, video_BTHWC, chunk=2))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), z_BTHWC, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused(params):
    with pytest.raises(ValueError, match='9x8 pixels are not divisible by the spatial stride 2'):
        MODULE.latent_shape(1, 9, 8)
    with pytest.raises(ValueError, match='48 channels does not divide into 32 groups'):
        AutoencoderKl(channels=48)


def test_values_are_those_of_the_installed_diffusers_both_ways(params, rng):
    """Ours, exported, in their network; and new inputs."""
    pytest.importorskip('torch', reason="optional: pip install -e '.[interop]'")
    pytest.importorskip('diffusers', reason="optional: pip install -e '.[interop]'")
    import make_goldens

    noise = jax.tree.map(lambda leaf: np.asarray(leaf + 0.05 * rng.normal(size=leaf.shape), np.float32), params)
    video_BCHW = np.tanh(rng.normal(size=(1, 3, 24, 16))).astype(np.float32)
    z_BCHW = rng.normal(size=(1, 4, 12, 8)).astype(np.float32)
    made = make_goldens.autoencoder(autoencoder_kl.table(MODULE).export(noise), video_BCHW, z_BCHW)
    mean = MODULE.apply({'params': noise}, (frames_last(video_BCHW) + 1) / 2, method='encode')
    np.testing.assert_allclose(mean, frames_last(made['mean']), atol=1e-4)
    video = MODULE.apply({'params': noise}, frames_last(z_BCHW), method='decode')
    np.testing.assert_allclose(2 * video - 1, frames_last(made['decoded']), atol=1e-4)
