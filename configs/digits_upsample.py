"""Super-resolution on digits with hard edges, 17x16x16 -> 17x32x32, without class or text: the picture is all it gets.

python -m walt.train_denoiser --config=configs/digits_upsample.py --workdir=runs/digits/upsample \
    --config.tokenizer_dir=runs/digits/upsample_tokenizer
python -m walt.evaluate --workdir=runs/digits/upsample

Measured, 100 held-out clips, two cores of an AMD EPYC server, one seed: 25.3 dB, bicubic interpolation 24.1 dB; trained
in 47 minutes on one core that had other work too. By steps of the sampler (`walt.evaluate --steps=N`): 26.1 dB with 2,
25.3 with 4, 24.9 with 8, 24.3 with 50. Fewer steps are nearer to the mean of what may be, which PSNR asks for.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 16
    config.steps = 3000
    config.dtype = 'float32'
    config.data = dict(
        name='moving_digits',
        frames=17,
        size=32,
        digit_size=20,
        digits=1,
        speed=(0.25, 1.0),
        crisp=True,
        clips=6_000,
    )
    config.tokenizer_dir = ''
    config.cache_latents = True
    config.text = dict(name='none')
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 16, 16, 8),
        upsample=2,
        width=192,
        depth=6,
        heads=4,
        patch=4,
        spatiotemporal_window=(2, 2),
        rank=2,
    )
    config.start = dict(denoiser_dir='')
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(parametrisation='v', self_conditioning=0.9)
    config.conditioning = dict(dropout=0.0, low_noise=0.25)
    config.sampler = dict(name='ddim', steps=4, guidance=1.0, eta=0.0, low_noise=0.0)
    config.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=100, b1=0.9, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.99
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 20
    config.checkpoint_every = 250
    config.validate_every = 250
    config.validation_batches = 4
    if mode == 'smoke':
        common.smoke(config)
        config.data.clips = 64
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
