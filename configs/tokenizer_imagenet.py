"""Image tokenizer of W.A.L.T on ImageNet: 256x256 -> 1x32x32x8 (table 8, first column).

python -m walt.train_tokenizer --config=configs/tokenizer_imagenet.py --workdir=runs/tokenizer_imagenet \
    --config.data.root=IMAGENET/train

Expected: no figure is published for this tokenizer; MAGVIT-v2 reports 1.15 rFID for its own at 128 pixels. The
multipliers of the video tokenizer, `--config.tokenizer.multipliers="(1,2,2,4)" --config.data.size=128`, make one that
`start.tokenizer_dir` of a video tokenizer inflates.

Cost, by `python -m walt.plan --config=configs/tokenizer_imagenet.py --topology=v5p:4x4x4`: 13.0 GiB on each of 64
chips, 0.101 s a step, 26 to 30 % MFU, 2,418 chip-hours in all; compiling takes half an hour of a processor core.
Predicted: the run was not made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256
    config.steps = 1_351_231  # 270 epochs of 1,281,167 images
    config.dtype = 'bfloat16'
    config.data = dict(name='image_folder', root='', size=256, crop=(0.8, 1.0), flip=True, validation_fraction=0.01)
    config.tokenizer = dict(
        name='causal_cnn',
        channels=128,
        multipliers=(1, 1, 2, 4),
        blocks=(4, 4, 4, 4),
        middle_blocks=4,
        spatial_strides=(2, 2, 2),
        temporal_strides=(1, 1, 1),
        latent_channels=8,
        kernel_t=1,
        down_kernel=3,
        bottleneck=dict(name='none'),
        groups=32,
        remat='none',
    )
    config.losses = dict(reconstruction=5.0, perceptual=0.1, adversarial=0.1, r1=10.0, lecam=0.001)
    config.perceptual = dict(name='squeezenet')
    config.discriminator = dict(name='residual_3d', channels=128, multipliers=(2, 4, 4, 4, 4), kernel_t=1)
    config.start = dict(tokenizer_dir='', freeze_encoder=False)
    config.optimizer = dict(
        name='adamw',
        learning_rate=1e-4,
        warmup_steps=5005,  # an epoch
        b1=0.0,
        b2=0.99,
        weight_decay=0.0,
        clip_norm=1.0,
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
