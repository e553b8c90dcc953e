"""Text to video on animated emoji: "waving hand, medium skin tone" -> 17x64x64.

python -m walt.train_denoiser --config=configs/emoji_text.py:small --workdir=runs/emoji/text \
    --config.tokenizer_dir=runs/emoji/tokenizer
python -m walt.sample --workdir=runs/emoji/text --prompts='waving hand'

`small` is for a CPU: on one core of an AMD EPYC server 53 minutes, and the real clip of a held-out caption stands 25th
of 213 by likeness to the sample (docs/denoiser.md). Without it, one accelerator trains a model of the width and depth
of ViT-B; that was not run yet.
launch/emoji_experiment.sh does all of it.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 128
    config.steps = 20_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='video_folder',
        root='.cache/emoji/64/train',
        validation_root='.cache/emoji/64/validation',
        validation_fraction=0.0,
        frames=17,
        size=64,
        clips_per_file=2,  # An emoji has 18 frames, and so two windows of 17.
    )
    config.tokenizer_dir = ''
    config.cache_latents = True
    config.text = dict(name='wordllama', length=16)
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 8, 8, 8),
        text_shape=(16, 256),
        pooled_text=True,
        width=768,
        depth=12,
        heads=12,
        patch=1,
        spatiotemporal_window=(4, 4),
        rank=2,
    )
    config.start = dict(denoiser_dir='')
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(parametrisation='v', self_conditioning=0.9)
    config.conditioning = dict(dropout=0.1)
    config.sampler = dict(name='ddim', steps=50, guidance=3.0, eta=0.0)
    config.optimizer = dict(name='adamw', learning_rate=5e-4, warmup_steps=1000, b1=0.9, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.999
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 20
    config.checkpoint_every = 500
    config.validate_every = 500
    config.validation_batches = 2
    if mode in ('small', 'smoke'):
        config.batch_size = 16
        config.steps = 2000
        config.dtype = 'float32'
        config.denoiser.update(width=256, depth=8, heads=4, patch=2)
        config.optimizer.update(learning_rate=2e-3, warmup_steps=100)
        config.ema_decay = 0.99
    if mode == 'smoke':
        common.smoke(config)
    elif mode not in ('', 'small'):
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'small', 'smoke'")
    return config
