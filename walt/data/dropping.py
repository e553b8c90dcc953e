"""Which share of a clip's tokens is left out in training (NaViT, arXiv:2307.06304, sections 2.3 and 3.3).

Fewer tokens of a clip mean more clips in a row. A share d is drawn for every clip, and multiplied by a schedule over
training if there is one:

    constant        d = rate
    beta            d = most u,  u ~ Beta with mean m = mean / most and variance 0.3 m (1 - m)
    by resolution   d ~ N(mu, std) cut off at two std; mu rises from `low` to `high` with the tokens n of the clip,
                    linearly between 1 and the tokens of a row: large clips can spare more

    rho(n) = first + (last - first) sigmoid((n - middle) / width)       n: clips trained on so far

NaViT finds that it helps to drop less and less (first > last). The paper gives rho as the share itself, which is the
constant rate of 1 here. Every clip keeps one token at least; which ones stay is drawn evenly.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import special

from walt.data.resolution import truncated_normal

Dropping = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(u_N, tokens_N, number_N) -> share_N: numbers in (0, 1), tokens of the clips as a part of a row, and how many clips
were trained on before -> the share of tokens to drop."""


@dataclasses.dataclass(frozen=True)
class Always:
    """The schedule that changes nothing."""

    def __call__(self, number_N: np.ndarray) -> np.ndarray:
        return np.ones(len(number_N))


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """rho(n), from `first` to `last`, half of the way after `middle` clips."""

    first: float
    last: float
    middle: float
    width: float

    def __post_init__(self):
        if not (0 <= self.first <= 1 and 0 <= self.last <= 1) or self.width <= 0:
            raise ValueError(
                f'a schedule goes between shares in [0, 1], over a positive width; not from {self.first} '
                f'to {self.last} over {self.width}'
            )

    def __call__(self, number_N: np.ndarray) -> np.ndarray:
        return self.first + (self.last - self.first) * special.expit((number_N - self.middle) / self.width)


Schedule = Always | Sigmoid


@dataclasses.dataclass(frozen=True)
class Keep:
    """Nothing is dropped."""

    def __call__(self, u_N: np.ndarray, tokens_N: np.ndarray, number_N: np.ndarray) -> np.ndarray:
        return np.zeros(len(u_N))


KEEP = Keep()


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same share of every clip."""

    rate: float
    schedule: Schedule = Always()

    def __post_init__(self):
        _check(self.rate, self.rate)

    def __call__(self, u_N: np.ndarray, tokens_N: np.ndarray, number_N: np.ndarray) -> np.ndarray:
        return self.rate * self.schedule(number_N)


@dataclasses.dataclass(frozen=True)
class Beta:
    """Shares between 0 and `most`, on average `mean`."""

    mean: float
    most: float
    schedule: Schedule = Always()

    def __post_init__(self):
        if not 0 < self.mean < self.most <= 1:
            raise ValueError(f'0 < mean < most <= 1 does not hold for {self.mean} and {self.most}')

    def __call__(self, u_N: np.ndarray, tokens_N: np.ndarray, number_N: np.ndarray) -> np.ndarray:
        mean, total = self.mean / self.most, 1 / 0.3 - 1  # the variance is m (1 - m) / (a + b + 1)
        return self.most * special.betaincinv(mean * total, (1 - mean) * total, u_N) * self.schedule(number_N)


@dataclasses.dataclass(frozen=True)
class ByResolution:
    """About `low` of clips of a single token, about `high` of those that fill a row."""

    low: float
    high: float
    std: float = 0.02
    schedule: Schedule = Always()

    def __post_init__(self):
        _check(self.low, self.high)
        if self.std <= 0:
            raise ValueError(f'std is positive, not {self.std}')

    def __call__(self, u_N: np.ndarray, tokens_N: np.ndarray, number_N: np.ndarray) -> np.ndarray:
        mean_N = self.low + (self.high - self.low) * tokens_N
        share_N = truncated_normal(u_N, mean_N, self.std, mean_N - 2 * self.std, mean_N + 2 * self.std)
        return np.clip(share_N, 0, 1) * self.schedule(number_N)


def kept(share_N: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
    """int64 (N,): how many tokens of each clip stay, one at least."""
    return np.maximum(1, tokens_N - np.rint(share_N * tokens_N)).astype(np.int64)


def _check(low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise ValueError(f'shares rise from 0 to 1 at most, but are {low} to {high}')
