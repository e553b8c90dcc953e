"""W.A.L.T-L from text, trained on clips and pictures at once: 5x16x16x8 latents (table 5).

python -m walt.train_denoiser --config=configs/walt_t2v_l_joint.py --workdir=runs/walt_t2v_l_joint \
    --config.tokenizer_dir=runs/tokenizer_t2v --config.data.clips.root=VIDEOS --config.data.pictures.root=IMAGES

Expected: zero-shot FVD 344.5 and IS 31.7 on UCF-101 (table 5; clips alone: 598.8 and 26.8). Both folders hold a
`captions.json`. Optimizer, steps and the share of pictures are not given for this model; those of its size in table 8
are taken, and as many stacks of pictures as clips.

Cost, by `python -m walt.plan --config=configs/walt_t2v_l_joint.py --topology=v5p:4x4x4`: 31.5 GiB on each of 64 chips,
0.159 s a step, 50 to 63 % MFU, 776 chip-hours in all, without the tokenizer and the text encoder. Predicted: the run
was not made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256  # clips, and as many stacks of pictures: the 512 of table 8
    config.steps = 275_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='joint',
        clips=dict(
            name='video_folder', root='', frames=17, size=128, fps=8.0, clips_per_file=1, validation_fraction=0.1
        ),
        pictures=dict(name='image_folder', root='', size=128),
        frames=5,
        stacks=1,
    )
    config.tokenizer_dir = ''
    config.cache_latents = False
    config.text = dict(name='t5', model='google/t5-v1_1-xl', length=64)
    config.denoiser = dict(
        name='walt',
        latent_shape=(5, 16, 16, 8),
        text_shape=(64, 2048),
        frame_prediction=True,
        images=True,
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
    config.conditioning = dict(dropout=0.1, given_frames=(1, 2), given_probability=0.3)
    config.sampler = dict(name='ddim', steps=50, guidance=7.0, eta=0.0)
    config.optimizer = dict(name='adafactor', learning_rate=5e-4, warmup_steps=5000, clip_norm=1.0)
    config.ema_decay = 0.0
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
