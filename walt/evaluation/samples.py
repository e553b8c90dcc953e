"""Whether samples show what was asked for: a class, a caption, the frames that come next, what a small clip showed."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from walt.data.moving_digits import DIRECTIONS
from walt.denoiser.conditions import upsampling
from walt.evaluation.clips import Clips
from walt.evaluation.judge import Judge, agreement
from walt.evaluation.motion import centres, headings
from walt.evaluation.packed_judge import PackedJudge
from walt.evaluation.quality import psnr
from walt.evaluation.retrieval import embed, ranks, retrieval
from walt.features.perceptual import PerceptualDistance
from walt.generation.cascade import Cascade, border_jump
from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.randomness import stream
from walt.tokenizer.pixels import shrink


def sample_clips(stage: Stage, request: Request, seed: int, batch_size: int, frames: int | None = None) -> np.ndarray:
    """uint8 (N, T, H, W, 3)."""
    cascade = Cascade((stage,))
    batches = -(-len(request) // batch_size)
    with tqdm(desc='sample', total=batches * cascade.chunks(frames), unit='chunk') as bar:
        return np.concatenate(list(cascade.clips(request, seed, batch_size, frames, bar.update)))


def measure_samples(
    stage: Stage, judge: Judge | PackedJudge, samples: int, seed: int, batch_size: int
) -> dict[str, Any]:
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


def measure_prompts(
    stage: Stage, judge: Judge | PackedJudge, held_out: Clips, lead: int, seed: int, batch_size: int
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
