"""W.A.L.T-XL on UCF-101, class-conditional: 5x16x16x8 latents of 17x128x128 (table 8).

python -m walt.train_denoiser --config=configs/walt_ucf101_xl.py --workdir=runs/walt_ucf101_xl \
    --config.tokenizer_dir=runs/tokenizer_ucf101 --config.data.root=UCF101/train

Expected: FVD 36 +- 2 (table 1), without guidance, 50 steps of DDIM. 460.0M parameters.

Cost, by `python -m walt.plan --config=configs/walt_ucf101_xl.py --topology=v5p:2x2x4`: 23.7 GiB on each of 16 chips,
0.286 s a step, 58 to 72 % MFU, 76 chip-hours in all, without the tokenizer. Predicted: the run was not made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256
    config.steps = 60_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='video_folder',
        root='',
        frames=17,
        size=128,
        stride=1,
        flip=True,
        clips_per_file=1,
        validation_fraction=0.1,
    )
    config.tokenizer_dir = ''
    config.cache_latents = False
    config.text = dict(name='none')
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 16, 16, 8),
        classes=101,
        width=1152,
        depth=28,
        heads=16,
        patch=1,
        spatiotemporal_window=(8, 8),
        rank=2,
        remat='products',
    )
    config.start = dict(denoiser_dir='')
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(parametrisation='v', self_conditioning=0.9)
    config.conditioning = dict(dropout=0.0)
    config.sampler = dict(name='ddim', steps=50, guidance=1.0, eta=0.0)
    config.optimizer = dict(
        name='adamw', learning_rate=5e-4, warmup_steps=5000, b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1.0
    )
    config.ema_decay = 0.9999
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 50
    config.checkpoint_every = 1000
    config.validate_every = 5000
    config.validation_batches = 8
    if mode == 'smoke':
        common.smoke_denoiser(config)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
