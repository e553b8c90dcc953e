"""Tokenizer of the animated emoji that launch/emoji.sh fetches: 17x64x64 -> 5x8x8x8 latents.

python -m walt.train_tokenizer --config=configs/emoji_tokenizer.py:small --workdir=runs/emoji/tokenizer

`small` is for a CPU: a narrow network and the mean squared error alone, 22.2 dB of 213 held-out clips after 37 minutes
on one core of an AMD EPYC server. Without it, one accelerator trains a wider one with all terms of MAGVIT-v2; that was
not run yet.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 32
    config.steps = 20_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='video_folder',
        root='.cache/emoji/64/train',
        validation_root='.cache/emoji/64/validation',
        validation_fraction=0.0,
        frames=9,
        size=64,
        clips_per_file=8,
    )
    config.tokenizer = dict(
        name='causal_cnn',
        channels=64,
        multipliers=(1, 2, 2, 4),
        blocks=(1, 2, 2, 2),
        middle_blocks=2,
        spatial_strides=(2, 2, 2),
        temporal_strides=(1, 2, 2),
        latent_channels=8,
        bottleneck=dict(name='none'),
        groups=16,
    )
    config.losses = dict(reconstruction=5.0, perceptual=0.1, adversarial=0.1, r1=10.0, lecam=0.001)
    config.perceptual = dict(name='squeezenet')
    config.discriminator = dict(name='residual_3d', channels=32, multipliers=(2, 4, 4, 4))
    config.start = dict(tokenizer_dir='', freeze_encoder=False)
    config.optimizer = dict(name='adamw', learning_rate=2e-4, warmup_steps=500, b1=0.0, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.999
    config.latent_norm_batches = 64
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 20
    config.checkpoint_every = 500
    config.validate_every = 500
    config.validation_batches = 4
    if mode in ('small', 'smoke'):
        config.batch_size = 8
        config.steps = 1500
        config.dtype = 'float32'
        config.data.frames = 5
        config.tokenizer.update(channels=8, multipliers=(1, 2, 4, 8), blocks=(0, 1, 1, 1), middle_blocks=0, groups=8)
        config.losses = dict(reconstruction=5.0)
        config.perceptual = dict(name='none')
        config.discriminator = dict(name='none')
        config.optimizer.update(learning_rate=2e-3, warmup_steps=50, b1=0.9)
        config.ema_decay = 0.99
    if mode == 'smoke':
        common.smoke(config)
        config.latent_norm_batches = 2
    elif mode not in ('', 'small'):
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'small', 'smoke'")
    return config
