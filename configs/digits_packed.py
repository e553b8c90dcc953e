"""DiT on packed rows of handwritten digits at mixed aspect ratios: pixels in patches of 4x4, no tokenizer.

python -m walt.train_denoiser --config=configs/digits_packed.py --workdir=runs/digits_packed
python -m walt.sample_packed --workdir=runs/digits_packed --shapes=1x24x20,1x16x36,1x36x16,1x12x64 --num=4

Pictures have one to three digits of a class, upright or lying, at sides of 16 to 32 pixels and aspect ratios (width to
height) from 1:7 to 4:1. The last of those shapes, 16:3, is wider than all of them.

Of 80 samples of each shape, eight of a digit, a NaViT (`configs/navit_classifier.py`, 98.6 % right on held-out
pictures) reads 100, 97.5, 92.5 and 93.8 % as the digit asked for (`python -m walt.evaluate --workdir=runs/digits_packed
--judge=runs/classifier --shapes=1x24x20,1x16x36,1x36x16,1x12x64 --samples=8 --seed=0`). About 19 minutes of processor
time.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 8
    config.steps = 3_000
    config.dtype = 'float32'
    config.data = dict(
        name='packed',
        source=dict(name='mixed_digits', digits=(1, 3), scale=4, stretch=1.25, pictures=20_000),
        patch=(1, 4, 4),
        length=128,
        most=12,
        resolution=dict(name='truncated_normal', low=16.0, high=32.0),
    )
    config.tokenizer_dir = 'none'
    config.cache_latents = False
    config.text = dict(name='none')
    config.start = dict(denoiser_dir='')
    config.denoiser = dict(
        name='packed',
        length=128,
        most=12,
        channels=3,
        extent=(1, 20, 20),
        classes=10,
        self_condition=False,
        layers=((0, 0, 0),),
        width=128,
        depth=6,
        heads=4,
        patch=4,
        rank=0,
        separate_adaln=True,
        rope=True,
        position='sinusoidal',
    )
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(name='packed', parametrisation='v', self_conditioning=0.0, average='clips')
    config.conditioning = dict(dropout=0.1)
    config.sampler = dict(name='ddim', steps=50, guidance=3.0, eta=0.0)
    config.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=100, b1=0.9, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.99
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 20
    config.checkpoint_every = 100
    config.validate_every = 200
    config.validation_batches = 4
    if mode == 'smoke':
        common.smoke(config)
        config.data.source.pictures = 64
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
