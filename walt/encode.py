"""Encodes a data set into normalised latents on disk, through a trained tokenizer.

python -m walt.encode --config=configs/quickstart_denoiser.py --tokenizer_dir=runs/tokenizer --out=latents --split=train

Writes OUT/SPLIT/manifest.json, which says what the latents are of and how they were made, and shards in ArrayRecord
(`walt/data/records.py`). Data, batch size and mesh are the configuration's. Interrupted, the same command goes on at
the first shard that is not complete, and ends with the same bytes. Several programs, on one machine or on several that
share a folder, take `--worker=0 --workers=8`, `--worker=1 --workers=8`, ...; one program of several processes, which is
how the hosts of a TPU pod run (`--distributed=auto`), shares the work by itself.

Training reads the latents where the configuration's `data` is {'name': 'encoded', 'root': OUT}. Latents cannot be
mirrored as pixels can: `data` of the name 'flipped' encodes every clip and its mirror image.
"""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from walt import build, restore
from walt.data.draws import SPLITS
from walt.data.encoded import Encoded
from walt.parallel.distributed import first_process
from walt.parallel.mesh import make_mesh
from walt.processes import processes_flags
from walt.training.conditions import to_latents
from walt.training.latents import DTYPES, write_latents

CONFIG = build.config_flag()
TOKENIZER_DIR = flags.DEFINE_string('tokenizer_dir', None, 'Workdir of the trained tokenizer.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
SPLIT = flags.DEFINE_enum('split', 'train', SPLITS, 'Part of the data to encode.')
CLIPS = flags.DEFINE_integer('clips', None, 'Clips to encode, from the first on; all by default.', lower_bound=1)
SHARD_SIZE = flags.DEFINE_integer('shard_size', 1024, 'Clips in a shard.', lower_bound=1)
DTYPE = flags.DEFINE_enum('dtype', 'float32', DTYPES, 'Of the latents on disk.')
WORKER = flags.DEFINE_integer('worker', None, 'Number of this program, counted from 0.', lower_bound=0)
WORKERS = flags.DEFINE_integer('workers', None, 'Programs that share the work; with --worker.', lower_bound=1)
join_processes = processes_flags()


def encode(config: Mapping[str, Any], tokenizer_dir: str, out: str, split: str, **options) -> None:
    """Encodes a split of `config['data']`; options and errors as `training.latents.write_latents`."""
    build.check_keys(config, build.DENOISER_KEYS)
    if build.SOURCES.get(config['data'].get('name')) is Encoded:
        raise ValueError(f'the data are latents already: {config["data"]}')
    mesh = make_mesh(**config['mesh'])
    source = build.source(config['data'], split)
    denoiser = build.denoiser(config['denoiser'], config['dtype'])
    frozen, _, step = restore.tokenizer(tokenizer_dir, mesh)
    text = build.text_encoder(config['text'])
    checkpoint = str(Path(tokenizer_dir).absolute() / 'checkpoints' / str(step))
    origin = {'data': config['data'], 'tokenizer': {'checkpoint': checkpoint, 'step': step}}
    origin |= {'text': config['text']} if text else {}
    write_latents(
        out,
        split,
        frozen,
        source,
        encode=functools.partial(to_latents, denoiser=denoiser),
        text=text and text.encode,
        origin=origin,
        mesh=mesh,
        batch_size=config['batch_size'],
        **options,
    )


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    join_processes()
    if (WORKER.value is None) != (WORKERS.value is None):
        raise app.UsageError('--worker and --workers come together')
    start = time.perf_counter()
    options = {'clips': CLIPS.value, 'shard_size': SHARD_SIZE.value, 'dtype': DTYPE.value}
    options |= {'worker': WORKER.value, 'workers': WORKERS.value}
    encode(CONFIG.value.to_dict(), TOKENIZER_DIR.value, OUT.value, SPLIT.value, **options)
    if first_process():
        whose = 'all shards' if WORKER.value is None else f'shards of worker {WORKER.value}'
        print(f'{OUT.value}/{SPLIT.value}: {whose} complete, {time.perf_counter() - start:.1f} s')


if __name__ == '__main__':
    app.run(main)
