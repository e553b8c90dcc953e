"""The first super-resolution stage of W.A.L.T: 17x128x224 -> 17x256x448, latents of 5x32x56x8 (table 8).

python -m walt.train_denoiser --config=configs/walt_t2v_sr1.py --workdir=runs/walt_t2v_sr1 \
    --config.tokenizer_dir=runs/tokenizer_t2v --config.data.root=VIDEOS
python -m walt.sample --cascade=runs/walt_t2v_base_9x16,runs/walt_t2v_sr1,runs/walt_t2v_sr2 --prompts=FILE

Expected: no figure is published. 1.30B parameters, the paper says 1.3B. How noisy the low-resolution latents are is not
said: times up to 0.25 in training, 0.05 in sampling.

Cost, by `python -m walt.plan --config=configs/walt_t2v_sr1.py --topology=v5p:4x4x4`: 38.0 GiB on each of 64 chips,
0.927 s a step, 47 to 61 % MFU, 11,124 chip-hours in all, without the tokenizer and the text encoder. Predicted: the run
was not made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 512
    config.steps = 675_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='video_folder',
        root='',
        frames=17,
        size=(256, 448),
        fps=8.0,
        flip=False,
        clips_per_file=1,
        validation_fraction=0.1,
    )
    config.tokenizer_dir = ''
    config.cache_latents = False
    config.text = dict(name='t5', model='google/t5-v1_1-xl', length=64)
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 32, 56, 8),
        text_shape=(64, 2048),
        frame_prediction=True,
        upsample=2,
        width=1408,
        depth=40,
        heads=16,
        patch=2,
        spatiotemporal_window=(8, 14),
        rank=2,
        remat='products',
    )
    config.start = dict(denoiser_dir='')
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(parametrisation='v', self_conditioning=0.9)
    config.conditioning = dict(dropout=0.1, given_frames=(1, 2), given_probability=0.3, low_noise=0.25)
    config.sampler = dict(name='ddim', steps=50, guidance=7.0, eta=0.0, low_noise=0.05)
    config.optimizer = dict(name='adafactor', learning_rate=5e-4, warmup_steps=5000, clip_norm=1.0)
    config.ema_decay = 0.0
    config.mesh = dict(data=-1, fsdp=4, context=1, tensor=1)
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
