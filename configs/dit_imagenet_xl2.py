"""DiT-XL/2 on ImageNet at 256x256, class-conditional, as published (arXiv:2212.09748): 1x32x32x4 latents.

python -m walt.encode --config=configs/dit_imagenet_xl2.py --tokenizer_dir=runs/tokenizer_imagenet_4 --out=LATENTS \
    --split=train --config.data.clips.root=IMAGENET/train          # and the same with --split=validation
python -m walt.train_denoiser --config=configs/dit_imagenet_xl2.py:latents --workdir=runs/dit_imagenet_xl2 \
    --config.tokenizer_dir=runs/tokenizer_imagenet_4 --config.data.root=LATENTS

Pictures are encoded as they are and mirrored. The paper's latents are those of Stable Diffusion's autoencoder; a
tokenizer of ours in its shape is `configs/tokenizer_imagenet.py` with `--config.tokenizer.latent_channels=4`. Latents
are normalised by channel, which the published code does by one factor, 0.18215. Long sides are cropped at random, there
in the middle.

Expected: FID 9.62 without guidance, 2.27 with scale 1.5 on three of the four channels, as here; 19.47 without after
400,000 steps.

Cost, by `python -m walt.plan --config=configs/dit_imagenet_xl2.py --topology=v5p:2x2x4`: 24.4 GiB on each of 16 chips,
0.0682 s a step, 36 to 42 % MFU, 2,123 chip-hours in all, without the tokenizer. Predicted: the run was not made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256
    config.steps = 7_000_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='flipped',
        clips=dict(name='image_folder', root='', size=256, crop=(1.0, 1.0), crops_per_file=1, validation_fraction=0.01),
    )
    config.tokenizer_dir = ''
    config.cache_latents = True
    config.text = dict(name='none')
    config.denoiser = dict(
        name='dit',
        latent_shape=(1, 32, 32, 4),
        classes=1000,
        learn_variance=True,
        width=1152,
        depth=28,
        heads=16,
        patch=2,
        remat='none',
    )
    config.start = dict(denoiser_dir='')
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False)
    config.loss = dict(parametrisation='eps', self_conditioning=0.0, vlb_weight=0.001)
    config.conditioning = dict(dropout=0.1)
    config.sampler = dict(name='learned_ancestral', steps=250, last_time=0.001, guidance=1.5, guidance_channels=3)
    config.optimizer = dict(
        name='adamw',
        learning_rate=1e-4,
        warmup_steps=0,
        final_fraction=1.0,
        b1=0.9,
        b2=0.999,
        weight_decay=0.0,
        clip_norm=1e9,  # none
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
        config.data = dict(name='encoded', root='')
        config.cache_latents = False
    elif mode == 'smoke':
        common.smoke_denoiser(config)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'latents', 'smoke'")
    return config
