"""Noise schedules: how much of the clean latents is left at time t (W.A.L.T, section 3).

    z_t = sqrt(gamma(t)) z_0 + sqrt(1 - gamma(t)) eps,    eps ~ N(0, I),    t in [0, 1]                             (1)

where gamma falls from 1 (clean) to 0 (noise). We write alpha = sqrt(gamma) and sigma = sqrt(1 - gamma), so that
alpha^2 + sigma^2 = 1: the variance of latents of variance 1 is preserved.

W.A.L.T's schedule (table 8) is linear in beta: from 1e-4 to 0.02 over K = 1000 steps. It has two readings,

    gamma(k / K) = prod_{j <= k} (1 - beta_j)                            discrete,  k ~ U{1, ..., K}                (2)
    gamma(t) = exp(-int_0^t beta(s) ds),  beta(s) = K beta_{sK}          its limit, t ~ U(0, 1)                     (3)

Both end at alpha = 0.006: the last step still shows a little of the clean latents, which the noise that sampling starts
from does not. W.A.L.T (section 5.2) shifts and scales alpha to end at zero SNR (arXiv:2305.08891, algorithm 1),

    alpha_k <- (alpha_k - alpha_K) alpha_1 / (alpha_1 - alpha_K)                                                    (4)

which keeps the first step as it was; in the limit the first step is t = 0, where alpha = 1.

Two more, neither of them the paper's. The cosine schedule (arXiv:2102.09672, section 3.2) ends a little above zero SNR,

    beta_k = min(1 - f(k / K) / f((k - 1) / K), 0.999),    f(t) = cos^2(pi / 2 (t + 0.008) / 1.008)                 (5)

and rectified flow (arXiv:2209.03003) leaves the circle for a straight line, alpha = 1 - t and sigma = t. Its times are
drawn evenly or logit-normally (arXiv:2403.03206, section 3.1), and both those and the sampler's are shifted towards the
noise (its section 5.3.2), by sqrt(m / n) for latents of m numbers where n need no shift:

    t <- shift t / (1 + (shift - 1) t)                                                                              (6)
"""

import dataclasses
import functools
import math
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from walt.randomness import uniform

Level = tuple[jax.Array, jax.Array]
"""(alpha, sigma) at some times."""


class Schedule(Protocol):
    """What the loss and the sampler ask of a noise schedule."""

    zero_terminal_snr: bool
    """Whether alpha is exactly 0 at t = 1."""

    variance_preserving: bool
    """Whether alpha^2 + sigma^2 = 1 at every t."""

    def alpha_sigma(self, t: jax.typing.ArrayLike) -> Level:
        """Returns alpha and sigma, float32, in the shape of `t` in [0, 1]: 0 is clean, 1 is noise."""

    def draw_times(self, key_B: jax.Array) -> jax.Array:
        """Draws a time to train at from each key: t_B, float32."""

    def sampling_times(self, steps: int, last: float | None = None) -> np.ndarray:
        """Returns the times 1, ..., 0 that a sampler of `steps` steps visits: (steps + 1,) float32, decreasing.

        All but the 0 are evenly spaced from 1 to `last`, which is 1 / steps by default: then the 0 is too.
        """


class Discrete:
    """Schedules of `steps` noise levels from a float64 table: `_alphas()` is alpha at the steps 1, ..., K."""

    variance_preserving: ClassVar[bool] = True

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """alpha and sigma at the steps 0 (clean), 1, ..., K."""
        alpha = np.concatenate([[1.0], self._alphas()])
        return alpha.astype(np.float32), np.sqrt(1 - alpha**2).astype(np.float32)

    def alpha_sigma(self, t: jax.typing.ArrayLike) -> Level:
        """Returns alpha and sigma, float32, of the step nearest to `t`, in the shape of `t`."""
        step = jnp.round(jnp.asarray(t, jnp.float32) * self.steps).astype(jnp.int32)
        alpha, sigma = self._table
        return jnp.asarray(alpha)[step], jnp.asarray(sigma)[step]

    def draw_times(self, key_B: jax.Array) -> jax.Array:
        """Draws t = k / K, k uniform on 1, ..., K: the clean step is not trained."""
        step_B = jax.vmap(lambda key: jax.random.randint(key, (), 1, self.steps + 1))(key_B)
        return step_B / jnp.float32(self.steps)

    def sampling_times(self, steps: int, last: float | None = None) -> np.ndarray:
        """Returns the steps nearest to even spacing: of 1000 steps 50 are the trailing (1000, 980, ..., 20, 0) / 1000.

        With `last` 1 / 1000, 250 are (1000, 996, 992, ..., 5, 1, 0) / 1000: those that IDDPM respaces to.
        """
        if steps > self.steps:
            raise ValueError(f'{steps} sampler steps do not fit a schedule of {self.steps} steps')
        if last is None:
            return (np.round(_even(steps) * self.steps) / self.steps).astype(np.float32)
        _check_last(steps, last)
        # IDDPM counts from 0, which says where a half is rounded to.
        visited = np.round(np.linspace(self.steps - 1, last * self.steps - 1, steps)) + 1
        if visited[-1] < 1 or (np.diff(visited) >= 0).any():
            raise ValueError(f'{steps} times from 1 to {last} do not fit a schedule of {self.steps} steps')
        return (np.append(visited, 0) / self.steps).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DiscreteLinear(Discrete):
    """Equation (2), the paper's schedule, and equation (4)."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = True

    def __post_init__(self):
        _check_linear(self.steps, self.beta_start, self.beta_end)

    def _alphas(self) -> np.ndarray:
        alpha = np.sqrt(np.cumprod(1 - np.linspace(self.beta_start, self.beta_end, self.steps)))
        if self.zero_terminal_snr:
            alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        return alpha


@dataclasses.dataclass(frozen=True)
class Cosine(Discrete):
    """Equation (5): `offset` keeps the first betas from vanishing, `max_beta` the last alpha."""

    steps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999
    zero_terminal_snr: ClassVar[bool] = False

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f'a cosine schedule has 2 steps or more, not {self.steps}')
        if self.offset < 0 or not 0 < self.max_beta < 1:
            raise ValueError(f'0 <= offset and 0 < max_beta < 1 do not hold for {self.offset} and {self.max_beta}')

    def _alphas(self) -> np.ndarray:
        angle = (np.arange(self.steps + 1) / self.steps + self.offset) / (1 + self.offset) * np.pi / 2
        gamma = np.square(np.cos(angle))
        return np.sqrt(np.cumprod(1 - np.minimum(1 - gamma[1:] / gamma[:-1], self.max_beta)))


@dataclasses.dataclass(frozen=True)
class ContinuousLinear:
    """Equation (3): the limit of `DiscreteLinear` with the same fields; beta_start and beta_end are per step of it."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = True
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self):
        _check_linear(self.steps, self.beta_start, self.beta_end)

    def _decay(self, start, end):
        """Returns int beta(s) ds / 2 from start to end, by the trapezoid, which is exact for a linear beta."""
        middle = self.beta_start + (self.beta_end - self.beta_start) * (start + end) / 2
        return self.steps * middle * (end - start) / 2

    def alpha_sigma(self, t: jax.typing.ArrayLike) -> Level:
        """Returns alpha and sigma, float32, in the shape of `t`.

        Neither end may lose digits: near t = 0 sigma comes from lost = 1 - alpha, as sigma^2 = lost (2 - lost), and
        near t = 1 equation (4) takes alpha - alpha_K as alpha (1 - alpha_K / alpha), each difference by expm1.
        """
        t = jnp.asarray(t, jnp.float32)
        alpha = jnp.exp(-self._decay(0, t))
        lost = -jnp.expm1(-self._decay(0, t))
        if self.zero_terminal_snr:
            lost_in_all = -math.expm1(-self._decay(0, 1))
            alpha = alpha * -jnp.expm1(-self._decay(t, 1)) / lost_in_all
            lost = lost / lost_in_all
        near_clean = lost < 0.5
        sigma = jnp.sqrt(jnp.where(near_clean, lost * (2 - lost), 1 - jnp.square(alpha)))
        return jnp.where(near_clean, 1 - lost, alpha), sigma

    def draw_times(self, key_B: jax.Array) -> jax.Array:
        """Draws t ~ U(0, 1)."""
        return uniform(key_B)

    def sampling_times(self, steps: int, last: float | None = None) -> np.ndarray:
        """Returns `steps` + 1 times: evenly spaced from 1 to `last`, and 0."""
        return _even(steps, last).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - t, sigma = t.

    Attributes:
        shift: of equation (6); 1 is none, 3 is the choice of arXiv:2403.03206 for pictures of 1024 pixels a side.
        logit_normal: (location, scale) of logit(t) in training, before the shift; None draws t ~ U(0, 1).
    """

    shift: float = 1.0
    logit_normal: tuple[float, float] | None = None
    zero_terminal_snr: ClassVar[bool] = True
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self):
        if self.shift <= 0:
            raise ValueError(f'shift is positive, not {self.shift}')
        if self.logit_normal is not None and (len(self.logit_normal) != 2 or self.logit_normal[1] <= 0):
            raise ValueError(f'logit_normal is None or (location, scale > 0), not {self.logit_normal}')

    def _shifted(self, t):
        return self.shift * t / (self.shift * t + (1 - t))  # as (6), and exact at both ends

    def alpha_sigma(self, t: jax.typing.ArrayLike) -> Level:
        """Returns alpha and sigma, float32, in the shape of `t`, which is a time after the shift."""
        t = jnp.asarray(t, jnp.float32)
        return 1 - t, t

    def draw_times(self, key_B: jax.Array) -> jax.Array:
        """Draws t as `logit_normal` says, and shifts it."""
        if self.logit_normal is None:
            return self._shifted(uniform(key_B))
        location, scale = self.logit_normal
        return self._shifted(jax.nn.sigmoid(location + scale * jax.vmap(jax.random.normal)(key_B)))

    def sampling_times(self, steps: int, last: float | None = None) -> np.ndarray:
        """Returns `steps` + 1 times: evenly spaced from 1 to `last` before the shift, and 0."""
        return self._shifted(_even(steps, last)).astype(np.float32)


def corrupt(z0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Equation (1). `z0` and `eps` are (B, ...), `alpha` and `sigma` (B,) or scalars."""
    return over_trailing(alpha, z0) * z0 + over_trailing(sigma, z0) * eps


def over_trailing(x_B: jax.Array, like: jax.Array) -> jax.Array:
    """Gives `x_B`, (B,) or a scalar, the trailing axes of length 1 that multiply it into `like`, (B, ...)."""
    return jnp.expand_dims(x_B, tuple(range(jnp.ndim(x_B), like.ndim)))


def _even(steps: int, last: float | None = None) -> np.ndarray:
    if steps < 1:
        raise ValueError(f'a sampler takes at least 1 step, not {steps}')
    if last is None:
        return np.arange(steps, -1, -1) / steps
    _check_last(steps, last)
    return np.append(np.linspace(1, last, steps), 0)


def _check_last(steps: int, last: float):
    if not 0 < last < 1 or steps < 2:
        raise ValueError(f'2 or more times go from 1 to one between 0 and 1, not {steps} to {last}')


def _check_linear(steps: int, beta_start: float, beta_end: float):
    if steps < 2:
        raise ValueError(
            f'a schedule from beta_start={beta_start} to beta_end={beta_end} has 2 steps or more, not {steps}'
        )
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f'0 < beta_start <= beta_end < 1 does not hold for {beta_start} and {beta_end}')
