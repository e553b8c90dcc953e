"""What a classifier of packed rows reads in clips of many sizes: in real ones, and in samples of packed rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from walt.evaluation.packed_judge import PackedJudge
from walt.generation.packed_stage import PackedStage, read_shape


def measure_classifier(judge: PackedJudge, source, count: int) -> dict[str, Any]:
    """How much of what is read in the first `count` clips of a source is their label; and by how they are shaped:

    `tall` and `wide` ones have one side of at least 1.5 of the other, `square` ones less.
    """
    elements = [source[index] for index in range(min(count, len(source)))]
    read_N = judge.read_clips([element['video'] for element in elements])
    right_N = read_N == np.array([element['label'] for element in elements])
    aspect_N = np.array([element['video'].shape[1] / element['video'].shape[2] for element in elements])
    shapes = {'tall': aspect_N >= 1.5, 'wide': aspect_N <= 1 / 1.5}
    shapes['square'] = ~(shapes['tall'] | shapes['wide'])
    by_shape = {name: float(right_N[of].mean()) for name, of in shapes.items() if of.any()}
    return {'clips': len(elements), 'accuracy': float(right_N.mean()), 'accuracy_by_shape': by_shape}


def measure_packed_samples(
    stage: PackedStage, judge: PackedJudge, shapes: Sequence[str], samples: int, seed: int, rows: int
) -> dict[str, dict[str, Any]]:
    """What the judge reads in `samples` clips of every class, of every shape FRAMESxHEIGHTxWIDTH."""
    labels = np.repeat(np.arange(stage.denoiser.classes), samples)
    measured = {}
    for shape in shapes:
        clips = stage.clips([read_shape(shape)] * len(labels), labels.tolist(), seed, rows)
        right_N = judge.read_clips(clips) == labels
        by_class = [float(right_N[labels == k].mean()) for k in range(stage.denoiser.classes)]
        measured[shape] = {'clips': float(right_N.mean()), 'clips_by_class': by_class}
    return measured
