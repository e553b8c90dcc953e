"""Streaming: chunks put together are the whole clip, by one program and in constant memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.tokenizer import streaming
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.streaming import Past, decode_stream, encode_stream, step

SMALL = dict(channels=4, blocks=(0, 1, 1), middle_blocks=0, latent_channels=3, groups=2)

# Strides in both levels, in the coarser ones only, kernels of 4, a stride that the kernels do not cover, images.
TOKENIZERS = {
    'strides (2, 2)': dict(multipliers=(1, 1, 2), spatial_strides=(2, 2), temporal_strides=(2, 2)),
    'strides (1, 2, 2)': dict(
        multipliers=(1, 1, 1, 2), blocks=(0, 1, 0, 1), spatial_strides=(2, 2, 1), temporal_strides=(1, 2, 2)
    ),
    'down_kernel 4': dict(multipliers=(1, 1, 2), spatial_strides=(2, 2), temporal_strides=(2, 2), down_kernel=4),
    'strides (1, 4)': dict(multipliers=(1, 1, 2), spatial_strides=(1, 2), temporal_strides=(1, 4)),
    'images': dict(multipliers=(1, 1, 2), spatial_strides=(2, 2), temporal_strides=(1, 1), kernel_t=1),
}


@pytest.fixture(scope='module')
def tokenizer(request, random_parameters):
    """(module, params, the product of its temporal strides, `whole` for it)."""
    module = Tokenizer(**SMALL | TOKENIZERS[request.param])
    stride = math.prod(module.temporal_strides)
    params = random_parameters(module, jnp.zeros((1, 1 + stride, 8, 8, 3)))
    whole = jax.jit(lambda x, method: module.apply({'params': params}, x, method=method), static_argnums=1)
    return module, params, stride, whole


def pixels(rng, *shape):
    return np.float32(rng.uniform(size=shape))


CHUNKS = [(name, chunk) for name in TOKENIZERS for chunk in (1, 2, 3)]
QUICK = [('strides (2, 2)', 1), *((name, 2) for name in TOKENIZERS)]


@pytest.mark.parametrize(
    ('tokenizer', 'chunk'),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in CHUNKS],
    indirect=['tokenizer'],
)
def test_chunks_put_together_are_the_whole_clip(chunk, tokenizer, rng):
    module, params, stride, whole = tokenizer
    video = pixels(rng, 2, 1 + 6 * stride, 8, 8, 3)
    z = whole(video, 'encode')
    decoded = whole(z, 'decode')
    for k in (0, 1, 5, 6):  # latent frames after the first; by causality a shorter clip has the longer one's values
        frames = 1 + k * stride
        pieces = list(encode_stream(module, params, video[:, :frames], chunk))
        assert max(piece.shape[1] for piece in pieces) <= 1 + chunk
        np.testing.assert_allclose(np.concatenate(pieces, 1), z[:, : 1 + k], atol=1e-5)
        pieces = list(decode_stream(module, params, z[:, : 1 + k], chunk))
        assert max(piece.shape[1] for piece in pieces) <= 1 + chunk * stride
        np.testing.assert_allclose(np.concatenate(pieces, 1), decoded[:, :frames], atol=1e-5)


def test_pieces_may_have_any_numbers_of_frames(small_tokenizer, rng):
    module, params = small_tokenizer.module, small_tokenizer.params
    video = pixels(rng, 1, 21, 8, 8, 3)
    z = small_tokenizer.encode(params, video)
    pieces = np.split(video, [1, 2, 9, 9, 10], axis=1)
    np.testing.assert_allclose(np.concatenate(list(encode_stream(module, params, pieces, 2)), 1), z, atol=1e-5)


def test_a_chunk_comes_out_as_soon_as_its_frames_are_there(small_tokenizer, rng):
    taken = []

    def frames():
        for frame in range(13):
            taken.append(frame)
            yield pixels(rng, 1, 1, 8, 8, 3)

    latents = encode_stream(small_tokenizer.module, small_tokenizer.params, frames(), 1)
    assert [(len(taken), z.shape[1]) for z in latents] == [(5, 2), (9, 1), (13, 1)]


def test_clips_of_all_lengths_share_one_compilation(small_tokenizer, rng, monkeypatch):
    module, params = small_tokenizer.module, small_tokenizer.params
    fresh = jax.jit(lambda *arguments, **method: step(*arguments, **method), static_argnums=0, static_argnames='method')
    monkeypatch.setattr(streaming, '_compiled_step', fresh)
    for k in (0, 1, 2, 7):
        list(encode_stream(module, params, pixels(rng, 1, 1 + 4 * k, 8, 8, 3), 2))
    assert fresh._cache_size() == 1
    for k in (0, 1, 2, 7):
        list(decode_stream(module, params, pixels(rng, 1, 1 + k, 2, 2, 3), 2))
    assert fresh._cache_size() == 2


@pytest.mark.parametrize(('method', 'shape'), [('encode', (1, 9, 8, 8, 3)), ('decode', (1, 3, 2, 2, 3))])
def test_the_past_has_one_size_before_and_after_a_chunk(method, shape, small_tokenizer):
    module, params = small_tokenizer.module, small_tokenizer.params

    def sizes(past):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), past)

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    past = Past.none(module, params, x, method)
    _, after = jax.eval_shape(lambda past, x: step(module, params, past, x, method), past, x)
    assert sizes(after) == sizes(past)
    shorter = jax.ShapeDtypeStruct((1, 5 if method == 'encode' else 2, *shape[2:]), jnp.float32)
    assert sizes(Past.none(module, params, shorter, method)) == sizes(past)


def test_without_the_past_it_is_another_clip(small_tokenizer, rng):
    """Or the other tests would say little."""
    module, params = small_tokenizer.module, small_tokenizer.params
    z = pixels(rng, 1, 5, 2, 2, 3)
    run = jax.jit(lambda past, z: step(module, params, past, z, 'decode'))
    _, past = run(Past.none(module, params, z[:, :3], 'decode'), z[:, :3])
    expected = small_tokenizer.decode(params, z)[:, 8:]
    forgotten = past.replace(frames=jax.tree.map(jnp.zeros_like, past.frames))
    differences = [np.abs(run(before, z[:, 2:])[0] - expected).max() for before in (past, forgotten)]
    assert differences[0] < 1e-5 and differences[1] > 0.1


def test_the_ordinary_path_keeps_no_past(small_tokenizer):
    variables = jax.eval_shape(small_tokenizer.module.init, jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))
    assert set(variables) == {'params'}


@pytest.mark.parametrize(
    ('stream', 'shape', 'chunk', 'message'),
    [
        (encode_stream, (1, 8, 8, 8, 3), 1, r'8 frames are not 1 \+ k \* 4'),
        (encode_stream, (1, 0, 8, 8, 3), 1, r'0 frames are not 1 \+ k \* 4'),
        (decode_stream, (1, 0, 2, 2, 3), 1, '0 frames are not 1'),
        (encode_stream, (1, 5, 8, 8, 3), 0, 'chunk of 0 latent frames must have at least 1'),
        (decode_stream, (1, 2, 2, 2, 3), -1, 'chunk of -1 latent frames must have at least 1'),
    ],
)
def test_clips_and_chunks_that_do_not_fit_are_refused_at_the_call(stream, shape, chunk, message, small_tokenizer):
    with pytest.raises(ValueError, match=message):
        stream(small_tokenizer.module, small_tokenizer.params, np.zeros(shape, np.float32), chunk)


def test_pieces_that_do_not_fit_are_refused_when_they_have_come(small_tokenizer):
    module, params = small_tokenizer.module, small_tokenizer.params
    with pytest.raises(ValueError, match=r'8x10 pixels .* stride 4'):
        next(encode_stream(module, params, np.zeros((1, 5, 8, 10, 3), np.float32)))
    with pytest.raises(ValueError, match=r'7 frames are not 1 \+ k \* 4'):
        list(encode_stream(module, params, iter([np.zeros((1, 7, 8, 8, 3), np.float32)])))
    with pytest.raises(ValueError, match=r'0 frames are not 1 \+ k \* 4'):
        list(encode_stream(module, params, iter([])))


def test_pixels_outside_0_to_1_are_refused_with_both_ranges(small_tokenizer):
    video = np.full((1, 5, 8, 8, 3), 200, np.float32)
    with pytest.raises(ValueError, match=r'0\.\.1, got 200\.\.200'):
        list(encode_stream(small_tokenizer.module, small_tokenizer.params, video))
