"""Samples clips from a trained denoiser.

python -m walt.sample --workdir=runs/denoiser --labels=0,1,2 --num=4 --seed=0

Writes, into `--out` (default: WORKDIR/samples), an mp4 for every clip, `samples.gif` with all of them playing side by
side, the contact sheet `samples.png`, and `samples.json`, which says how they were made. The same seed gives the same
clips, whatever the batch size.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from walt import build
from walt.data.contact_sheet import contact_sheet, tile
from walt.data.video_io import write_gif, write_mp4, write_png
from walt.parallel.mesh import make_mesh

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a denoiser run.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder to write to; WORKDIR/samples by default.')
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to sample from; the newest by default.')
LABELS = flags.DEFINE_list('labels', None, 'Classes to sample, by number; all by default.')
NUM = flags.DEFINE_integer('num', 1, 'Clips for each label.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.')
SAMPLER = flags.DEFINE_enum('sampler', None, sorted(build.STEPPERS), "Sampler; the configuration's by default.")
STEPS = flags.DEFINE_integer('steps', None, "Sampler steps; the configuration's by default.", lower_bound=1)
GUIDANCE = flags.DEFINE_float('guidance', None, "Guidance scale, 1 is none; the configuration's by default.")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 10, 'Clips sampled together.', lower_bound=1)
FPS = flags.DEFINE_float('fps', 8, 'Frames a second of the files.')
SCALE = flags.DEFINE_integer('scale', 4, 'Enlarges the pixels of mp4 and GIF by this whole number.', lower_bound=1)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    asked = {'name': SAMPLER.value, 'steps': STEPS.value, 'guidance': GUIDANCE.value}
    sampling = {key: value for key, value in asked.items() if value is not None}
    stage, config, step = build.restore_stage(WORKDIR.value, make_mesh(), STEP.value, sampling)
    labels = [int(label) for label in LABELS.value or range(stage.denoiser.classes) for _ in range(NUM.value)]

    start = time.perf_counter()
    batches = tqdm(stage.clips(labels, SEED.value, BATCH_SIZE.value), 'sample', -(-len(labels) // BATCH_SIZE.value))
    clips, seconds = [], []
    for batch in batches:
        clips.append(batch)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    clips = np.concatenate(clips)
    if jax.process_index() == 0:
        out = Path(OUT.value or Path(WORKDIR.value) / 'samples')
        files = write(out, clips, labels)
        record = {
            'checkpoint': str(Path(WORKDIR.value) / 'checkpoints' / str(step)),
            'step': step,
            'seed': SEED.value,
            'labels': labels,
            'sampler': config['sampler'] | sampling,
            'batch_size': BATCH_SIZE.value,
            'seconds_a_batch': [round(value, 3) for value in seconds],  # the first one compiles
            'seconds_a_clip': round(sum(seconds) / len(labels), 3),
            'device': jax.devices()[0].device_kind,
            'files': files,
        }
        (out / 'samples.json').write_text(json.dumps(record, indent=2) + '\n')
        print(f'{len(labels)} clips in {sum(seconds):.1f} s, in {out}')


def write(out: Path, clips_NTHWC: np.ndarray, labels: list[int]) -> list[str]:
    """Writes all pictures of the clips and returns the names of the mp4 files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [f'{number:04d}_label{label}.mp4' for number, label in enumerate(labels)]
    for name, clip_THWC in zip(files, clips_NTHWC):
        write_mp4(out / name, clip_THWC, FPS.value, SCALE.value)
    columns = NUM.value if NUM.value > 1 else min(len(labels), 5)
    write_gif(out / 'samples.gif', tile(clips_NTHWC, columns), FPS.value, SCALE.value)
    write_png(out / 'samples.png', contact_sheet(clips_NTHWC, frames=min(9, clips_NTHWC.shape[1])))
    return files


if __name__ == '__main__':
    app.run(main)
