"""What configurations share: the smoke mode."""

import ml_collections


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same path in seconds: a few steps on a few clips. `--config=configs/NAME.py:smoke`."""
    config.steps = 4
    config.batch_size = min(config.batch_size, 8)
    config.optimizer.warmup_steps = 1
    config.log_every = config.checkpoint_every = config.validate_every = 2
    config.validation_batches = 1
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
