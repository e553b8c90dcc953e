"""Samples clips of any length and aspect ratio from a denoiser of packed rows.

python -m walt.sample_packed --workdir=runs/digits_packed --shapes=1x32x32,1x24x48,1x20x80 --labels=0,1,2 --num=4

A shape is FRAMESxHEIGHTxWIDTH in pixels; every shape is made for every label. Clips of all shapes share rows, and the
same seed gives the same clips, whatever the number of rows sampled together.

Writes, into `--out` (default: `samples` in the workdir), a png or mp4 for every clip, for each shape the contact sheet
`SHAPE.png` with a line for each label, and `samples.json`, which says how they were made.

`--classifier=runs/noised --classifier_guidance=5` guides by a classifier of noised rows (`walt.train_classifier` with
`noising`), beside classifier-free guidance or, with `--guidance=0`, in place of it.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from walt import build, restore
from walt.data.contact_sheet import contact_sheet, tile
from walt.data.video_io import write_mp4, write_png
from walt.generation.packed_stage import read_shape
from walt.parallel.mesh import make_mesh

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run of packed rows.', required=True)
SHAPES = flags.DEFINE_list('shapes', None, 'FRAMESxHEIGHTxWIDTH of clips, in pixels.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder to write to; `samples` in the workdir by default.')
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to sample from; the newest by default.')
LABELS = flags.DEFINE_list('labels', None, 'Classes to sample, by number; all by default.')
NUM = flags.DEFINE_integer('num', 1, 'Clips for each shape and label.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.')
SAMPLER = flags.DEFINE_enum('sampler', None, sorted(build.STEPPERS), "Sampler; the configuration's by default.")
STEPS = flags.DEFINE_integer('steps', None, "Sampler steps; the configuration's by default.", lower_bound=1)
GUIDANCE = flags.DEFINE_float('guidance', None, "Guidance scale, 1 is none; the configuration's by default.")
CLASSIFIER = flags.DEFINE_string('classifier', None, 'Folder of the run of a classifier of noised rows to guide by.')
CLASSIFIER_GUIDANCE = flags.DEFINE_float('classifier_guidance', 0.0, 'Scale of the guidance by it; 0 is none.')
DECAY = flags.DEFINE_float('decay', None, 'Which average of the parameters, of a run that kept several; the first.')
ROWS = flags.DEFINE_integer('rows', 8, 'Rows sampled together.', lower_bound=1)
FPS = flags.DEFINE_float('fps', 8, 'Frames a second of the files.')
SCALE = flags.DEFINE_integer('scale', 4, 'Enlarges the pixels of an mp4 by this whole number.', lower_bound=1)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    asked = {'name': SAMPLER.value, 'steps': STEPS.value, 'guidance': GUIDANCE.value}
    sampling = {key: value for key, value in asked.items() if value is not None}
    guide = {'classifier_workdir': CLASSIFIER.value, 'classifier_guidance': CLASSIFIER_GUIDANCE.value}
    stage, config, step = restore.packed_stage(WORKDIR.value, make_mesh(), STEP.value, sampling, DECAY.value, **guide)
    classes = [int(label) for label in LABELS.value or range(stage.denoiser.classes)] or [-1]
    wanted = [read_shape(text) for text in SHAPES.value]
    shapes = [shape for shape in wanted for _ in classes for _ in range(NUM.value)]
    labels = [label for _ in wanted for label in classes for _ in range(NUM.value)]

    count, start = len(stage.rows([stage.grid(shape) for shape in shapes])), time.perf_counter()
    with tqdm(desc='sample', total=-(-count // ROWS.value), unit='batch') as bar:
        clips = stage.clips(shapes, labels, SEED.value, ROWS.value, bar.update)
    seconds = time.perf_counter() - start
    if jax.process_index() == 0:
        out = Path(OUT.value or Path(WORKDIR.value) / 'samples')
        out.mkdir(parents=True, exist_ok=True)
        files = []
        for number, (clip, label) in enumerate(zip(clips, labels)):
            files.append(f'{number:04d}_label{label}' + ('.png' if len(clip) == 1 else '.mp4'))
            if len(clip) == 1:
                write_png(out / files[-1], clip[0])
            else:
                write_mp4(out / files[-1], clip, FPS.value, SCALE.value)
        each = len(classes) * NUM.value
        for number, text in enumerate(SHAPES.value):
            alike = np.stack(clips[number * each : (number + 1) * each])
            pictures = alike.shape[1] == 1
            sheet = tile(alike, NUM.value)[0] if pictures else contact_sheet(alike, frames=min(9, alike.shape[1]))
            write_png(out / f'{text}.png', sheet)
        record = {
            'checkpoint': str(Path(WORKDIR.value) / 'checkpoints' / str(step)),
            'step': step,
            'seed': SEED.value,
            'shapes': SHAPES.value,
            'labels': classes,
            'sampler': build.other_sampler(config['sampler'], sampling),
            **guide,
            'rows': count,
            'seconds': round(seconds, 3),  # with compilation
            'device': jax.devices()[0].device_kind,
            'files': files,
        }
        (out / 'samples.json').write_text(json.dumps(record, indent=2) + '\n')
        print(f'{len(clips)} clips in {count} rows, {seconds:.1f} s, in {out}')


if __name__ == '__main__':
    app.run(main)
