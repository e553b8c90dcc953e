"""Class-conditional W.A.L.T for a folder of your own videos, one sub-folder a class, on 5x8x8x8 latents.

python -m walt.train_denoiser --config=configs/video_folder_denoiser.py --workdir=runs/mine/denoiser \
    --config.tokenizer_dir=runs/mine/tokenizer --config.data.root=PATH --config.denoiser.classes=N

The width and depth of ViT-B, since the paper has no smaller model than L; not measured yet. `--config=...:smoke` takes
the same path in a few steps on a CPU.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 128
    config.steps = 200_000
    config.dtype = 'bfloat16'
    config.data = dict(name='video_folder', root='', frames=17, size=64, stride=1, flip=False, clips_per_file=100)
    config.tokenizer_dir = ''
    config.cache_latents = False  # Encoded in every step; True encodes the whole data set once, before training.
    config.text = dict(name='none')
    config.start = dict(denoiser_dir='')
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 8, 8, 8),
        classes=1,
        width=768,
        depth=12,
        heads=12,
        patch=1,
        spatiotemporal_window=(4, 4),
        rank=2,
    )
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(parametrisation='v', self_conditioning=0.9)
    config.conditioning = dict(dropout=0.1)
    config.sampler = dict(name='ddim', steps=50, guidance=1.0, eta=0.0)
    config.optimizer = dict(name='adamw', learning_rate=5e-4, warmup_steps=5000, b1=0.9, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.9999
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
        config.denoiser.width = 64
        config.denoiser.heads = 4
        config.denoiser.depth = 2
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
