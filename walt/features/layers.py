"""What feature networks are made of: normalised input, convolutions with a ReLU, and the layout of their weights.

A weight tree holds `input`, the `mean` and the `deviation` of RGB in [0, 1] that the network was trained with, and
under the name of every convolution its `kernel` (height, width, in, out) and `bias`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from walt.weights import check_arrays

# How torchvision's networks see RGB.
TORCHVISION_INPUT = {'mean': (0.485, 0.456, 0.406), 'deviation': (0.229, 0.224, 0.225)}
# How Caffe's do: 0..255 minus the mean of ImageNet. They see BGR, for which `from_caffe` turns the first kernel round.
CAFFE_INPUT = {'mean': (122.67892 / 255, 116.66877 / 255, 104.00699 / 255), 'deviation': (1 / 255, 1 / 255, 1 / 255)}


def from_caffe(arrays: Mapping, names: Mapping[str, tuple[str, str]], shapes: Mapping[str, tuple], source) -> dict:
    """The tree of a network trained on Caffe's input. Kernels are (height, width, in, out).

    Args:
        arrays: all arrays of a file by their names in it.
        names: convolution -> names of its kernel and its bias in the file; the first convolution sees the pixels.
        shapes: convolution -> shape of its kernel, (height, width, in, out).
        source: the file, for messages.

    Raises:
        ValueError: if an array is missing or has another shape.
    """
    tree = _tree(arrays, names, shapes, source)
    first = tree[next(iter(names))]
    first['kernel'] = first['kernel'][:, :, ::-1]
    return tree | {'input': _input(CAFFE_INPUT)}


def from_torchvision(arrays: Mapping, names: Mapping[str, str], shapes: Mapping[str, tuple], source) -> dict:
    """The same from a state dict of torchvision, whose kernels are (out, in, height, width).

    `names` maps a convolution to the name of its module in the file. Raises as `from_caffe`.
    """
    modules = {name: (f'{module}.weight', f'{module}.bias') for name, module in names.items()}
    shapes = {name: (shape[3], shape[2], shape[0], shape[1]) for name, shape in shapes.items()}
    tree = _tree(arrays, modules, shapes, source, channels_out=0)
    for name in names:
        tree[name]['kernel'] = tree[name]['kernel'].transpose(2, 3, 1, 0)
    return tree | {'input': _input(TORCHVISION_INPUT)}


def _tree(arrays, names, shapes, source, channels_out=3) -> dict:
    expected = {}
    for name, (kernel, bias) in names.items():
        expected |= {kernel: shapes[name], bias: (shapes[name][channels_out],)}
    arrays = check_arrays(arrays, expected, source)
    return {name: {'kernel': arrays[kernel], 'bias': arrays[bias]} for name, (kernel, bias) in names.items()}


def _input(statistics) -> dict:
    return {name: np.array(values, np.float32) for name, values in statistics.items()}


def cast(weights, dtype):
    """The tree with its convolutions, and so the activations, in `dtype`; pixels are normalised in float32 before."""
    convolutions = {name: jax.tree.map(lambda leaf: leaf.astype(dtype), weights[name]) for name in weights}
    return convolutions | {'input': weights['input']}


def normalise(frames_NHWC, weights):
    """RGB in [0, 1] -> what the network was trained on, float32."""
    return (frames_NHWC.astype(jnp.float32) - weights['input']['mean']) / weights['input']['deviation']


def convolve(x_NHWC, weights, stride: int = 1, padding: str = 'SAME'):
    """relu(kernel * x + bias), in the dtype of the weights.

    In float32 the products are exact to float32 on every machine: TPUs and GPUs would take shorter ones, and a figure
    would depend on where it was measured.
    """
    kernel_HWIO = weights['kernel']
    y_NHWC = lax.conv_general_dilated(
        x_NHWC.astype(kernel_HWIO.dtype),
        kernel_HWIO,
        (stride, stride),
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=lax.Precision.HIGHEST if kernel_HWIO.dtype == jnp.float32 else None,
    )
    return jax.nn.relu(y_NHWC + weights['bias'])


def max_pool(x_NHWC, window: int, beyond_HW=(0, 0)):
    """The largest of `window` x `window`, at every second place; `beyond_HW` rows, columns of nothing come last."""
    padding = ((0, 0), *((0, beyond) for beyond in beyond_HW), (0, 0))
    return lax.reduce_window(x_NHWC, -jnp.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), padding)
