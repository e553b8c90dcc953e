"""DiT-B/2 on packed rows of ImageNet's latents, at the aspect ratios of its pictures and sides of 192 to 384 pixels.

python -m walt.encode --config=configs/dit_packed.py --tokenizer_dir=runs/tokenizer_imagenet_4 --out=LATENTS \
    --split=train --config.data.source.root=IMAGENET/train        # and the same with --split=validation
python -m walt.train_denoiser --config=configs/dit_packed.py:latents --workdir=runs/dit_packed \
    --config.tokenizer_dir=runs/tokenizer_imagenet_4 --config.data.source.root=LATENTS
python -m walt.sample_packed --workdir=runs/dit_packed --shapes=1x256x256,1x192x336,1x336x192,1x160x400 --labels=207

The tokenizer is `configs/tokenizer_imagenet.py` with `--config.tokenizer.latent_channels=4`. The network predicts the
velocity of rectified flow, as SiT's. A row of 1024 tokens holds four pictures of 256x256, or seven of the smallest.

No figure is published for it, and the run was not made. Cost, by `python -m walt.plan --config=configs/dit_packed.py
--devices=64`, in which a clip is a row: 1.6e19 FLOPs in all, 4.8 GiB on each of 64 devices; at 40 % of a TPU v5p's peak
(459 TFLOP/s) that is 25 chip-hours.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 64  # rows of 4 pictures each, more or less
    config.steps = 400_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='fitted',
        source=dict(name='whole_images', root='', validation_fraction=0.01),
        patch=(16, 16),
        most=1024,
        resolution=dict(name='truncated_normal', low=192.0, high=384.0),
    )
    config.tokenizer_dir = ''
    config.cache_latents = False
    config.text = dict(name='none')
    config.start = dict(denoiser_dir='')
    config.denoiser = dict(
        name='packed',
        length=1024,
        most=8,
        channels=4,
        extent=(1, 64, 64),
        classes=1000,
        self_condition=False,
        layers=((0, 0, 0),),
        width=768,
        depth=12,
        heads=12,
        patch=2,
        rank=0,
        separate_adaln=True,
        qk_norm=True,
        rope=True,
        position='sinusoidal',
        remat='none',
    )
    config.schedule = dict(name='rectified_flow', shift=1.0)
    config.loss = dict(name='packed', parametrisation='flow', self_conditioning=0.0, average='clips')
    config.conditioning = dict(dropout=0.1)
    config.sampler = dict(name='heun', steps=50, guidance=1.5)
    config.optimizer = dict(
        name='adamw', learning_rate=1e-4, warmup_steps=0, final_fraction=1.0, b1=0.9, b2=0.999, weight_decay=0.0
    )
    config.ema_decay = 0.9999
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 100
    config.checkpoint_every = 10_000
    config.validate_every = 10_000
    config.validation_batches = 8
    if mode == 'latents':
        encoded = dict(name='encoded', root='')
        config.data = dict(name='packed', source=encoded, patch=(1, 2, 2), length=1024, most=8)
    elif mode == 'smoke':
        common.smoke_packed(config)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'latents', 'smoke'")
    return config
