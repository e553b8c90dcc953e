"""How a tokenizer does on held-out clips."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from walt.data.contact_sheet import contact_sheet
from walt.parallel.distributed import fetch
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.bottleneck import code_counts, code_metrics
from walt.tokenizer.pixels import from_uint8, to_uint8

# Clips and frames of each in the picture of reconstructions.
_CLIPS, _FRAMES = 4, 6


def make_tokenizer_validation(tokenizer: Tokenizer):
    """Returns validate(params, perceptual, batches of uint8 videos) -> metrics:

    psnr                         dB, mean over clips
    perceptual                   mean over frames, where a feature network is given
    code_use, perplexity         over all batches, where the bottleneck is discrete
    latent_mean/i, latent_std/i  of each latent channel
    reconstructions              a picture: each clip's frames above what became of them
    """
    size = tokenizer.bottleneck.size(tokenizer.latent_channels)

    @jax.jit
    def examine(params, perceptual, video_BTHWC):
        real = from_uint8(video_BTHWC)
        fake, bottled = tokenizer.apply({'params': params}, real)
        fake = jnp.clip(fake, 0, 1)
        mse_B = jnp.square(fake - real).mean((1, 2, 3, 4))
        means = {
            'psnr': -10 * jnp.log10(mse_B).mean(),
            'latent_mean': bottled.z_BTHWC.mean((0, 1, 2, 3)),
            'latent_square': jnp.square(bottled.z_BTHWC).mean((0, 1, 2, 3)),
        }
        if perceptual is not None:
            means['perceptual'] = perceptual(*(x.reshape(-1, *x.shape[2:]) for x in (real, fake))).mean()
        counts_K = code_counts(bottled.codes_BTHW, size) if size else 0
        return means, counts_K, video_BTHWC[:_CLIPS], to_uint8(fake[:_CLIPS])

    def validate(params, perceptual, batches: Iterable[jax.Array]) -> dict[str, float | np.ndarray]:
        all_means, counts_K = [], 0
        for number, video_BTHWC in enumerate(batches):
            means, counts_of_batch_K, real, fake = examine(params, perceptual, video_BTHWC)
            all_means.append(means)
            counts_K += counts_of_batch_K
            if number == 0:
                pair = np.stack(fetch([real, fake]), axis=1)
        means = jax.tree.map(lambda *values: np.mean(values, axis=0), *fetch(all_means))
        counts_K = fetch(counts_K)
        mean_C, square_C = means.pop('latent_mean'), means.pop('latent_square')
        std_C = np.sqrt(np.maximum(square_C - np.square(mean_C), 0))
        channels = range(tokenizer.latent_channels)
        return (
            means
            | {f'latent_mean/{i}': mean_C[i] for i in channels}
            | {f'latent_std/{i}': std_C[i] for i in channels}
            | (code_metrics(counts_K) if size else {})
            | {'reconstructions': contact_sheet(np.concatenate(pair), min(_FRAMES, pair.shape[2]))}
        )

    return validate
