"""How well a tokenizer gives back the clips that it encodes."""

from collections.abc import Sequence

import jax
import numpy as np

from walt.evaluation.quality import psnr, ssim
from walt.features.perceptual import PerceptualDistance
from walt.tokenizer.bottleneck import code_counts, code_metrics
from walt.tokenizer.frozen import FrozenTokenizer
from walt.tokenizer.pixels import from_uint8, to_uint8


def measure_tokenizer(
    frozen: FrozenTokenizer, videos_NTHWC: np.ndarray, batch_size: int, distances: Sequence[PerceptualDistance] = ()
) -> dict[str, float]:
    """Means over clips of PSNR, SSIM and perceptual distances of uint8 reconstructions, and how codes are used."""
    size = frozen.module.bottleneck.size(frozen.module.latent_channels)

    @jax.jit
    def reconstruct(frozen, video_BTHWC):
        fake_BTHWC, bottled = frozen.module.apply({'params': frozen.params}, from_uint8(video_BTHWC))
        return to_uint8(fake_BTHWC), code_counts(bottled.codes_BTHW, size) if size else 0

    @jax.jit
    def distance(perceptual, fake_BTHWC, real_BTHWC):
        frames = (from_uint8(video).reshape(-1, *video.shape[2:]) for video in (fake_BTHWC, real_BTHWC))
        return perceptual(*frames).reshape(len(real_BTHWC), -1).mean(1)

    batches = [videos_NTHWC[i : i + batch_size] for i in range(0, len(videos_NTHWC), batch_size)]
    fakes, counts = zip(*(jax.device_get(reconstruct(frozen, batch)) for batch in batches))
    reconstructions = np.concatenate(fakes)
    measured = {
        'psnr_db': psnr(reconstructions, videos_NTHWC).mean(),
        'ssim': ssim(reconstructions, videos_NTHWC).mean(),
    }
    for perceptual in distances:
        of_clips = [distance(perceptual, fake, real) for fake, real in zip(fakes, batches)]
        measured[f'perceptual_{perceptual.name}'] = np.concatenate(of_clips).mean()
    measured |= code_metrics(sum(counts)) if size else {}
    return {name: float(value) for name, value in measured.items()}
