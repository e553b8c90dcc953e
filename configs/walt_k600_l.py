"""W.A.L.T-L on Kinetics-600, frame prediction: 12 frames after 5, as 5x16x16x8 latents of 17x128x128 (table 8).

python -m walt.train_denoiser --config=configs/walt_k600_l.py --workdir=runs/walt_k600_l \
    --config.tokenizer_dir=runs/tokenizer_k600 --config.data.root=K600/train
python -m walt.sample --workdir=runs/walt_k600_l --frames=FILE

Expected: FVD 3.3 (table 1), by MAGVIT's protocol at 64x64, without guidance. Two latent frames are given in every
example, which is how we read the paper for this data set.

Cost, by `python -m walt.plan --config=configs/walt_k600_l.py --topology=v5p:4x4x4`: 27.0 GiB on each of 64 chips, 0.112
s a step, 51 to 62 % MFU, 537 chip-hours in all, without the tokenizer. Predicted: the run was not made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 512
    config.steps = 270_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='video_folder',
        root='',
        frames=17,
        size=128,
        fps=25.0,
        flip=False,
        clips_per_file=1,
        validation_fraction=0.1,
    )
    config.tokenizer_dir = ''
    config.cache_latents = False
    config.text = dict(name='none')
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 16, 16, 8),
        frame_prediction=True,
        width=1024,
        depth=24,
        heads=16,
        patch=1,
        spatiotemporal_window=(8, 8),
        rank=2,
        remat='none',
    )
    config.start = dict(denoiser_dir='')
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(parametrisation='v', self_conditioning=0.9)
    config.conditioning = dict(dropout=0.0, given_frames=(2,), given_probability=1.0)
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
