"""Small class-conditional denoisers of moving digits, to hold choices of the paper against each other (table 3).

./launch/denoiser_experiments.sh        trains every arm on a CPU with three seeds, measures: docs/denoiser.md

`--config=...:ARM` picks what differs:

    base                  windows, AdaLN-LoRA of rank 2, self-conditioning 0.9, zero terminal SNR
    no_self_conditioning  p_sc = 0
    no_zero_snr           the linear schedule as DDPM has it, sampled from its last step all the same
    full_attention        every layer attends to all tokens
    separate_adaln        a modulation of its own in every layer
    smoke                 `base` in a few steps

A frame has 2x2 tokens: the windows have 4 and 5 of the clip's 20, as the paper's have 256 and 320 of 1,280.
"""

import ml_collections

from configs import common

ARMS = {
    'base': {},
    'no_self_conditioning': dict(loss=dict(self_conditioning=0.0)),
    'no_zero_snr': dict(schedule=dict(zero_terminal_snr=False)),
    'full_attention': dict(denoiser=dict(full_attention=True)),
    'separate_adaln': dict(denoiser=dict(rank=0, separate_adaln=True)),
    'smoke': {},
}


def get_config(mode: str = 'base') -> ml_collections.ConfigDict:
    mode = mode or 'base'
    if mode not in ARMS:
        raise ValueError(f'unknown mode {mode!r}; choices: {sorted(ARMS)}')
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 32
    config.steps = 800
    config.dtype = 'float32'
    config.data = dict(
        name='moving_digits', frames=17, size=32, digit_size=20, digits=1, speed=(0.25, 1.0), clips=4_000
    )
    config.tokenizer_dir = ''
    config.cache_latents = True
    config.text = dict(name='none')
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 4, 4, 8),
        classes=10,
        width=192,
        depth=6,
        heads=4,
        patch=2,
        spatiotemporal_window=(1, 1),
        full_attention=False,
        rank=2,
        separate_adaln=False,
    )
    config.start = dict(denoiser_dir='')
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(parametrisation='v', self_conditioning=0.9)
    config.conditioning = dict(dropout=0.1)
    config.sampler = dict(name='ddim', steps=50, guidance=3.0, eta=0.0)
    config.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=100, b1=0.9, b2=0.99, clip_norm=1.0)
    config.ema_decay = 0.99
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 20
    config.checkpoint_every = 200
    config.validate_every = 200
    config.validation_batches = 4
    for section, changes in ARMS[mode].items():
        config[section].update(changes)
    if mode == 'smoke':
        common.smoke(config)
        config.data.clips = 64
    return config
