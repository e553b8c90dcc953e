"""Video tokenizer of W.A.L.T for text to video: 17x128x128 at 8 frames a second -> 5x16x16x8 (table 8).

python -m walt.train_tokenizer --config=configs/tokenizer_t2v.py --workdir=runs/tokenizer_t2v \
    --config.data.root=VIDEOS [--config.start.tokenizer_dir=runs/images]

Expected: no figure is published for the tokenizer alone. The network is convolutional: one tokenizer serves all three
stages, or `--config.data.size` trains one for each. `start.tokenizer_dir`, if given, is a tokenizer of images with
these multipliers.

Cost: the step is that of configs/tokenizer_ucf101.py, 0.739 s on 64 chips of v5p, predicted; 13,136 chip-hours in all.
The run was not made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256
    config.steps = 1_000_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='video_folder', root='', frames=17, size=128, fps=8.0, flip=True, clips_per_file=1, validation_fraction=0.1
    )
    config.tokenizer = dict(
        name='causal_cnn',
        channels=128,
        multipliers=(1, 2, 2, 4),
        blocks=(4, 4, 4, 4),
        middle_blocks=4,
        spatial_strides=(2, 2, 2),
        temporal_strides=(1, 2, 2),
        latent_channels=8,
        kernel_t=3,
        down_kernel=3,
        bottleneck=dict(name='none'),
        groups=32,
        remat='none',
    )
    config.losses = dict(reconstruction=5.0, perceptual=0.1, adversarial=0.1, r1=10.0, lecam=0.001)
    config.perceptual = dict(name='squeezenet')
    config.discriminator = dict(name='residual_3d', channels=128, multipliers=(2, 4, 4, 4, 4), kernel_t=3)
    config.start = dict(tokenizer_dir='', freeze_encoder=False)
    config.optimizer = dict(
        name='adamw', learning_rate=1e-4, warmup_steps=5000, b1=0.0, b2=0.99, weight_decay=0.0, clip_norm=1.0
    )
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
        common.smoke_tokenizer(config)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
