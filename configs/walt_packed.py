"""W.A.L.T-L on wide and tall videos together: packed rows of latents of 17x128x224 and 17x224x128.

python -m walt.encode --config=configs/walt_packed.py --tokenizer_dir=runs/tokenizer --out=WIDE --split=train \
    --config.data.root=VIDEOS/wide
python -m walt.encode --config=configs/walt_packed.py --tokenizer_dir=runs/tokenizer --out=TALL --split=train \
    --config.data.root=VIDEOS/tall --config.data.size='(224, 128)'
python -m walt.train_denoiser --config=configs/walt_packed.py:latents --workdir=runs/walt_packed \
    --config.tokenizer_dir=runs/tokenizer --config.data.source.pictures.root=WIDE --config.data.source.clips.root=TALL
python -m walt.sample_packed --workdir=runs/walt_packed --shapes=17x128x224,17x224x128,17x160x160,1x128x128

Both with --split=validation too. Further sizes and lengths, and pictures, are further `pictures_and_clips`, one
inside another. Windows are a frame, and tiles of 8x8 through all frames, whatever the size of the clip; those at its
lower and right border have fewer tokens. A row of 2304 tokens holds one clip of 5x16x28, or several smaller ones.

No figure is published for it, and the run was not made. Cost, by `python -m walt.plan --config=configs/walt_packed.py
--devices=64`, in which a clip is a row: 1.2e20 FLOPs in all; at 40 % of a TPU v5p's peak (459 TFLOP/s) that is 179
chip-hours. They are counted with attention over all pairs of a row, which is what the kernels compute.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256
    config.steps = 60_000
    config.dtype = 'bfloat16'
    config.data = dict(
        name='video_folder',
        root='',
        frames=17,
        size=(128, 224),
        stride=1,
        flip=True,
        clips_per_file=1,
        validation_fraction=0.1,
    )
    config.tokenizer_dir = ''
    config.cache_latents = False
    config.text = dict(name='none')
    config.start = dict(denoiser_dir='')
    config.denoiser = dict(
        name='packed',
        length=2304,
        most=16,
        channels=8,
        extent=(8, 40, 40),
        classes=101,
        layers=((1, 0, 0), (0, 8, 8)),
        width=1024,
        depth=24,
        heads=16,
        patch=1,
        rank=2,
        rope=True,
        position='learned',
        remat='none',
    )
    config.schedule = dict(name='discrete_linear', steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True)
    config.loss = dict(name='packed', parametrisation='v', self_conditioning=0.9, average='clips')
    config.conditioning = dict(dropout=0.1)
    config.sampler = dict(name='ddim', steps=50, guidance=1.5, eta=0.0)
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
    if mode == 'latents':
        folders = {part: dict(name='encoded', root='') for part in ('pictures', 'clips')}
        source = dict(name='pictures_and_clips', **folders)
        config.data = dict(name='packed', source=source, patch=(1, 1, 1), length=2304, most=16)
    elif mode == 'smoke':
        common.smoke_packed(config)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'latents', 'smoke'")
    return config
