"""Guidance: away from a worse prediction, towards a better one.

Classifier-free guidance (arXiv:2207.12598) goes away from what the denoiser says without the condition,

    f~(z_t, c) = f(z_t, null) + w (f(z_t, c) - f(z_t, null))                                                        (1)

autoguidance (arXiv:2406.02507) from what a weaker denoiser says with it. Two conditions, text T and frames F, may have
a scale each, one after another:

    f~ = f(0, 0) + w_F (f(0, F) - f(0, 0)) + w_T (f(T, F) - f(0, F))                                                (2)

The scale w is a number or a function of t_B (B,), 0 clean and 1 noise, that returns w_B: `PowerCosine`, `Interval`.

A large w makes predictions too large. Rescaling (arXiv:2305.08891, section 3.4) gives f~ back, by a share phi, the
standard deviation of the best prediction f, that of an example over all its numbers:

    f~ <- phi (std f / std f~) f~ + (1 - phi) f~                                                                    (3)

Every prediction of `walt.diffusion.prediction` is affine in z0, so guiding v, eps or z0 is the same thing; but not so
rescaling it. (3) is of what the denoiser predicts: v in that paper and in W.A.L.T.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from walt.diffusion.prediction import Cond, Denoise
from walt.diffusion.schedules import over_trailing

Scale = float | Callable[[jax.Array], jax.Array]
"""w, or t_B -> w_B."""

Null = Callable[[Cond], Cond]
"""Replaces the conditions to guide by by their null (label -> null class), in the same tree."""


@dataclasses.dataclass(frozen=True)
class PowerCosine:
    """w(t) = 1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2: 1 at noise, `scale` when clean (MDT, arXiv:2303.14389).

    W.A.L.T guides its ImageNet model so (table 7) and names neither value; those of MDT's sampler are the defaults.
    """

    scale: float = 3.8
    power: float = 4.0

    def __post_init__(self):
        if self.power <= 0:
            raise ValueError(f'power is positive, not {self.power}')

    def __call__(self, t_B: jax.Array) -> jax.Array:
        """Returns w_B."""
        return 1 + (self.scale - 1) * (1 - jnp.cos(jnp.pi * (1 - t_B) ** self.power)) / 2


@dataclasses.dataclass(frozen=True)
class Interval:
    """`scale` at low <= t <= high, no guidance elsewhere (arXiv:2404.07724). Both predictions are made all the same."""

    scale: float
    low: float
    high: float

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f'0 <= low < high <= 1 does not hold for {self.low} and {self.high}')

    def __call__(self, t_B: jax.Array) -> jax.Array:
        """Returns w_B."""
        return jnp.where((self.low <= t_B) & (t_B <= self.high), self.scale, 1.0)


def classifier_free(denoise: Denoise, scale: Scale, null: Null, rescale: float = 0.0) -> Denoise:
    """Returns the denoiser of equation (1): one call of `denoise` on the batch twice, conditional rows first.

    All rows receive the same `estimate`, which the sampler takes from the guided prediction.

    Args:
        denoise: the model.
        scale: 1 is no guidance, and returns `denoise` itself.
        null: takes away what to guide by.
        rescale: phi of equation (3).
    """
    return by_condition(denoise, [(scale, null)], rescale)


def by_condition(denoise: Denoise, guides: Sequence[tuple[Scale, Null]], rescale: float = 0.0) -> Denoise:
    """Returns the denoiser of equation (2): one call of `denoise` on the batch once for every guide and once more.

    Args:
        denoise: the model.
        guides: (scale, null) of every condition, in the order in which they are taken away: of (2), text then frames.
            Those at the end with scale 1 cost nothing: what they take away need not be.
        rescale: phi of equation (3).
    """
    _check(rescale)
    guides = list(guides)
    while guides and guides[-1][0] == 1:
        guides.pop()
    if not guides:
        return denoise
    scales, nulls = zip(*guides)

    def guided(z: jax.Array, t_B: jax.Array, cond: Cond) -> jax.Array:
        conds = [cond]
        for null in nulls:
            conds.append(null(conds[-1]) | {'estimate': cond['estimate']})
        rows = [(z, t_B, some) for some in conds]
        stacked = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
        predictions = jnp.split(denoise(*stacked).astype(jnp.float32), len(rows))
        return _away(predictions, scales, t_B, rescale)

    return guided


def autoguidance(denoise: Denoise, weak: Denoise, scale: Scale, rescale: float = 0.0) -> Denoise:
    """Returns the denoiser that goes away from `weak`, a smaller or less trained one of the same latents.

    Both are called with the same conditions and the same `estimate`.

    Args:
        denoise: the model, or a guided one.
        weak: the model to go away from.
        scale: 1 is no guidance, and returns `denoise` itself.
        rescale: phi of equation (3).
    """
    _check(rescale)
    if scale == 1:
        return denoise

    def guided(z: jax.Array, t_B: jax.Array, cond: Cond) -> jax.Array:
        predictions = [model(z, t_B, cond).astype(jnp.float32) for model in (denoise, weak)]
        return _away(predictions, [scale], t_B, rescale)

    return guided


def _away(predictions: Sequence[jax.Array], scales: Sequence[Scale], t_B: jax.Array, rescale: float) -> jax.Array:
    """Equations (2) and (3); `predictions` from the best to the worst, one more than `scales`."""
    result = predictions[-1]
    for better, worse, scale in reversed(list(zip(predictions, predictions[1:], scales))):
        weight = over_trailing(scale(t_B), better) if callable(scale) else scale
        result = result + weight * (better - worse)
    if rescale == 0:
        return result
    axes = tuple(range(1, result.ndim))
    best, found = (jnp.std(x, axis=axes, keepdims=True) for x in (predictions[0], result))
    shrunk = best / jnp.maximum(found, jnp.finfo(jnp.float32).tiny) * result  # 0 where the prediction is constant
    return rescale * shrunk + (1 - rescale) * result


def _check(rescale: float):
    if not 0 <= rescale <= 1:
        raise ValueError(f'rescale is a share in [0, 1], not {rescale}')
