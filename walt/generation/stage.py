"""A trained denoiser and its tokenizer, ready to sample: labels -> noise -> latents -> pixels.

A clip is addressed by (seed, index): the batch that it is made in does not change it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from walt.denoiser.walt import Walt
from walt.diffusion.guidance import Scale, classifier_free
from walt.diffusion.prediction import Parametrisation
from walt.diffusion.sampler import draw_noise, sample
from walt.diffusion.schedules import Schedule
from walt.diffusion.steppers import Stepper
from walt.parallel.mesh import check_batch
from walt.parallel.rules import activate
from walt.parallel.shard import put_batch
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer


@dataclasses.dataclass(frozen=True)
class Stage:
    """Samples clips of one resolution.

    Attributes:
        denoiser, params: the network and its (averaged) parameters.
        frozen: the tokenizer whose latents it was trained on.
        schedule, parametrisation, self_conditioning: as in training.
        stepper, steps, guidance, rescale: the sampler; guidance 1 is none, and rescale 0.
        mesh: the devices that share a batch.
    """

    denoiser: Walt
    params: Any
    frozen: FrozenTokenizer
    schedule: Schedule
    parametrisation: Parametrisation
    self_conditioning: bool
    stepper: Stepper
    steps: int
    guidance: Scale
    mesh: Mesh
    rescale: float = 0.0

    @functools.cached_property
    def _sample(self):
        def run(params, frozen: FrozenTokenizer, batch):
            def denoise(z, t_B, cond):
                return self.denoiser.apply({'params': params}, z, t_B, cond)

            def null(cond):
                return cond | {'label': jnp.full_like(cond['label'], self.denoiser.classes)}

            z = sample(
                classifier_free(denoise, self.guidance, null, self.rescale),
                draw_noise(batch['key'], self.denoiser.latent_shape),
                {'label': batch['label']},
                schedule=self.schedule,
                stepper=self.stepper,
                steps=self.steps,
                key_B=batch['key'],
                self_conditioning=self.self_conditioning,
                parametrisation=self.parametrisation,
            )
            return frozen.decode(z)

        return jax.jit(run)

    def clips(self, labels: Sequence[int], seed: int, batch_size: int) -> Iterator[np.ndarray]:
        """Yields batches of clips, uint8 (n, T, H, W, 3), n <= batch_size, in the order of `labels`.

        Raises:
            ValueError: on a label that is no class, naming the range; on a batch that the devices do not divide.
        """
        wrong = sorted({label for label in labels if not 0 <= label < self.denoiser.classes})
        if wrong:
            raise ValueError(f'labels {wrong} are not in 0 .. {self.denoiser.classes - 1}')
        check_batch(self.mesh, batch_size)
        for start in range(0, len(labels), batch_size):
            some = np.asarray(labels[start : start + batch_size], np.int32)
            # The last batch is filled up, so that everything runs in one compiled shape.
            batch = put_batch(self.mesh, {'label': np.resize(some, batch_size)})
            batch['key'] = stream(jax.random.key(seed), 'clip', jnp.arange(start, start + batch_size))
            with activate(self.mesh):
                yield np.asarray(self._sample(self.params, self.frozen, batch))[: len(some)]
