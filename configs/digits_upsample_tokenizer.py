"""Tokenizer of digits with hard edges, 32x32 -> 8x8x8 and 16x16 -> 4x4x8 latents, to hold super-resolution against
bicubic interpolation: each latent stands for 4x4 pixels, so that the tokenizer keeps the edges.

python -m walt.train_tokenizer --config=configs/digits_upsample_tokenizer.py --workdir=runs/digits/upsample_tokenizer

Not measured yet.
"""

import ml_collections

from configs import quickstart_tokenizer


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = quickstart_tokenizer.get_config(mode)
    config.data.crisp = True
    config.tokenizer.update(multipliers=(1, 4, 8), blocks=(1, 1, 1), spatial_strides=(2, 2), temporal_strides=(2, 2))
    return config
