"""Tokenizer of digits with hard edges, 32x32 -> 16x16x8 latents a frame group, to hold super-resolution against bicubic
interpolation: each latent stands for 2x2 pixels, so that the tokenizer keeps edges, also those of clips of half the size.

python -m walt.train_tokenizer --config=configs/digits_upsample_tokenizer.py --workdir=runs/digits/upsample_tokenizer

Not measured yet.
"""

import ml_collections

from configs import quickstart_tokenizer


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = quickstart_tokenizer.get_config(mode)
    config.data.crisp = True
    config.tokenizer.update(multipliers=(1, 2, 4), blocks=(1, 1, 1), spatial_strides=(2, 1), temporal_strides=(2, 2))
    return config
