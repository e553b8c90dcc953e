"""What a training step of the tokenizer minimises: two sums of weighted terms, the tokenizer's and the discriminator's.

Both come from one forward pass: the reconstruction is computed once and the discriminator sees it once, and each side
takes the gradient of its own sum by its own parameters.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import struct

from walt.tokenizer import losses
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.bottleneck import code_counts, code_metrics
from walt.tokenizer.discriminator import Discriminator

ADVERSARIAL = ('adversarial', 'r1', 'lecam')
"""Terms that need a discriminator."""

# The weight of LFQ's entropy starts at three times its value and comes down linearly.
_ENTROPY_BOOST, _ENTROPY_STEPS = 3.0, 2000


@struct.dataclass
class Logits:
    """Moving averages of the discriminator's logits, which LeCam holds new ones against."""

    real: jax.Array
    fake: jax.Array

    @classmethod
    def zero(cls) -> 'Logits':
        return cls(jnp.zeros(()), jnp.zeros(()))


@struct.dataclass
class Losses:
    """Of the two sides; `discriminator` is None where there is none."""

    tokenizer: jax.Array
    discriminator: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted terms of one configuration.

    Attributes:
        tokenizer: the module.
        weights: of every term; all terms of the bottleneck, the feature network and the discriminator must have one.
        perceptual: whether a feature network is passed to every call.
        discriminator: the module, or None.
        freeze_encoder: trains the decoder alone; the encoder and the bottleneck are constants.

    Raises:
        ValueError: at construction, where weights do not fit what there is to weigh.
    """

    tokenizer: Tokenizer
    weights: Mapping[str, float]
    perceptual: bool = False
    discriminator: Discriminator | None = None
    freeze_encoder: bool = False

    def __post_init__(self):
        terms = {'reconstruction', *self.tokenizer.bottleneck.terms}
        terms |= {'perceptual'} if self.perceptual else set()
        terms |= set(ADVERSARIAL) if self.discriminator else set()
        missing, unknown = sorted(terms - set(self.weights)), sorted(set(self.weights) - terms - {'scale_equivariance'})
        if missing or unknown:
            raise ValueError(
                f'losses {dict(self.weights)}: no weight for {missing}, nothing to weigh for {unknown}; bottleneck '
                f'{type(self.tokenizer.bottleneck).__name__}, perceptual network {"on" if self.perceptual else "off"}, '
                f'discriminator {"on" if self.discriminator else "off"}'
            )

    def __call__(
        self,
        params,
        discriminator_params,
        averages: Logits | None,
        perceptual: Callable | None,
        video_BTHWC,
        key_B,
        step,
    ) -> tuple[Losses, dict[str, jax.Array]]:
        """(losses of both sides, every term and other metrics before weighing).

        Args:
            params, discriminator_params: of the two modules; the second None without a discriminator.
            averages: of the logits so far.
            perceptual: frames, frames -> distance of each pair.
            video_BTHWC: float32 in [0, 1].
            key_B: a key a clip for what the bottleneck draws.
            step: updates so far.
        """
        if self.freeze_encoder:
            params = {part: tree if part == 'decoder' else jax.lax.stop_gradient(tree) for part, tree in params.items()}
        variables = {'params': params}
        reconstruction_BTHWC, bottled = self.tokenizer.apply(variables, video_BTHWC, key_B)
        terms = {'reconstruction': losses.reconstruction(reconstruction_BTHWC, video_BTHWC), **bottled.terms}
        if self.perceptual:
            real, fake = (x.reshape(-1, *x.shape[2:]) for x in (video_BTHWC, reconstruction_BTHWC))
            terms['perceptual'] = perceptual(real, fake).mean()
        if 'scale_equivariance' in self.weights:
            halved = self.tokenizer.apply(variables, losses.halve(bottled.z_BTHWC), method='decode')
            terms['scale_equivariance'] = losses.reconstruction(halved, losses.halve(video_BTHWC))
        metrics = {'latent_std': bottled.z_BTHWC.std(), 'input_min': video_BTHWC.min(), 'input_max': video_BTHWC.max()}
        if bottled.codes_BTHW is not None:
            size = self.tokenizer.bottleneck.size(self.tokenizer.latent_channels)
            metrics |= code_metrics(code_counts(bottled.codes_BTHW, size))

        penalties = {}
        if self.discriminator:

            def discriminate(video_BTHWC):
                return self.discriminator.apply({'params': discriminator_params}, video_BTHWC)

            real_B, r1 = losses.logits_and_r1(discriminate, video_BTHWC)
            fake_B = discriminate(reconstruction_BTHWC)
            terms['adversarial'] = losses.adversarial(fake_B)
            penalties = {'r1': r1, 'lecam': losses.lecam(real_B, fake_B, averages.real, averages.fake)}
            metrics |= {'logit_real': real_B.mean(), 'logit_fake': fake_B.mean()}
            metrics['discriminator'] = losses.discriminator(real_B, fake_B)

        weights = dict(self.weights)
        if 'entropy' in weights:
            weights['entropy'] *= jnp.maximum(1.0, _ENTROPY_BOOST - (_ENTROPY_BOOST - 1) * step / _ENTROPY_STEPS)
        total = sum(weights[name] * value for name, value in terms.items())
        opposed = None
        if self.discriminator:
            opposed = metrics['discriminator'] + sum(weights[name] * value for name, value in penalties.items())
        return Losses(total, opposed), metrics | terms | penalties
