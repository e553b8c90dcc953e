"""Makes a run of weights that somebody else trained, or that `walt.export_weights` wrote.

python -m walt.import_weights --format=autoencoder_kl --weights=vae.safetensors \
    --config=configs/tokenizer_sd.py --workdir=runs/sd
python -m walt.import_weights --format=dit --weights=DiT-XL-2-256x256.pt \
    --config=configs/dit_imagenet_xl2.py --config.tokenizer_dir=runs/sd --workdir=runs/dit_xl2
python -m walt.sample --workdir=runs/dit_xl2 --labels=207,360 --num=4

Reads safetensors, and state dicts of PyTorch (.pt, .pth, .bin, .ckpt) without PyTorch and without running what they
hold. Every array must be accounted for: what is missing, not expected, or of another shape is listed and refused;
`--allow_missing=PATTERN`, as often as need be, has parameters start as those of a new network. The run can be sampled
from, and others can start from it (`start.denoiser_dir`, `start.tokenizer_dir`); it cannot be gone on with itself. The
workdir is there when it is whole. `docs/weights.md` has the names.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax.core import meta

from walt import build, restore
from walt.interop import own
from walt.interop.autoencoder_kl import LATENT_SCALE
from walt.interop.formats import FORMATS, OWN
from walt.parallel.mesh import make_mesh
from walt.randomness import stream
from walt.tokenizer.frozen import LatentNorm
from walt.training.checkpoints import claim_workdir, save_ema
from walt.training.state import abstract_params, ema_decays
from walt.weights import read_named, sha256

CONFIG = build.config_flag()
FORMAT = flags.DEFINE_enum('format', None, [OWN, *FORMATS], 'Whose names the weights have.', required=True)
WEIGHTS = flags.DEFINE_string('weights', None, 'The file.', required=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder to make; it must not be there.', required=True)
ALLOW_MISSING = flags.DEFINE_multi_string('allow_missing', [], 'Arrays that may be missing: a pattern as of files.')
SCALE = flags.DEFINE_float(
    'latent_scale', None, f'Of autoencoder_kl: what denoisers see is latents times this; {LATENT_SCALE} by default.'
)


def import_weights(
    config: Mapping[str, Any],
    names: str,
    weights: str,
    workdir: str,
    allow_missing: Iterable[str] = (),
    latent_scale: float | None = None,
) -> int:
    """Writes `workdir` and returns how many numbers its network has.

    Raises:
        ValueError: if configuration, names and weights do not fit each other, naming all that does not.
        FileExistsError: if the workdir has something in it.
        FileNotFoundError: if there is no tokenizer for a denoiser.
    """
    target = Path(workdir).absolute()
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f'{target} is there already: weights are imported into a new workdir')
    part = 'tokenizer' if 'tokenizer' in config else 'denoiser'
    build.check_keys(config, build.TOKENIZER_KEYS if part == 'tokenizer' else build.DENOISER_KEYS)
    if names in FORMATS:
        FORMATS[names].check(config)
    if latent_scale is not None and names != 'autoencoder_kl':
        raise ValueError(f'latent_scale {latent_scale:g} is of autoencoder_kl, the weights are {names}')
    module, init, measured = _network(config, part)
    tokenizer = _tokenizer(config, module) if part == 'denoiser' else None

    def initial():
        return jax.device_get(meta.unbox(jax.jit(init)(stream(jax.random.key(config['seed']), 'init'))['params']))

    abstract = abstract_params(init, make_mesh())
    arrays = read_named(weights)
    if names == OWN:
        trained = {'params': abstract, 'measured': measured}
        trained = own.load(arrays, trained, weights, allow_missing, initial)
    else:
        chosen = FORMATS[names]
        params = chosen.table(module).load(chosen.newer(arrays, weights), abstract, weights, allow_missing, initial)
        trained = {'params': params, 'measured': None}
        if part == 'tokenizer':
            channels = module.latent_channels
            std_C = np.full(channels, 1 / (LATENT_SCALE if latent_scale is None else latent_scale), np.float32)
            trained['measured'] = LatentNorm(np.zeros(channels, np.float32), std_C)

    del arrays  # of the file, which would stay in memory while the checkpoint is written
    trained = jax.tree.map(jnp.asarray, trained)  # of NumPy's arrays Orbax makes a copy, and more while it writes
    config = dict(config) | {'ema_decay': ema_decays(config['ema_decay'])[0]}
    unfinished = target.with_name(f'.{target.name}.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    claim_workdir(unfinished, config)
    if tokenizer is not None:
        frozen, tokenizer_config, step = tokenizer
        there = {'params': frozen.params, 'measured': frozen.norm}
        save_ema(restore.own_tokenizer(str(unfinished)), there, tokenizer_config, step)
    save_ema(unfinished, trained, config, step=0)
    origin = {'format': names, 'weights': str(Path(weights).absolute()), 'sha256': sha256(weights)}
    origin['allow_missing'] = list(allow_missing)
    (unfinished / 'imported.json').write_text(json.dumps(origin, indent=2) + '\n')
    unfinished.replace(target)
    return sum(leaf.size for leaf in jax.tree.leaves(trained['params']))


def _network(config: Mapping[str, Any], part: str) -> tuple[Any, Callable[[jax.Array], Any], Any]:
    """(module, key -> variables, shapes of what is measured)."""
    if part == 'denoiser':
        module = build.denoiser(config['denoiser'], config['dtype'])
        return module, build.init_denoiser(module), build.abstract_null_text(module)
    module = build.tokenizer(config['tokenizer'], config['dtype'])
    norm = jax.eval_shape(lambda: LatentNorm.identity(module.latent_channels))
    return module, build.init_tokenizer(module, restore.smallest_clip(module)), norm


def _tokenizer(config: Mapping[str, Any], denoiser):
    """What `restore.tokenizer` finds in `tokenizer_dir`, if its latents are those of the denoiser."""
    if not config['tokenizer_dir']:
        raise ValueError(
            'config.tokenizer_dir is empty: give the workdir of a tokenizer, which may be imported as well'
        )
    found = restore.tokenizer(config['tokenizer_dir'], make_mesh())
    shape, channels = tuple(denoiser.latent_shape), found[0].module.latent_channels
    if channels != shape[-1]:
        raise ValueError(
            f'the tokenizer in {config["tokenizer_dir"]} makes latents of {channels} channels, '
            f'the denoiser takes latents of {shape}'
        )
    return found


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value.to_dict()
    count = import_weights(config, FORMAT.value, WEIGHTS.value, WORKDIR.value, ALLOW_MISSING.value, SCALE.value)
    print(f'{WORKDIR.value}: {count:,} parameters from {WEIGHTS.value}')


if __name__ == '__main__':
    app.run(main)
