"""Tokenizer of the quickstart: 32x32 clips of moving handwritten digits -> 4x4x8 latents a frame group.

python -m walt.train_tokenizer --config=configs/quickstart_tokenizer.py --workdir=runs/quickstart/tokenizer

Two CPU cores, 3 min 31 s with compilation; 25.6 dB PSNR on held-out clips of 17 frames (`python -m walt.evaluate`).
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 6
    config.steps = 800
    config.dtype = 'float32'
    # Short clips: the network is causal and shares its weights over time, so it does not need long ones to learn.
    config.data = dict(
        name='moving_digits',
        frames=9,
        size=32,
        digit_size=20,
        digits=1,
        speed=(0.25, 1.0),
        clips=20_000,
    )
    config.tokenizer = dict(
        name='causal_cnn',
        channels=8,
        multipliers=(1, 1, 4, 8),
        blocks=(0, 1, 1, 1),
        middle_blocks=0,
        spatial_strides=(2, 2, 2),
        temporal_strides=(1, 2, 2),
        latent_channels=8,
        bottleneck=dict(name='none'),
        groups=8,
    )
    config.losses = dict(reconstruction=5.0)
    config.perceptual = dict(name='none')
    config.discriminator = dict(name='none')
    config.start = dict(tokenizer_dir='', freeze_encoder=False)
    config.optimizer = dict(name='adamw', learning_rate=4e-3, warmup_steps=50, b1=0.9, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.99
    config.latent_norm_batches = 32
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 20
    config.checkpoint_every = 100
    config.validate_every = 100
    config.validation_batches = 4
    if mode == 'smoke':
        common.smoke(config)
        config.data.clips = 64
        config.latent_norm_batches = 2
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
