"""What a denoiser is conditioned on: which entries `cond` has, and what stands for "nothing given".

    label         int32 (B,), or (B, T) where rows may be stacks of pictures           nothing: the class `classes`
    text          (B, S, E), or (B, T, S, E)                                           nothing: the text of ''
    text_mask     bool, the same without E
    frames        (B, T, H, W, C), latents of the given frames, zeros elsewhere        nothing: zeros
    frames_mask   (B, T), 1 where a frame is given, 0 where not                        nothing: zeros
    low           (B, T, H / u, W / u, C), latents of the same clip at low resolution
    low_t         (B,), the time whose noise was added to `low`
    image         bool (B,), rows that are stacks of T pictures
    estimate      (B, T, H, W, C), the denoiser's own last estimate of z_0, zeros where there is none

A given frame may be noisy; then its entry of `frames_mask` is alpha of the noise's time: how far to trust it.

Guidance compares the prediction under some condition with that under nothing: `without`. It leaves `low` and `image`
alone, which say what is being made.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from walt.nn.conv import Triple


class Denoiser(Protocol):
    """What training, sampling and planning ask of a network, a Linen module; the rest of it is its own business."""

    latent_shape: tuple[int, int, int, int]
    """(frames, height, width, channels) of the latents."""

    classes: int
    """Without the null class, which comes after them; 0 without labels."""

    conditions: dict[str, tuple[int, ...]]
    """The entries of `cond` that it takes, all of them and no others, and the shape of a row of each."""

    grid: Triple
    """(T, H, W) in tokens."""

    windows: dict[str, Triple]
    """What attends to each other, by kind of layer, in tokens."""

    def check_shards(self, shards: int) -> None:
        """Raises `ValueError` if this many devices cannot share the height of a clip, naming the counts."""

    def init(self, key: jax.Array, z_BTHWC, t_B, cond: Mapping[str, jax.Array]) -> Any: ...

    def apply(self, variables: Any, z_BTHWC, t_B, cond: Mapping[str, jax.Array]) -> jax.Array: ...


def bound(denoiser: Denoiser, params: Any):
    """The `Denoise` of a network and its parameters. The loss and the samplers have an `estimate` for every network,
    and one that does not condition on itself is not given it."""

    def denoise(z_BTHWC, t_B, cond: Mapping[str, jax.Array]):
        told = {name: value for name, value in cond.items() if name in denoiser.conditions or name != 'estimate'}
        return denoiser.apply({'params': params}, z_BTHWC, t_B, told)

    return denoise


def check_self_conditioning(denoiser: Denoiser, self_conditioning: float) -> None:
    """Raises `ValueError` if a network is to be given its estimate and takes none."""
    if self_conditioning and 'estimate' not in denoiser.conditions:
        raise ValueError(
            f'self_conditioning is {self_conditioning}, but the denoiser takes no estimate: its conditions are '
            f'{sorted(denoiser.conditions)}'
        )


def check_inputs(denoiser: Denoiser, z_BTHWC, cond: Mapping[str, jax.Array]) -> None:
    """Raises `ValueError` on latents or conditions that a network is not built for, naming both shapes of each."""
    if z_BTHWC.shape[1:] != tuple(denoiser.latent_shape):
        raise ValueError(
            f'latents of shape {z_BTHWC.shape[1:]}, but the denoiser was built for {denoiser.latent_shape}'
        )
    given, expected = {name: tuple(value.shape[1:]) for name, value in cond.items()}, denoiser.conditions
    if given != expected:
        wrong = sorted(name for name in given | expected if given.get(name) != expected.get(name))
        told = [f'{name}: {given.get(name, "absent")}, expected {expected.get(name, "absent")}' for name in wrong]
        raise ValueError('the conditions of a row do not fit the denoiser: ' + '; '.join(told))


def text_shape(denoiser: Denoiser) -> tuple[int, ...]:
    """(S, E) of a text's embedding; () of a network without texts."""
    return denoiser.conditions.get('text', ())[-2:]


def upsampling(denoiser: Denoiser) -> int:
    """How many times finer than the given low-resolution latents a network's are; 1 where it is given none."""
    return denoiser.latent_shape[1] // denoiser.conditions['low'][1] if 'low' in denoiser.conditions else 1


@struct.dataclass
class NullText:
    """The embedding of the empty string: `text_SE` and `mask_S`."""

    text_SE: jax.Array
    mask_S: jax.Array


def given_frames(z_BTHWC, given_BT, alpha_B=1.0) -> dict[str, jax.Array]:
    """`frames` and `frames_mask` that give the latent frames `given_BT` (bool) of z, of which alpha_B is not noise."""
    frames = jnp.where(given_BT[..., None, None, None], z_BTHWC, 0)
    return {'frames': frames, 'frames_mask': given_BT * jnp.reshape(jnp.asarray(alpha_B, jnp.float32), (-1, 1))}


_DTYPES = {'label': jnp.int32, 'text_mask': jnp.bool_, 'image': jnp.bool_}


def abstract(shapes: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`cond` of `rows` rows in shapes; `shapes` are a denoiser's `conditions`."""
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), _DTYPES.get(name, jnp.float32)) for name, shape in shapes.items()
    }


GUIDABLE = ('label', 'text', 'frames')


def without(
    cond: Mapping[str, jax.Array],
    parts: Iterable[str] = GUIDABLE,
    *,
    classes: int,
    null_text: NullText | None = None,
    rows_B: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """`cond` with nothing in place of some of its parts; parts that it does not have are passed over.

    Args:
        parts: some of 'label', 'text', 'frames'.
        classes: of the denoiser.
        null_text: needed where a text is taken away.
        rows_B: the rows to do this to, bool; all by default.

    Raises:
        ValueError: for a part that cannot be taken away, or a text with nothing to put in its place.
    """
    cond = dict(cond)
    if wrong := sorted(set(parts) - set(GUIDABLE)):
        raise ValueError(f'conditions {wrong} cannot be taken away; those that can: {GUIDABLE}')
    nothing = {}
    if 'label' in parts and 'label' in cond:
        nothing['label'] = classes
    if 'text' in parts and 'text' in cond:
        if null_text is None:
            raise ValueError("the condition 'text' can only be taken away where the null text is known, and it is None")
        nothing |= {'text': null_text.text_SE, 'text_mask': null_text.mask_S}
    if 'frames' in parts and 'frames' in cond:
        nothing |= {'frames': 0, 'frames_mask': 0}
    for name, value in nothing.items():
        there = cond[name]
        value = jnp.broadcast_to(jnp.asarray(value, there.dtype), there.shape)
        chosen = True if rows_B is None else jnp.expand_dims(rows_B, tuple(range(1, there.ndim)))
        cond[name] = jnp.where(chosen, value, there)
    return cond
