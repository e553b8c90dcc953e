"""Samples clips from trained denoisers.

python -m walt.sample --workdir=runs/denoiser --labels=0,1,2 --num=4
python -m walt.sample --workdir=runs/text --prompts='the digit three moving left' --seconds=5
python -m walt.sample --workdir=runs/predictor --frames=street.mp4
python -m walt.sample --cascade=runs/base,runs/sr1,runs/sr2 --prompts=prompts.txt

What a denoiser was trained with, it can be asked for: labels, prompts (a text, or a file with one in every line), an
image or video to go on from, more seconds than a chunk has. `--cascade` takes the workdirs of a base and of the
super-resolution stages after it.

Writes, into `--out` (default: `samples` in the last workdir), an mp4 for every clip, `samples.gif` with all of them
playing side by side, the contact sheet `samples.png`, and `samples.json`, which says how they were made. The same seed
gives the same clips, whatever the batch size. With `--pictures` a model of clips and pictures makes pictures; clips of
one frame are pictures anyway: PNGs, and no mp4 or GIF.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from walt import build, restore
from walt.data.contact_sheet import contact_sheet, tile
from walt.data.last_frames import last_frames
from walt.data.video_io import write_gif, write_mp4, write_png
from walt.generation.cascade import Cascade, border_jump
from walt.generation.request import Request
from walt.parallel.mesh import make_mesh

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a denoiser run.')
CASCADE = flags.DEFINE_list('cascade', None, 'Folders of runs, the base first, in place of --workdir.')
OUT = flags.DEFINE_string('out', None, 'Folder to write to; `samples` in the last workdir by default.')
STEP = flags.DEFINE_integer('step', None, 'Checkpoint of --workdir to sample from; the newest by default.')
LABELS = flags.DEFINE_list('labels', None, 'Classes to sample, by number; all by default.')
PROMPTS = flags.DEFINE_string('prompts', None, 'A text, or a file of texts, one in every line.')
FRAMES = flags.DEFINE_string('frames', None, 'Image or video file to go on from.')
PICTURES = flags.DEFINE_bool('pictures', False, 'Pictures in place of clips.')
NUM = flags.DEFINE_integer('num', 1, 'Clips for each label or prompt.', lower_bound=1)
SECONDS = flags.DEFINE_float('seconds', None, 'Length of a clip; that of a chunk by default.', lower_bound=0)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.')
SAMPLER = flags.DEFINE_enum('sampler', None, sorted(build.STEPPERS), "Sampler; the configuration's by default.")
STEPS = flags.DEFINE_integer('steps', None, "Sampler steps; the configuration's by default.", lower_bound=1)
GUIDANCE = flags.DEFINE_float('guidance', None, "Guidance scale, 1 is none; the configuration's by default.")
FRAMES_GUIDANCE = flags.DEFINE_float('frames_guidance', None, 'Guidance scale towards the given frames, likewise.')
WEAK_WORKDIR = flags.DEFINE_string('weak_workdir', None, 'Folder of a weaker run of the same kind, to guide away from.')
WEAK_GUIDANCE = flags.DEFINE_float('weak_guidance', None, 'Scale of that guidance; 1 is none.')
DECAY = flags.DEFINE_float('decay', None, 'Which average of the parameters, of a run that kept several; the first.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 10, 'Clips sampled together.', lower_bound=1)
FPS = flags.DEFINE_float('fps', 8, 'Frames a second of the files.')
SCALE = flags.DEFINE_integer('scale', 4, 'Enlarges the pixels of mp4 and GIF by this whole number.', lower_bound=1)


def read_prompts(prompts: str) -> list[str]:
    """A text, or those in a file. Raises `ValueError` if the file holds none."""
    if not os.path.isfile(prompts):  # pathlib raises on a text that is too long for a name
        return [prompts]
    lines = [line.strip() for line in Path(prompts).read_text().splitlines()]
    if not any(lines):
        raise ValueError(f'{prompts} has no prompt in it')
    return [line for line in lines if line]


def asked_for(cascade: Cascade) -> tuple[Request, list[str]]:
    """What the flags ask for, and a name for each clip."""
    last, base = cascade.last, cascade.stages[0]
    labels = prompts = frames = None
    if LABELS.value or (base.denoiser.classes and not PROMPTS.value):
        labels = [int(label) for label in LABELS.value or range(base.denoiser.classes) for _ in range(NUM.value)]
    if PROMPTS.value is not None:
        prompts = [prompt for prompt in read_prompts(PROMPTS.value) for _ in range(NUM.value)]
    if labels and prompts and len(labels) != len(prompts):
        raise ValueError(f'{len(labels)} labels and {len(prompts)} prompts: give as many of both')
    count = len(labels or prompts or [None] * NUM.value)
    if FRAMES.value is not None:
        length, height, width, _ = last.clip_shape
        most, stride = cascade.given, (length - 1) // max(1, last.denoiser.latent_shape[0] - 1)
        given, told = last_frames(FRAMES.value, most, stride, (height, width))
        print(f'goes on from {told}')
        frames = np.repeat(given[None], count, axis=0)
    if labels is None and prompts is None and frames is None:
        prompts = [''] * count if 'text' in base.denoiser.conditions else None
        labels = None if 'text' in base.denoiser.conditions else [-1] * count
    names = [f'label{label}' if label >= 0 else '' for label in labels] if labels else prompts or [''] * count
    names = [re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:60] or 'clip' for name in names]
    return Request(labels, prompts, frames, PICTURES.value), names


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    if bool(WORKDIR.value) == bool(CASCADE.value):
        raise app.UsageError('give either --workdir or --cascade')
    if CASCADE.value and (STEP.value is not None or WEAK_WORKDIR.value):
        raise app.UsageError('--step and --weak_workdir are of --workdir; the stages of a cascade are at their newest')
    if bool(WEAK_WORKDIR.value) != (WEAK_GUIDANCE.value is not None):
        raise app.UsageError('--weak_workdir and --weak_guidance go together')
    asked = {
        'name': SAMPLER.value,
        'steps': STEPS.value,
        'guidance': GUIDANCE.value,
        'frames_guidance': FRAMES_GUIDANCE.value,
        'weak_guidance': WEAK_GUIDANCE.value,
    }
    sampling = {key: value for key, value in asked.items() if value is not None}
    workdirs, mesh = CASCADE.value or [WORKDIR.value], make_mesh()
    restored = [
        restore.stage(workdir, mesh, STEP.value, sampling, DECAY.value, WEAK_WORKDIR.value) for workdir in workdirs
    ]
    stages, configs, steps = zip(*restored)
    cascade = Cascade(stages)
    request, names = asked_for(cascade)
    frames = None if SECONDS.value is None else max(1, round(SECONDS.value * FPS.value))

    batches = -(-len(request) // BATCH_SIZE.value)
    clips, seconds, start = [], [], time.perf_counter()
    with tqdm(desc='sample', total=batches * cascade.chunks(frames) * len(stages), unit='chunk') as bar:
        for batch in cascade.clips(request, SEED.value, BATCH_SIZE.value, frames, bar.update):
            clips.append(batch)
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    clips = np.concatenate(clips)
    if jax.process_index() == 0:
        out = Path(OUT.value or Path(workdirs[-1]) / 'samples')
        record = {
            'checkpoint': [str(Path(workdir) / 'checkpoints' / str(step)) for workdir, step in zip(workdirs, steps)],
            'step': list(steps),
            'seed': SEED.value,
            'labels': request.labels,
            'prompts': request.prompts,
            'frames': FRAMES.value,
            'sampler': [build.other_sampler(config['sampler'], sampling) for config in configs],
            'batch_size': BATCH_SIZE.value,
            'seconds_a_batch': [round(value, 3) for value in seconds],  # the first one compiles
            'seconds_a_clip': round(sum(seconds) / len(request), 3),
            'frames_a_second': round(clips.shape[0] * clips.shape[1] / sum(seconds), 2),
            'device': jax.devices()[0].device_kind,
            'files': write(out, clips, names, request.prompts),
        }
        if cascade.chunks(frames) > 1:
            jumps = [border_jump(clip, cascade.last.clip_shape[0], cascade.given) for clip in clips]
            record['border_jump'] = round(float(np.mean(jumps)), 3)
        (out / 'samples.json').write_text(json.dumps(record, indent=2) + '\n')
        print(f'{len(request)} clips in {sum(seconds):.1f} s, in {out}')


def write(out: Path, clips_NTHWC: np.ndarray, names: list[str], prompts: Sequence[str] | None) -> list[str]:
    """Writes all pictures of the clips and returns the names of the files of single clips."""
    out.mkdir(parents=True, exist_ok=True)
    frames = clips_NTHWC.shape[1]
    still = PICTURES.value or frames == 1
    files = [f'{number:04d}_{name}.{"png" if still else "mp4"}' for number, name in enumerate(names)]
    for name, clip_THWC in zip(files, clips_NTHWC):
        if frames == 1:
            write_png(out / name, clip_THWC[0])
        elif still:
            write_png(out / name, contact_sheet(clip_THWC[None], frames=frames))
        else:
            write_mp4(out / name, clip_THWC, FPS.value, SCALE.value)
    columns = NUM.value if NUM.value > 1 else min(len(names), 5)
    if not still:
        write_gif(out / 'samples.gif', tile(clips_NTHWC, columns), FPS.value, SCALE.value)
    write_png(out / 'samples.png', contact_sheet(clips_NTHWC, frames=min(9, frames), captions=prompts))
    return files


if __name__ == '__main__':
    app.run(main)
