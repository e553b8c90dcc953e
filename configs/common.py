"""What configurations share: the smoke modes."""

import math

import ml_collections


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same path in seconds: a few steps on a few clips. `--config=configs/NAME.py:smoke`."""
    config.steps = 4
    config.batch_size = min(config.batch_size, 8)
    config.optimizer.warmup_steps = 1
    config.log_every = config.checkpoint_every = config.validate_every = 2
    config.validation_batches = 1
    config.mesh.update(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    return config


def smoke_tokenizer(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`smoke` for a tokenizer of the paper's size: narrow, on small pictures, with every part and term in it."""
    smoke(config)
    config.batch_size = 2
    config.dtype = 'float32'
    config.data.size = 32
    config.tokenizer.channels = config.tokenizer.groups = config.discriminator.channels = 4
    config.tokenizer.blocks = (0, 1, 0, 0)
    config.tokenizer.middle_blocks = 0
    config.latent_norm_batches = 2
    return config


def smoke_denoiser(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`smoke` for a denoiser of the paper's size, on the latents of `smoke_tokenizer`; texts by a table of words."""
    smoke(config)
    config.batch_size = 2
    config.dtype = 'float32'
    denoiser, (frames, height, width, channels) = config.denoiser, config.denoiser.latent_shape
    windows = [name for name in ('spatial_window', 'spatiotemporal_window') if name in denoiser]
    shrink = min(4, math.gcd(height, width, *(extent for name in windows for extent in denoiser[name])))
    denoiser.latent_shape = (frames, height // shrink, width // shrink, channels)
    denoiser.width, denoiser.depth, denoiser.heads = 32, 2, 2
    for name in windows:
        denoiser[name] = tuple(extent // shrink for extent in denoiser[name])
    if 'hidden' in denoiser:
        denoiser.hidden = 64
    if 'text_shape' in denoiser:
        config.text = dict(name='wordllama', length=8)
        denoiser.text_shape = (8, 256)
    for data in (config.data, *(config.data[part] for part in ('clips', 'pictures') if part in config.data)):
        if 'size' in data:
            square = isinstance(data.size, int)
            data.size = data.size // shrink if square else tuple(side // shrink for side in data.size)
    return config


def smoke_packed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`smoke` for a denoiser of packed rows of the paper's size: narrow, on pixels of digits at mixed aspect ratios."""
    smoke(config)
    config.batch_size = 2
    config.dtype = 'float32'
    denoiser = config.denoiser
    denoiser.length, denoiser.most, denoiser.channels, denoiser.patch, denoiser.classes = 128, 8, 3, 4, 10
    denoiser.width, denoiser.heads, denoiser.depth = 32, 2, 2
    denoiser.extent = (1, *denoiser.extent[1:])
    config.data = dict(
        name='packed',
        source=dict(name='mixed_digits', pictures=64),
        patch=(1, 4, 4),
        length=128,
        most=8,
        resolution=dict(name='uniform', low=16.0, high=32.0),
    )
    config.tokenizer_dir = 'none'
    return config
