"""Tokenizer for a folder of your own videos, one sub-folder a class: 17 frames of 64x64 -> 5x8x8x8 latents.

python -m walt.train_tokenizer --config=configs/video_folder_tokenizer.py --workdir=runs/mine/tokenizer \
    --config.data.root=PATH

A quarter of the paper's width, so that one accelerator trains it; not measured yet. `--config=...:smoke` takes the same
path in a few steps on a CPU.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 32
    config.steps = 100_000
    config.dtype = 'bfloat16'
    config.data = dict(name='video_folder', root='', frames=17, size=64, stride=1, flip=False, clips_per_file=100)
    config.tokenizer = dict(
        name='causal_cnn',
        channels=32,
        multipliers=(1, 2, 2, 4),
        blocks=(2, 2, 2, 2),
        middle_blocks=2,
        spatial_strides=(2, 2, 2),
        temporal_strides=(1, 2, 2),
        latent_channels=8,
        bottleneck=dict(name='none'),
        groups=32,
    )
    config.losses = dict(reconstruction=5.0)
    config.perceptual = dict(name='none')
    config.discriminator = dict(name='none')
    config.start = dict(tokenizer_dir='', freeze_encoder=False)
    config.optimizer = dict(name='adamw', learning_rate=1e-4, warmup_steps=2000, b1=0.9, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.999
    config.latent_norm_batches = 64
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 50
    config.checkpoint_every = 1000
    config.validate_every = 1000
    config.validation_batches = 8
    if mode == 'smoke':
        common.smoke(config)
        config.dtype = 'float32'
        config.tokenizer.blocks = (0, 0, 0, 1)
        config.tokenizer.middle_blocks = 0
        config.latent_norm_batches = 2
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
