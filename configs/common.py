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
