"""Measures a run: how well its tokenizer reconstructs, and whether its samples show what was asked for.

python -m walt.evaluate --workdir=runs/denoiser

What a denoiser was trained with is what it is asked: classes, captions, frames to go on from, clips to enlarge. Writes
the figures with the protocol that produced them to WORKDIR/evaluation.json. On the workdir of a tokenizer there are no
samples to measure.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from PIL import Image
from tqdm import tqdm

from walt import build, restore
from walt.data.moving_digits import DIRECTIONS
from walt.denoiser.conditions import upsampling
from walt.evaluation.judge import Judge, agreement
from walt.evaluation.motion import centres, headings
from walt.evaluation.quality import psnr, ssim
from walt.evaluation.retrieval import embed, ranks, retrieval
from walt.features.perceptual import PerceptualDistance
from walt.generation.cascade import Cascade, border_jump
from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.parallel.mesh import make_mesh
from walt.randomness import stream
from walt.tokenizer.bottleneck import code_counts, code_metrics
from walt.tokenizer.frozen import FrozenTokenizer
from walt.tokenizer.pixels import from_uint8, shrink, to_uint8
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
SAMPLER = flags.DEFINE_enum('sampler', None, sorted(build.STEPPERS), "Sampler; the configuration's by default.")
ROLLOUT = flags.DEFINE_integer('rollout', 65, 'Frames of a rollout, of a denoiser that predicts frames.', 1)
STEPS = flags.DEFINE_integer('steps', None, "Sampler steps; the configuration's by default.", lower_bound=1)


class Clips(NamedTuple):
    """Clips uint8 (N, T, H, W, 3), their labels int (N,), and captions, '' where there are none."""

    videos: np.ndarray
    labels: np.ndarray
    captions: list[str]


def read_clips(source, count: int) -> Clips:
    """The first `count` clips of a source; of a folder with more files than that, one of every so many files."""
    every = max(1, len(getattr(source, 'files', ())) // count)
    elements = [source[index] for index in range(0, len(source), every)[:count]]
    videos, labels = (np.stack([element[name] for element in elements]) for name in ('video', 'label'))
    return Clips(videos, labels, [element.get('caption', '') for element in elements])


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
    clips = sample_clips(stage, Request(labels.tolist()), seed, batch_size)
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


def sample_clips(stage: Stage, request: Request, seed: int, batch_size: int, frames: int | None = None) -> np.ndarray:
    """uint8 (N, T, H, W, 3)."""
    cascade = Cascade((stage,))
    batches = -(-len(request) // batch_size)
    with tqdm(desc='sample', total=batches * cascade.chunks(frames), unit='chunk') as bar:
        return np.concatenate(list(cascade.clips(request, seed, batch_size, frames, bar.update)))


def measure_prompts(
    stage: Stage, judge: Judge, held_out: Clips, lead: int, seed: int, batch_size: int
) -> dict[str, Any]:
    """Whether clips of held-out captions show the digit that the caption names, and go where it says.

    Beside the samples stands what the same measures say of the real clips of these captions, which go straight for
    `lead` frames.
    """
    ways_K2 = np.array([way for _, *way in DIRECTIONS])
    says_NK = [[caption.endswith(f' moving {words}') for words, *_ in DIRECTIONS] for caption in held_out.captions]
    asked_N = np.argmax(says_NK, axis=1)

    def measure(videos_NTHWC):
        right_way_N = headings(videos_NTHWC, lead, ways_K2) == asked_N
        read = agreement(judge.read(videos_NTHWC), held_out.labels, judge.classes)
        return {'digit': read['clips'], 'direction': float(right_way_N.mean())}

    samples = sample_clips(stage, Request(prompts=list(held_out.captions)), seed, batch_size)
    return {'samples': measure(samples), 'real': measure(held_out.videos)}


def measure_retrieval(
    stage: Stage, clips: Clips, network: PerceptualDistance, seed: int, batch_size: int
) -> dict[str, float]:
    """Where the real clip of a caption stands, among one of each caption, by likeness to a sample of this caption."""
    captions, first_N = np.unique(clips.captions, return_index=True)
    samples = sample_clips(stage, Request(prompts=captions.tolist()), seed, batch_size)
    return retrieval(ranks(embed(network, samples), embed(network, clips.videos[first_N])))


def measure_prediction(stage: Stage, held_out: Clips, seed: int, batch_size: int, frames: int) -> dict[str, float]:
    """How far the bright mass is from where it went, after the frames of a chunk, and what borders of chunks show.

    The last frame of a chunk that begins with real frames against the real one: the median distance, in pixels, of the
    centres of brightness; and the same if nothing moved any more. Then rollouts to `frames` frames: their border jump.
    """
    cascade = Cascade((stage,))
    given = held_out.videos[:, : cascade.given]
    prompts = list(held_out.captions) if 'text' in stage.denoiser.conditions else None
    request = Request(prompts=prompts, frames_NTHWC=given)
    rollouts = sample_clips(stage, request, seed, batch_size, frames)
    length = stage.clip_shape[0]
    real_N2 = centres(held_out.videos[:, length - 1 : length])[:, 0]
    found_N2, still_N2 = (centres(clips)[:, 0] for clips in (rollouts[:, length - 1 : length], given[:, -1:]))
    jumps = [border_jump(clip, length, cascade.given) for clip in rollouts] if frames > length else []
    return {
        'centre_off_pixels': float(np.median(np.linalg.norm(found_N2 - real_N2, axis=1))),
        'centre_off_pixels_if_still': float(np.median(np.linalg.norm(still_N2 - real_N2, axis=1))),
        'rollout_frames': frames,
        'border_jump': float(np.mean(jumps)) if jumps else None,
    }


def measure_upsampling(stage: Stage, held_out: Clips, seed: int, batch_size: int) -> dict[str, float]:
    """PSNR of super-resolution from the latents of shrunk held-out clips, and of bicubic interpolation of their pixels.

    The tokenizer's own reconstruction bounds the first, and what shrinking leaves the second.
    """
    factor, count = upsampling(stage.denoiser), len(held_out.videos)
    made, bicubic = [], []
    for first in range(0, count, batch_size):
        chosen = np.arange(first, first + batch_size) % count  # The last batch is filled up.
        small = np.asarray(shrink(jnp.asarray(held_out.videos[chosen]), factor))
        bicubic += [[_bicubic(frame, factor) for frame in clip] for clip in small]
        request = Request(
            [-1] * batch_size, [held_out.captions[i] for i in chosen] if 'text' in stage.denoiser.conditions else None
        )
        key_B = stream(jax.random.key(seed), 'clip', jnp.arange(first, first + batch_size))
        made += list(stage.decode(stage.latents(stage.conditions(request, stage.encode(small)), key_B)))
    return {
        'psnr_db': float(psnr(np.stack(made[:count]), held_out.videos).mean()),
        'bicubic_psnr_db': float(psnr(np.stack(bicubic[:count]), held_out.videos).mean()),
    }


def _bicubic(frame_HWC: np.ndarray, factor: int) -> np.ndarray:
    height, width, _ = frame_HWC.shape
    return np.asarray(Image.fromarray(frame_HWC).resize((width * factor, height * factor), Image.Resampling.BICUBIC))


def evaluate(workdir: str) -> dict[str, Any]:
    """All figures of a run, and under `protocol` how they came about."""
    config, mesh = saved_config(workdir), make_mesh()
    data = build.clips_section(config['data'])
    validation = build.source(data, 'validation')
    held_out = read_clips(validation, HELD_OUT.value)
    distances = [build.perceptual({'name': name}, 'float32') for name in PERCEPTUAL.value if name != 'none']
    protocol = {'data': data, 'held_out_clips': len(held_out.videos), 'device': jax.devices()[0].device_kind}
    protocol['tokenizer'] = 'means over held-out clips of uint8 reconstructions; of frames, for perceptual distances'
    if 'denoiser' not in config:
        frozen, _, step = restore.tokenizer(workdir, mesh)
        measured = measure_tokenizer(frozen, held_out.videos, BATCH_SIZE.value, distances)
        return {'step': step, 'tokenizer': measured, 'protocol': protocol}

    asked = {'name': SAMPLER.value, 'guidance': GUIDANCE.value, 'steps': STEPS.value}
    sampling = {key: value for key, value in asked.items() if value is not None}
    stage, _, step = restore.stage(workdir, mesh, sampling=sampling)
    result = {'step': step, 'tokenizer': measure_tokenizer(stage.frozen, held_out.videos, BATCH_SIZE.value, distances)}
    protocol |= {'seed': SEED.value, 'sampler': build.other_sampler(config['sampler'], sampling)}
    rest = (SEED.value, BATCH_SIZE.value)
    if 'low' in stage.denoiser.conditions:
        result['upsampling'] = measure_upsampling(stage, held_out, *rest)
        protocol['upsampling'] = 'from the latents of held-out clips, each pixel the mean of those it covers'
        return result | {'protocol': protocol}
    tells_motion = 'text' in stage.denoiser.conditions and data['name'] == 'moving_digits'
    if stage.denoiser.classes or tells_motion:
        real = read_clips(build.source(data, 'train'), TRAINING.value)
        classes = int(max(real.labels.max(), held_out.labels.max())) + 1
        judge = Judge(classes).fit(real.videos, real.labels)
        protocol['judge'] = (
            f'SVM on centred frames of {len(real.videos)} real training clips; clip = majority of frames'
        )
        result['judge_on_held_out'] = agreement(judge.read(held_out.videos), held_out.labels, classes)
    if stage.denoiser.classes:
        result['samples'] = measure_samples(stage, judge, SAMPLES.value, *rest)
        protocol['samples_of_each_class'] = SAMPLES.value
    if tells_motion:
        result['prompts'] = measure_prompts(stage, judge, held_out, validation.lead, *rest)
        protocol['prompts'] = f'captions of held-out clips; heading of the bright mass over {validation.lead} frames'
    elif 'text' in stage.denoiser.conditions:
        network = build.perceptual({'name': 'squeezenet'}, 'float32')
        seen = read_clips(build.source(data, 'train'), HELD_OUT.value)
        result['retrieval'] = {
            split: measure_retrieval(stage, clips, network, *rest)
            for split, clips in (('held_out', held_out), ('training', seen))
        }
        protocol['retrieval'] = 'rank of the real clip of a caption among real clips, by likeness to the sample'
    if 'frames' in stage.denoiser.conditions:
        result['prediction'] = measure_prediction(stage, held_out, *rest, ROLLOUT.value)
        protocol['prediction'] = 'from the first frames of held-out clips; last frame of a chunk'
    return result | {'protocol': protocol}


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    result = evaluate(WORKDIR.value)
    path = Path(OUT.value or Path(WORKDIR.value) / 'evaluation.json')
    path.write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps({key: value for key, value in result.items() if key != 'protocol'}, indent=2))


if __name__ == '__main__':
    app.run(main)
