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

All this may be of the first `channels` of the latents only: DiT's published samples are guided on 3 of 4. Other
channels, and what a denoiser says about its variance, are those of the best prediction.

Classifier guidance (arXiv:2105.05233, algorithm 2) needs no condition of the denoiser's but a classifier of noisy
latents. Since eps = -sigma grad log p(z_t) in expectation, Bayes' rule makes of it the eps of p(z_t | y)^w p(z_t)^(1-w)

    eps~ = eps - w sigma grad log p(y | z_t)                                                                        (4)
    z0~  = z0 + w (sigma^2 / alpha) grad log p(y | z_t)                                                             (5)

where (5) follows from z_t = alpha z0 + sigma eps, and any other prediction from both. Where alpha is 0, z_t says
nothing about y, and nothing is added. The classifier is one of noisy latents, or one of clean latents that is asked
about the z0 that the denoiser predicts (arXiv:2302.07121, equation 6): `of_estimate`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from walt.diffusion.prediction import Cond, Denoise, Parametrisation, target, to_z0_eps
from walt.diffusion.schedules import Schedule, over_trailing
from walt.diffusion.variance import split_prediction

Scale = float | Callable[[jax.Array], jax.Array]
"""w, or t_B -> w_B."""

Null = Callable[[Cond], Cond]
"""Replaces the conditions to guide by by their null (label -> null class), in the same tree."""

LogProb = Callable[[jax.Array, jax.Array, Cond], jax.Array]
"""log_prob(z, t_B, cond) -> (B,), log p(y | z_t) of the y in `cond`, such as its label; each row by itself. Where rows
are the tokens of clips it is log p of the clips, as many as there are, each from its own tokens."""


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


def classifier_free(
    denoise: Denoise, scale: Scale, null: Null, rescale: float = 0.0, channels: int | None = None
) -> Denoise:
    """Returns the denoiser of equation (1): one call of `denoise` on the batch twice, conditional rows first.

    All rows receive the same `estimate`, which the sampler takes from the guided prediction.

    Args:
        denoise: the model.
        scale: 1 is no guidance, and returns `denoise` itself.
        null: takes away what to guide by.
        rescale: phi of equation (3).
        channels: of the latents that are guided, the first so many; all by default.
    """
    return by_condition(denoise, [(scale, null)], rescale, channels)


def by_condition(
    denoise: Denoise, guides: Sequence[tuple[Scale, Null]], rescale: float = 0.0, channels: int | None = None
) -> Denoise:
    """Returns the denoiser of equation (2): one call of `denoise` on the batch once for every guide and once more.

    Args:
        denoise: the model.
        guides: (scale, null) of every condition, in the order in which they are taken away: of (2), text then frames.
            Those at the end with scale 1 cost nothing: what they take away need not be.
        rescale: phi of equation (3).
        channels: of the latents that are guided, the first so many; all by default.
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
        return _away(predictions, scales, t_B, rescale, _guided_channels(channels, z))

    return guided


def autoguidance(
    denoise: Denoise, weak: Denoise, scale: Scale, rescale: float = 0.0, channels: int | None = None
) -> Denoise:
    """Returns the denoiser that goes away from `weak`, a smaller or less trained one of the same latents.

    Both are called with the same conditions and the same `estimate`.

    Args:
        denoise: the model, or a guided one.
        weak: the model to go away from.
        scale: 1 is no guidance, and returns `denoise` itself.
        rescale: phi of equation (3).
        channels: of the latents that are guided, the first so many; all by default.
    """
    _check(rescale)
    if scale == 1:
        return denoise

    def guided(z: jax.Array, t_B: jax.Array, cond: Cond) -> jax.Array:
        predictions = [model(z, t_B, cond).astype(jnp.float32) for model in (denoise, weak)]
        return _away(predictions, [scale], t_B, rescale, _guided_channels(channels, z))

    return guided


def by_classifier(
    denoise: Denoise, log_prob: LogProb, scale: Scale, *, schedule: Schedule, parametrisation: Parametrisation
) -> Denoise:
    """Returns the denoiser of equation (4), for every stepper; it has the gradient of `log_prob` beside each pass.

    Args:
        denoise: the model, or a guided one. Guidance with scale 0 makes it the unconditional one.
        log_prob: of what to guide towards; differentiable by z.
        scale: w; 0 is no guidance, and returns `denoise` itself.
        schedule, parametrisation: of the denoiser.
    """
    if scale == 0:
        return denoise

    def guided(z: jax.Array, t_B: jax.Array, cond: Cond) -> jax.Array:
        z = z.astype(jnp.float32)
        prediction = denoise(z, t_B, cond).astype(jnp.float32)
        gradient = jax.grad(lambda z: log_prob(z, t_B, cond).sum())(z)
        alpha_B, sigma_B = schedule.alpha_sigma(t_B)
        weight_B = (scale(t_B) if callable(scale) else scale) * sigma_B
        eps = -over_trailing(weight_B, z) * gradient
        per_alpha_B = jnp.where(alpha_B > 0, sigma_B / jnp.where(alpha_B > 0, alpha_B, 1), 0)
        z0 = -over_trailing(per_alpha_B, z) * eps
        eps = jnp.where(over_trailing(alpha_B > 0, z), eps, 0)
        # Predictions are linear in the pair (z0, eps), so that of the differences is the difference.
        return prediction.at[..., : z.shape[-1]].add(target(parametrisation, z0, eps, alpha_B, sigma_B))

    return guided


def check_classifier(classifier: object | None, scale: Scale) -> None:
    """Raises `ValueError` if there is a classifier and no guidance by it, or guidance by none."""
    if (classifier is None) != (scale == 0):
        there = 'no' if classifier is None else 'a'
        raise ValueError(f'classifier_guidance is {scale}, and there is {there} classifier')


def of_estimate(
    denoise: Denoise,
    log_prob: Callable[[jax.Array, Cond], jax.Array],
    *,
    schedule: Schedule,
    parametrisation: Parametrisation,
) -> LogProb:
    """Returns the `LogProb` of a classifier of clean latents: what it says about the z0 that is predicted at z_t.

    Its gradient goes through the denoiser, so a guided step costs four passes in place of one. A classifier of
    pictures, such as a packed one, takes z0 through the decoder (not `FrozenTokenizer.decode`, whose integers have no
    gradient) and its own patches:

        def log_prob(z0, cond):
            z0 = tokenizer.norm.denormalise(z0)
            video = tokenizer.module.apply({'params': tokenizer.params}, z0, method='decode')
            logits = classifier.apply({'params': params}, rows_of(video))
            return jnp.take_along_axis(jax.nn.log_softmax(logits), cond['label'][:, None], axis=1)[:, 0]

        own = of_estimate(bound(stage.denoiser, stage.params), log_prob, schedule=.., parametrisation=..)
        stage = dataclasses.replace(stage, classifier=own, classifier_guidance=1.0)

    Args:
        denoise: the model that is guided.
        log_prob: (z0, cond) -> (B,), differentiable.
    """

    def of_noisy(z: jax.Array, t_B: jax.Array, cond: Cond) -> jax.Array:
        prediction, _ = split_prediction(denoise(z, t_B, cond), z)
        z0, _ = to_z0_eps(parametrisation, prediction, z, *schedule.alpha_sigma(t_B))
        return log_prob(z0, cond)

    return of_noisy


def _guided_channels(channels: int | None, z: jax.Array) -> int:
    if channels is not None and not 1 <= channels <= z.shape[-1]:
        raise ValueError(f'guidance is of 1 to {z.shape[-1]} channels, those of the latents, not of {channels}')
    return channels or z.shape[-1]


def _away(
    predictions: Sequence[jax.Array], scales: Sequence[Scale], t_B: jax.Array, rescale: float, channels: int
) -> jax.Array:
    """Equations (2) and (3); `predictions` from the best to the worst, one more than `scales`."""
    rest, predictions = predictions[0][..., channels:], [prediction[..., :channels] for prediction in predictions]
    return jnp.concatenate([_guide(predictions, scales, t_B, rescale), rest], axis=-1)


def _guide(predictions: Sequence[jax.Array], scales: Sequence[Scale], t_B: jax.Array, rescale: float) -> jax.Array:
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
