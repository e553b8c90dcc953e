"""Stable Diffusion's autoencoder on pictures: 256x256 -> 1x32x32x4, the latents of DiT. 83.7M parameters.

Published weights in the names of diffusers, of AutoencoderKL:

python -m walt.import_weights --format=autoencoder_kl --weights=diffusion_pytorch_model.safetensors \
    --config=configs/tokenizer_sd.py --workdir=runs/sd

Its decoder, trained further on other pictures, so that latents stay what they are:

python -m walt.train_tokenizer --config=configs/tokenizer_sd.py --workdir=runs/sd_mine --config.data.root=PICTURES \
    --config.start.tokenizer_dir=runs/sd --config.start.freeze_encoder=True

The terms are those of the published `ft-mse` decoder, MSE + 0.1 LPIPS of pixels in [-1, 1], whose squares are four
times those in [0, 1]; the learning rate is a choice of ours.

Cost, by `python -m walt.plan --config=configs/tokenizer_sd.py --devices=8` for encoder and decoder: 1.63e20 FLOPs in
all with what is computed again, 29 GiB on each of 8 devices (104 GiB with `tokenizer.remat='none'`). The run was not
made.
"""

import ml_collections

from configs import common


def get_config(mode: str = '') -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 192
    config.steps = 280_000
    config.dtype = 'float32'
    config.data = dict(name='image_folder', root='', size=256, crop=(0.8, 1.0), flip=True, validation_fraction=0.01)
    config.tokenizer = dict(
        name='autoencoder_kl',
        channels=128,
        multipliers=(1, 2, 4, 4),
        blocks=2,
        latent_channels=4,
        bottleneck=dict(name='kl'),
        groups=32,
        remat='blocks',
    )
    config.losses = dict(reconstruction=4.0, perceptual=0.1, kl=1e-6)
    config.perceptual = dict(name='squeezenet')
    config.discriminator = dict(name='none')
    config.start = dict(tokenizer_dir='', freeze_encoder=False)
    config.optimizer = dict(
        name='adamw', learning_rate=1e-5, warmup_steps=1000, b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1.0
    )
    config.ema_decay = 0.9999
    config.latent_norm_batches = 64
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
    config.accumulation = 1
    config.non_finite = 'stop'
    config.log_every = 50
    config.checkpoint_every = 1000
    config.validate_every = 1000
    config.validation_batches = 8
    if mode == 'smoke':
        common.smoke(config)
        config.batch_size = config.latent_norm_batches = 2
        config.data.size = 32
        config.tokenizer.channels = config.tokenizer.groups = 4
        config.tokenizer.blocks = 1
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; choices: '', 'smoke'")
    return config
