"""Causal 3-D convolution, and moving between space-time and channels.

A convolution is causal when output frame i sees input frames <= i only: the clip is padded with k_t - 1 frames in front
and none behind. All padding repeats the edge, so a clip of one frame behaves like a 2-D convolution whose kernel is the
sum over time. With stride s a clip of 1 + s n frames becomes 1 + n (MAGVIT-v2, arXiv:2310.05737, section 3.2).

XLA's 3-D convolution is slow on CPUs. The same numbers come from 2-D convolutions of time-shifted frames, which is what
a CPU runs here; `lax.platform_dependent` keeps the native one everywhere else, also when a CPU host compiles for an
accelerator. `tests/benchmarks/conv.py` measures both.

Devices that share a clip split its rows, and exchange the borders that a convolution looks across. All of them do, or
none, and both what goes into a convolution and what comes out is told where to lie: XLA's partitioner (of JAX 0.10)
counts a kernel's gradient twice where rows are split along one axis of the mesh and another is idle, and gets
convolutions of a row or two for each device wrong where it has laid them out itself.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax import lax
from jax.nn import initializers

from walt.nn.einsum import zeros
from walt.nn.shards import shards
from walt.precision import PARAM_DTYPE

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]

UNPADDED: Pads = ((0, 0), (0, 0))

# A device has as many rows as this, or all. With fewer there are more borders than rows.
_LEAST_ROWS = 4

# Up to this width XLA's CPU convolutions waste most of their time; measured in `tests/benchmarks/conv.py`.
_FEW_CHANNELS = 8


def conv3d_native(x_BTHWC, kernel_THWIO, strides: Triple):
    """A valid 3-D convolution as one operation."""
    return lax.conv_general_dilated(
        x_BTHWC, kernel_THWIO, strides, 'VALID', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
    )


def conv3d_decomposed(x_BTHWC, kernel_THWIO, strides: Triple, zeros_hw: Pads = UNPADDED):
    """The same as `conv3d_native`, from 2-D convolutions of frames.

    Zeros around the rows and columns are the 2-D convolution's own: padded before a frame becomes a picture, they cost
    more than half as much again, since XLA does not see through the reshape between.
    """
    if strides == (1, 1, 1):
        return _unstrided(x_BTHWC, kernel_THWIO, zeros_hw)
    return _from_2d(x_BTHWC, kernel_THWIO, strides, zeros_hw, _form(kernel_THWIO))


def _form(kernel_THWIO) -> str:
    """Of `_from_2d`, the fastest for the values."""
    *_, channels_in, channels_out = kernel_THWIO.shape
    if channels_in < _FEW_CHANNELS:
        return 'in'
    return 'out' if channels_out <= _FEW_CHANNELS else 'sum'


def _from_2d(x_BTHWC, kernel_THWIO, strides: Triple, zeros_hw: Pads, form: str):
    """Takes the sum over the k_t time offsets in one of three places.

    sum     k_t convolutions, and their sum
    in      one convolution of k_t frames side by side in the channels
    out     one convolution to k_t times the channels, whose parts are shifted and summed
    """
    stride_t, *strides_hw = strides
    offsets = kernel_THWIO.shape[0]
    batch, frames_in = x_BTHWC.shape[:2]
    frames_out = (frames_in - offsets) // stride_t + 1

    def seen_from(offset, y_BTHWC):
        return y_BTHWC[:, offset : offset + (frames_out - 1) * stride_t + 1 : stride_t]

    def conv2d(frames_BTHWC, kernel_HWIO):
        y = lax.conv_general_dilated(
            rearrange(frames_BTHWC, 'B T H W C -> (B T) H W C'),
            kernel_HWIO,
            strides_hw,
            zeros_hw,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        return rearrange(y, '(B T) H W C -> B T H W C', B=batch)

    if form == 'in':
        frames = jnp.concatenate([seen_from(offset, x_BTHWC) for offset in range(offsets)], axis=-1)
        return conv2d(frames, rearrange(kernel_THWIO, 'T H W I O -> H W (T I) O'))
    if form == 'out':
        parts = jnp.split(conv2d(x_BTHWC, rearrange(kernel_THWIO, 'T H W I O -> H W I (T O)')), offsets, axis=-1)
        return sum(seen_from(offset, part) for offset, part in enumerate(parts))
    return sum(conv2d(seen_from(offset, x_BTHWC), kernel_THWIO[offset]) for offset in range(offsets))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unstrided(x_BTHWC, kernel_THWIO, zeros_hw: Pads):
    """With gradients of their own, since what is fastest for the values is not for them.

    Where channels become more, the gradient by the input is not a convolution at all: that would be over frames with
    k - 1 zeros around them, of small frames mostly zeros. Products of every position with every tap, added up where
    they belong, have none.
    """
    return _from_2d(x_BTHWC, kernel_THWIO, (1, 1, 1), zeros_hw, _form(kernel_THWIO))


def _forward(x_BTHWC, kernel_THWIO, zeros_hw: Pads):
    return _unstrided(x_BTHWC, kernel_THWIO, zeros_hw), (x_BTHWC, kernel_THWIO)


def _backward(zeros_hw: Pads, inputs, gradient_BTHWO):
    x_BTHWC, kernel_THWIO = inputs
    *_, channels_in, channels_out = kernel_THWIO.shape

    def pulled_back(form):
        _, pull_back = jax.vjp(lambda x, kernel: _from_2d(x, kernel, (1, 1, 1), zeros_hw, form), x_BTHWC, kernel_THWIO)
        return pull_back(gradient_BTHWO)

    if channels_out > channels_in:
        (top, _), (left, _) = zeros_hw
        height, width = x_BTHWC.shape[2:4]
        by_x = _by_products(gradient_BTHWO, kernel_THWIO)[:, :, top : top + height, left : left + width]
    else:
        by_x, _ = pulled_back('in')
    _, by_kernel = pulled_back('out' if channels_out <= _FEW_CHANNELS and channels_out < channels_in else 'sum')
    return by_x, by_kernel


def _by_products(gradient_BTHWO, kernel_THWIO):
    """The gradient by the input: in turn for every axis, what tap i of n gives lies i positions on, in n - 1 more."""

    def added_up(parts, axis):
        padding = np.zeros((len(parts), parts[0].ndim, 2), int)
        padding[:, axis] = [(tap, len(parts) - 1 - tap) for tap in range(len(parts))]
        return sum(map(jnp.pad, parts, padding))

    frames = []
    for kernel_HWIO in kernel_THWIO:
        taps_hw = jnp.einsum('BTHWO,hwIO->hwBTHWI', gradient_BTHWO, kernel_HWIO)
        rows = [added_up(taps_w, 3) for taps_w in taps_hw]
        frames.append(added_up(rows, 2))
    return added_up(frames, 1)


_unstrided.defvjp(_forward, _backward)


def conv3d(x_BTHWC, kernel_THWIO, strides: Triple = (1, 1, 1), zeros_hw: Pads = UNPADDED):
    """A 3-D convolution with zeros before and behind rows and columns, and else valid, in the form that the platform it
    is compiled for runs fastest."""
    around = ((0, 0), (0, 0), *zeros_hw, (0, 0))
    return lax.platform_dependent(
        x_BTHWC,
        kernel_THWIO,
        cpu=lambda x, kernel: conv3d_decomposed(x, kernel, strides, zeros_hw),
        default=lambda x, kernel: conv3d_native(jnp.pad(x, around), kernel, strides),
    )


def pad_causal(x_BTHWC, kernel: Triple):
    """Repeats the edge: k_t - 1 frames in front, (k - 1) // 2 and k // 2 pixels around."""
    kt, kh, kw = kernel
    for axis, before, after in ((1, kt - 1, 0), (2, (kh - 1) // 2, kh // 2), (3, (kw - 1) // 2, kw // 2)):
        x_BTHWC = _repeat_edges(x_BTHWC, axis, before, after)
    return x_BTHWC


def _repeat_edges(x, axis: int, before: int, after: int):
    """`jnp.pad` also slices the axes that it does not pad, and the gradient of that sends batches between devices."""
    first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, -1, None, axis=axis)
    parts = [jnp.repeat(first, before, axis)] * (before > 0) + [x] + [jnp.repeat(last, after, axis)] * (after > 0)
    return jnp.concatenate(parts, axis)


class CausalConv3d(nn.Module):
    """T-CausalConv: (B, T, H, W, C) -> (B, 1 + (T - 1) / s_t, H / s_h, W / s_w, features)."""

    features: int
    kernel: Triple = (3, 3, 3)
    strides: Triple = (1, 1, 1)
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    axes: Sequence[str] = ('in_channels', 'out_channels')

    @nn.compact
    def __call__(self, x_BTHWC):
        init = initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', in_axis=(0, 1, 2, 3), out_axis=4)
        return _convolve(self, self.pad(spread(x_BTHWC)), init, self.strides)

    def pad(self, x_BTHWC):
        """A method of its own because `walt.tokenizer.streaming` steps in here."""
        return pad_causal(x_BTHWC, self.kernel)


class SameConv3d(nn.Module):
    """A convolution with zeros around it, not causal: (B, T, H, W, C) -> (B, T / s_t, H / s_h, W / s_w, features).

    Of the k - s zeros along an axis, the odd one is behind.
    """

    features: int
    kernel: Triple = (3, 3, 3)
    strides: Triple = (1, 1, 1)
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    axes: Sequence[str] = ('in_channels', 'out_channels')

    @nn.compact
    def __call__(self, x_BTHWC):
        in_time, *zeros_hw = [((k - s) // 2, (k - s + 1) // 2) for k, s in zip(self.kernel, self.strides)]
        x_BTHWC = jnp.pad(spread(x_BTHWC), [(0, 0), in_time, (0, 0), (0, 0), (0, 0)])
        init = initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=(0, 1, 2, 3), out_axis=4)
        return _convolve(self, x_BTHWC, init, self.strides, tuple(zeros_hw))


def _convolve(layer: CausalConv3d | SameConv3d, x_BTHWC, init, strides: Triple = (1, 1, 1), zeros_hw: Pads = UNPADDED):
    """The parameters of `layer`, and its convolution of what was padded already but for `zeros_hw`."""
    shape = (*layer.kernel, x_BTHWC.shape[-1], layer.features)
    axes = ('kernel_t', 'kernel_h', 'kernel_w', *layer.axes)
    kernel = layer.param('kernel', nn.with_logical_partitioning(init, axes), shape, PARAM_DTYPE)
    # Whole at use. Split along both channel axes, XLA's partitioner gets its gradients wrong (openxla/xla#40034).
    kernel = nn.with_logical_constraint(kernel.astype(layer.dtype), (None,) * 5)
    y = conv3d(x_BTHWC.astype(layer.dtype), kernel, strides, zeros_hw)
    if layer.use_bias:
        bias_init = nn.with_logical_partitioning(zeros, (layer.axes[1],))
        y = y + layer.param('bias', bias_init, (layer.features,), PARAM_DTYPE).astype(layer.dtype)
    return spread(y)


def spread(x_BTHWC):
    """Splits rows between the devices that share a clip, where each then has enough of them; else each has all."""
    rows = 'rows' if x_BTHWC.shape[2] % (_LEAST_ROWS * shards('rows')) == 0 else None
    return nn.with_logical_constraint(x_BTHWC, ('batch', 'frames', rows, 'width', 'act_channels'))


def depth_to_space(x_BTHWC, strides: Triple):
    """(B, T, H, W, s_t s_h s_w C) -> (B, T s_t, H s_h, W s_w, C), channels in (s_t, s_h, s_w, C) order."""
    st, sh, sw = strides
    return rearrange(x_BTHWC, 'B T H W (st sh sw C) -> B (T st) (H sh) (W sw) C', st=st, sh=sh, sw=sw)


def space_to_depth(x_BTHWC, strides: Triple):
    """The inverse of `depth_to_space`."""
    st, sh, sw = strides
    return rearrange(x_BTHWC, 'B (T st) (H sh) (W sw) C -> B T H W (st sh sw C)', st=st, sh=sh, sw=sw)


def drop_first_frames(x_BTHWC, stride_t: int):
    """After an up-sampling in time: 1 + n frames have become s (1 + n); the first s - 1 go, which leaves 1 + s n."""
    return x_BTHWC[:, stride_t - 1 :]


def upsample_nearest(x_BTHWC, strides: Triple):
    """Repeats every position, and drops the first frames: the grid that `depth_to_space` makes."""
    for axis, stride in enumerate(strides, start=1):
        x_BTHWC = jnp.repeat(x_BTHWC, stride, axis=axis)
    return drop_first_frames(x_BTHWC, strides[0])
