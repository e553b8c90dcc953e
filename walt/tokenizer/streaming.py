"""Encoding and decoding in chunks: the whole clip's values in memory that does not grow with its length.

Neighbouring chunks share one frame. In latent frames, with two new ones a chunk:

    clip       0 1 2 3 4 5
    1st chunk  0 1 2
    2nd chunk      2 3 4
    3rd chunk          4 5 +     filled up at the end, which causality makes harmless, and cropped

Every layer turns 1 + s n frames into 1 + n or back, and does so with a chunk as with a clip. Only the padding differs:
a causal convolution repeats the edge in front of a clip, and in front of a chunk needs the k_t - 1 frames that were
there. `step` takes them from `Past` and puts back those of the next chunk, so that it is one pure function of constant
shapes: one compilation for clips of all lengths. The shared frame is computed twice, at the coarsest level one latent
frame in 1 + n, at the pixels one frame in 1 + s_t n. Codes of a discrete bottleneck that lie at a border between two
may fall to either side by float32 rounding, as with any other change of shapes.
"""

import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from walt.nn.conv import CausalConv3d
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.pixels import check_unit


@struct.dataclass
class Past:
    """What a chunk has to know of those before it."""

    started: jax.Array  # False in front of the first chunk, whose past is its first frame repeated
    frames: dict  # of each convolution: its k_t - 1 padded input frames before the last one

    @classmethod
    def none(cls, module: Tokenizer, params, x_BTHWC, method: str) -> 'Past':
        """In front of the first chunk; `x_BTHWC` is any chunk, or its shape."""
        _, past = jax.eval_shape(
            lambda params, x: step(module, params, cls(jnp.array(False), {}), x, method), params, x_BTHWC
        )
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), past)


def step(module: Tokenizer, params, past: Past, x_BTHWC, method: str):
    """One chunk: (what `encode` or `decode`, by `method`, makes of it, the past of the next chunk).

    Chunks have 1 + n latent frames, or 1 + s_t n frames, the first of which is the last of the chunk before. So is the
    first frame of what comes out. A pure function, for use inside other programs; `module` and `method` are static.
    """

    def put_past_in_front(next_method, args, kwargs, context):
        x = next_method(*args, **kwargs)
        layer = context.module
        if not (isinstance(layer, CausalConv3d) and context.method_name == 'pad'):
            return x
        edge, x = jnp.split(x, [layer.kernel[0] - 1], axis=1)
        front = jnp.where(past.started, layer.get_variable('past', 'frames', edge), edge)
        x = jnp.concatenate([front, x], axis=1)
        layer.put_variable('past', 'frames', x[:, -layer.kernel[0] : -1])
        return x

    with nn.intercept_methods(put_past_in_front):
        y, variables = module.apply({'params': params, 'past': past.frames}, x_BTHWC, method=method, mutable=['past'])
    return y, Past(jnp.array(True), variables['past'])


_compiled_step = jax.jit(step, static_argnames=('module', 'method'), donate_argnames='past')


def encode_stream(module: Tokenizer, params, video: np.ndarray | Iterable, chunk: int = 1) -> Iterator[np.ndarray]:
    """Latents of a clip, piece by piece: first 1 + `chunk` frames of them, then `chunk`, then what remains.

    Args:
        video: float32 pixels (B, 1 + k s_t, H, W, 3), whole or as pieces of any numbers of frames in their order.
        chunk: latent frames computed at once, besides the shared one.

    Raises:
        ValueError: on a chunk below 1, on sizes that the strides do not divide, on pixels outside [0, 1], or if the
            frames are not 1 + k s_t: before the first piece where the clip is whole, else when the last piece has come.
    """
    return _stream(module, params, video, chunk, 'encode')


def decode_stream(module: Tokenizer, params, z: np.ndarray | Iterable, chunk: int = 1) -> Iterator[np.ndarray]:
    """Pixels of latents (B, 1 + k, h, w, c), whole or in pieces: first 1 + s_t `chunk` frames, then s_t `chunk`, ...

    Raises `ValueError` on a chunk below 1 or if there is no latent frame.
    """
    return _stream(module, params, z, chunk, 'decode')


def _stream(module, params, pieces, chunk, method):
    """The work of both; a function around a generator, so that errors come when it is called."""
    if chunk < 1:
        raise ValueError(f'a chunk of {chunk} latent frames must have at least 1')
    stride = math.prod(module.temporal_strides)
    stride_in, stride_out = (stride, 1) if method == 'encode' else (1, stride)

    def check(frames):
        if frames < 1 or (frames - 1) % stride_in:
            raise ValueError(f'{frames} frames are not 1 + k * {stride_in}')

    if hasattr(pieces, 'shape'):
        check(pieces.shape[1])
        pieces = [pieces]

    def generate():
        past, frames = None, 0
        for window in _windows(pieces, chunk * stride_in):
            shared = min(frames, 1)  # with the window before
            frames += window.shape[1] - shared
            check(frames)
            if method == 'encode':
                check_unit(window)
            new = window.shape[1] - 1
            window = np.pad(window, [(0, 0), (0, chunk * stride_in - new), *[(0, 0)] * 3], mode='edge')
            if past is None:
                past = Past.none(module, params, window, method)
            y, past = _compiled_step(module, params, past, window, method=method)
            yield np.asarray(y)[:, shared : 1 + new // stride_in * stride_out]
        check(frames)  # there may have been none

    return generate()


def _windows(pieces, new):
    """1 + `new` frames at a time, of which the first is the last of the window before; the last may have fewer."""
    window, shared = None, 0
    for piece in map(np.asarray, pieces):
        window = piece if window is None else np.concatenate([window, piece], axis=1)
        while window.shape[1] > new:
            yield window[:, : 1 + new]
            window, shared = window[:, new:], 1
    if window is not None and window.shape[1] > shared:
        yield window
