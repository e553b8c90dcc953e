"""Measures a run: how well its tokenizer reconstructs, and whether its samples show what was asked for.

python -m walt.evaluate --workdir=runs/denoiser

Writes the figures with the protocol that produced them to WORKDIR/evaluation.json. On the workdir of a tokenizer there
are no samples to measure.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from walt import build
from walt.evaluation.judge import Judge, agreement
from walt.evaluation.quality import psnr, ssim
from walt.features.perceptual import PerceptualDistance
from walt.generation.cascade import Cascade
from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.parallel.mesh import make_mesh
from walt.tokenizer.bottleneck import code_counts, code_metrics
from walt.tokenizer.frozen import FrozenTokenizer
from walt.tokenizer.pixels import from_uint8, to_uint8
from walt.training.checkpoints import saved_config

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a denoiser or tokenizer run.', required=True)
OUT = flags.DEFINE_string('out', None, 'File to write; WORKDIR/evaluation.json by default.')
HELD_OUT = flags.DEFINE_integer('held_out', 200, 'Held-out clips, for reconstruction and for checking the judge.', 1)
TRAINING = flags.DEFINE_integer('training', 4000, 'Real training clips that the judge is trained on.', 1)
SAMPLES = flags.DEFINE_integer('samples', 20, 'Samples of each class.', 1)
SEED = flags.DEFINE_integer('seed', 1, 'Seed of the samples.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 20, 'Clips encoded or sampled together.', 1)
GUIDANCE = flags.DEFINE_float('guidance', None, "Guidance scale; the configuration's by default.")
PERCEPTUAL = flags.DEFINE_list(
    'perceptual', ['squeezenet'], f'Networks for the distance of reconstructions: some of {sorted(build.PERCEPTUAL)}.'
)
STEPS = flags.DEFINE_integer('steps', None, "Sampler steps; the configuration's by default.", lower_bound=1)


def read_clips(source, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` clips and labels of a source: uint8 (N, T, H, W, 3), int (N,)."""
    elements = [source[index] for index in range(min(count, len(source)))]
    return np.stack([element['video'] for element in elements]), np.array([element['label'] for element in elements])


def measure_tokenizer(
    frozen: FrozenTokenizer, videos_NTHWC: np.ndarray, batch_size: int, distances: Sequence[PerceptualDistance] = ()
) -> dict[str, float]:
    """Means over clips of PSNR, SSIM and perceptual distances of uint8 reconstructions, and how codes are used."""
    size = frozen.module.bottleneck.size(frozen.module.latent_channels)

    @jax.jit
    def reconstruct(frozen, video_BTHWC):
        fake_BTHWC, bottled = frozen.module.apply({'params': frozen.params}, from_uint8(video_BTHWC))
        return to_uint8(fake_BTHWC), code_counts(bottled.codes_BTHW, size) if size else 0

    @jax.jit
    def distance(perceptual, fake_BTHWC, real_BTHWC):
        frames = (from_uint8(video).reshape(-1, *video.shape[2:]) for video in (fake_BTHWC, real_BTHWC))
        return perceptual(*frames).reshape(len(real_BTHWC), -1).mean(1)

    batches = [videos_NTHWC[i : i + batch_size] for i in range(0, len(videos_NTHWC), batch_size)]
    fakes, counts = zip(*(jax.device_get(reconstruct(frozen, batch)) for batch in batches))
    reconstructions = np.concatenate(fakes)
    measured = {
        'psnr_db': psnr(reconstructions, videos_NTHWC).mean(),
        'ssim': ssim(reconstructions, videos_NTHWC).mean(),
    }
    for perceptual in distances:
        of_clips = [distance(perceptual, fake, real) for fake, real in zip(fakes, batches)]
        measured[f'perceptual_{perceptual.name}'] = np.concatenate(of_clips).mean()
    measured |= code_metrics(sum(counts)) if size else {}
    return {name: float(value) for name, value in measured.items()}


def measure_samples(stage: Stage, judge: Judge, samples: int, seed: int, batch_size: int) -> dict[str, Any]:
    """What the judge reads in `samples` clips of every class, and the time that they took."""
    labels = np.repeat(np.arange(stage.denoiser.classes), samples)
    start = time.perf_counter()
    clips = np.concatenate(list(Cascade((stage,)).clips(Request(labels.tolist()), seed, batch_size)))
    seconds = time.perf_counter() - start
    read_NT = judge.read(clips)
    by_class = [
        agreement(read_NT[labels == k], labels[labels == k], judge.classes)['clips'] for k in range(judge.classes)
    ]
    return agreement(read_NT, labels, judge.classes) | {
        'clips_by_class': by_class,
        'frames_by_time': (read_NT == labels[:, None]).mean(0).round(3).tolist(),
        'seconds': round(seconds, 1),
    }


def evaluate(workdir: str) -> dict[str, Any]:
    """All figures of a run, and under `protocol` how they came about."""
    config, mesh = saved_config(workdir), make_mesh()
    held_out, held_out_labels = read_clips(build.source(config['data'], 'validation'), HELD_OUT.value)
    distances = [build.perceptual({'name': name}, 'float32') for name in PERCEPTUAL.value if name != 'none']
    protocol = {'data': config['data'], 'held_out_clips': len(held_out), 'device': jax.devices()[0].device_kind}
    protocol['tokenizer'] = 'means over held-out clips of uint8 reconstructions; of frames, for perceptual distances'
    if 'denoiser' not in config:
        frozen, _, step = build.restore_tokenizer(workdir, mesh)
        measured = measure_tokenizer(frozen, held_out, BATCH_SIZE.value, distances)
        return {'step': step, 'tokenizer': measured, 'protocol': protocol}

    asked = {'guidance': GUIDANCE.value, 'steps': STEPS.value}
    sampling = {key: value for key, value in asked.items() if value is not None}
    stage, _, step = build.restore_stage(workdir, mesh, sampling=sampling)
    real, real_labels = read_clips(build.source(config['data'], 'train'), TRAINING.value)
    judge = Judge(stage.denoiser.classes).fit(real, real_labels)
    return {
        'step': step,
        'tokenizer': measure_tokenizer(stage.frozen, held_out, BATCH_SIZE.value, distances),
        'judge_on_held_out': agreement(judge.read(held_out), held_out_labels, judge.classes),
        'samples': measure_samples(stage, judge, SAMPLES.value, SEED.value, BATCH_SIZE.value),
        'protocol': protocol
        | {
            'judge': f'SVM on centred frames of {len(real)} real training clips; clip = majority of frames',
            'samples_of_each_class': SAMPLES.value,
            'seed': SEED.value,
            'sampler': build.other_sampler(config['sampler'], sampling),
        },
    }


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    result = evaluate(WORKDIR.value)
    path = Path(OUT.value or Path(WORKDIR.value) / 'evaluation.json')
    path.write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps({key: value for key, value in result.items() if key != 'protocol'}, indent=2))


if __name__ == '__main__':
    app.run(main)
