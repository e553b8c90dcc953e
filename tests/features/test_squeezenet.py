"""SqueezeNet with the weights that launch/install.sh installs: that it is the network it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from skimage.transform import resize

from walt.features import squeezenet
from walt.features.layers import CAFFE_INPUT, TORCHVISION_INPUT
from walt.weights import read_numpy_pickle

# Photos that scikit-image ships -> classes of ImageNet.
PHOTOS = {
    'chelsea': (281, 282, 283, 284, 285),  # cats of houses
    'coffee': (967,),  # espresso
    'camera': (872,),  # tripod
}


@pytest.fixture(scope='module')
def classify():
    """Logits (N, 1000) of frames (N, H, W, 3): the features, and the classifier that comes in the same file."""
    weights = squeezenet.load()
    kernel_IO, bias_O = read_numpy_pickle(squeezenet.PACKAGED.find())['conv10']

    @jax.jit
    def logits(frames_NHWC):
        fire9_NHWC = squeezenet.features(weights, frames_NHWC)[-1]
        return jnp.mean(jax.nn.relu(fire9_NHWC @ kernel_IO[0, 0] + bias_O), axis=(1, 2))

    return logits


def square(photo):
    """The middle of a photo, (227, 227, 3) in [0, 1]."""
    side = min(photo.shape[:2])
    top, left = ((extent - side) // 2 for extent in photo.shape[:2])
    if photo.ndim == 2:
        photo = np.stack([photo] * 3, axis=-1)
    return resize(photo[top : top + side, left : left + side], (227, 227), order=1, anti_aliasing=True)


def test_a_cat_is_a_cat_and_a_coffee_an_espresso(classify):
    frames_NHWC = np.stack([square(getattr(skimage.data, name)()) for name in PHOTOS]).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(classify(frames_NHWC)))
    for row, (name, classes) in zip(probabilities, PHOTOS.items()):
        assert row[list(classes)].sum() > 0.9, (name, row.argsort()[::-1][:5])


@pytest.mark.parametrize('side', [squeezenet.SMALLEST, 32, 33, 34])
def test_layers_have_the_channels_and_grids_of_lpips(side):
    weights = jax.eval_shape(squeezenet.load)
    layers = jax.eval_shape(squeezenet.features, weights, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))
    assert tuple(layer.shape[-1] for layer in layers) == squeezenet.CHANNELS
    grids = {17: (8, 4, 2, 1), 32: (15, 7, 3, 1), 33: (16, 8, 4, 2), 34: (16, 8, 4, 2)}[side]
    assert [layer.shape[1] for layer in layers] == [*grids, *grids[-1:] * 3]


def test_the_same_network_in_the_layout_of_torchvision_has_the_same_features(tmp_path, write_torch, rng):
    """Kernels (out, in, height, width), RGB, other statistics of the input: which conv1 takes in, as it has no padding.

    k (255 s x' + 255 m - M) with x' = (x - m) / s is what Caffe's conv1 makes of RGB x in [0, 1], M being its mean.
    """
    weights = squeezenet.load()
    s, m = (np.array(TORCHVISION_INPUT[name]) for name in ('deviation', 'mean'))
    ratio, offset = s / CAFFE_INPUT['deviation'], (m - CAFFE_INPUT['mean']) / CAFFE_INPUT['deviation']
    kernel, bias = weights['conv1']['kernel'], weights['conv1']['bias']
    convolutions = {
        'features.0': {'kernel': kernel * ratio[:, None], 'bias': bias + (kernel * offset[:, None]).sum((0, 1, 2))}
    }
    for fire, number in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12)):
        for part, name in {'squeeze1x1': 'squeeze', 'expand1x1': 'expand1x1', 'expand3x3': 'expand3x3'}.items():
            convolutions[f'features.{number}.{name}'] = weights[f'fire{fire}/{part}']
    tensors = {'classifier.1.bias': np.zeros(1000, np.float32)}
    for module, convolution in convolutions.items():
        tensors[f'{module}.weight'] = np.float32(convolution['kernel'].transpose(3, 2, 0, 1))
        tensors[f'{module}.bias'] = np.float32(convolution['bias'])
    turned = squeezenet.load(write_torch(tmp_path / 'squeezenet1_1.pth', tensors))
    frames = rng.uniform(size=(1, 32, 32, 3)).astype(np.float32)
    features = jax.jit(squeezenet.features)
    for expected, layer in zip(features(weights, frames), features(turned, frames)):
        np.testing.assert_allclose(layer, expected, atol=1e-4 * np.max(expected))


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'\.pkl .* \.pth .*weights\.bin'):
        squeezenet.load(tmp_path / 'weights.bin')
