"""Small tokenizers of real camera footage, 5x64x64 -> 2x8x8xc, to hold choices of the tokenizer against each other.

./launch/tokenizer_experiments.sh        fetches clips, trains every arm on a CPU, measures: docs/tokenizer.md
python -m walt.train_tokenizer --config=configs/tokenizer_real_clips.py:full --workdir=runs/real_clips/full

`--config=...:ARM` picks what differs:

    full                     all terms of MAGVIT-v2: reconstruction, perceptual, adversarial
    reconstruction           the mean squared error alone, latents of 8 channels
    c4, c16                  the same with latents of 4 and of 16 channels
    kl, vq, lfq, fsq         the same with another bottleneck, 8 channels
    smoke                    `full` in a few steps
"""

import ml_collections

from configs import common

_MSE = dict(reconstruction=5.0)
_OFF = dict(perceptual=dict(name='none'), discriminator=dict(name='none'))

ARMS = {
    'full': {},
    'reconstruction': dict(losses=_MSE, **_OFF),
    'c4': dict(losses=_MSE, latent_channels=4, **_OFF),
    'c16': dict(losses=_MSE, latent_channels=16, **_OFF),
    'kl': dict(losses=_MSE | dict(kl=1e-4), bottleneck=dict(name='kl'), **_OFF),
    'vq': dict(
        losses=_MSE | dict(codebook=1.0, commitment=0.25, coverage=0.25), bottleneck=dict(name='vq', codes=1024), **_OFF
    ),
    'lfq': dict(losses=_MSE | dict(commitment=0.25, entropy=0.02), bottleneck=dict(name='lfq'), **_OFF),
    'fsq': dict(losses=_MSE, bottleneck=dict(name='fsq', levels=(5,) * 8), **_OFF),
    'smoke': {},
}


def get_config(mode: str = 'full') -> ml_collections.ConfigDict:
    mode = mode or 'full'
    if mode not in ARMS:
        raise ValueError(f'unknown mode {mode!r}; choices: {sorted(ARMS)}')
    arm = ARMS[mode]
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 4
    config.steps = 400
    config.dtype = 'float32'
    config.data = dict(
        name='video_folder', root='.cache/real_clips/80', frames=5, size=64, stride=2, flip=True, clips_per_file=200
    )
    config.tokenizer = dict(
        name='causal_cnn',
        channels=8,
        multipliers=(1, 2, 4, 8),
        blocks=(0, 1, 1, 1),
        middle_blocks=0,
        spatial_strides=(2, 2, 2),
        temporal_strides=(1, 2, 2),
        latent_channels=arm.get('latent_channels', 8),
        bottleneck=arm.get('bottleneck', dict(name='none')),
        groups=8,
        remat='none',
    )
    config.losses = arm.get('losses', dict(reconstruction=5.0, perceptual=0.1, adversarial=0.1, r1=10.0, lecam=0.001))
    config.perceptual = arm.get('perceptual', dict(name='squeezenet'))
    config.discriminator = arm.get('discriminator', dict(name='residual_3d', channels=8, multipliers=(2, 4, 4, 4)))
    config.start = dict(tokenizer_dir='', freeze_encoder=False)
    config.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=50, b1=0.5, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.99
    config.latent_norm_batches = 16
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 20
    config.checkpoint_every = 100
    config.validate_every = 100
    config.validation_batches = 8
    if mode == 'smoke':
        common.smoke(config)
        config.latent_norm_batches = 2
    return config
