"""Measures a run: how well its tokenizer reconstructs, and whether its samples show what was asked for.

python -m walt.evaluate --workdir=runs/denoiser

What a denoiser was trained with is what it is asked: classes, captions, frames to go on from, clips to enlarge. Writes
the figures with the protocol that produced them to WORKDIR/evaluation.json. On the workdir of a tokenizer there are no
samples to measure; on that of a classifier (`walt.train_classifier`), what it reads in held-out clips. With
`--judge=CLASSIFIER_WORKDIR` such a classifier reads the samples in place of the judge that is trained here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from jax.sharding import Mesh

from walt import build, restore
from walt.evaluation.clips import Clips, read_clips
from walt.evaluation.judge import Judge, agreement
from walt.evaluation.packed import measure_classifier, measure_packed_samples
from walt.evaluation.packed_judge import PackedJudge
from walt.evaluation.reconstruction import measure_tokenizer
from walt.evaluation.samples import (
    measure_prediction,
    measure_prompts,
    measure_retrieval,
    measure_samples,
    measure_upsampling,
)
from walt.parallel.mesh import batch_shards, make_mesh
from walt.tokenizer.frozen import FrozenTokenizer
from walt.training.checkpoints import saved_config

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a denoiser or tokenizer run.', required=True)
OUT = flags.DEFINE_string('out', None, 'File to write; WORKDIR/evaluation.json by default.')
HELD_OUT = flags.DEFINE_integer('held_out', 200, 'Held-out clips, for reconstruction and for checking the judge.', 1)
TRAINING = flags.DEFINE_integer('training', 4000, 'Real training clips that the judge is trained on.', 1)
JUDGE = flags.DEFINE_string('judge', None, 'Folder of a classifier run that reads samples; by default an SVM is fit.')
SHAPES = flags.DEFINE_list('shapes', None, 'FRAMESxHEIGHTxWIDTH of samples, of a denoiser of packed rows.')
SAMPLES = flags.DEFINE_integer('samples', 20, 'Samples of each class.', 1)
SEED = flags.DEFINE_integer('seed', 1, 'Seed of the samples.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 20, 'Clips encoded or sampled together.', 1)
GUIDANCE = flags.DEFINE_float('guidance', None, "Guidance scale; the configuration's by default.")
CLASSIFIER = flags.DEFINE_string(
    'classifier', None, 'Folder of a classifier of noised rows; guides samples of packed rows.'
)
CLASSIFIER_GUIDANCE = flags.DEFINE_float('classifier_guidance', 0.0, 'Scale of the guidance by it; 0 is none.')
PERCEPTUAL = flags.DEFINE_list(
    'perceptual', ['squeezenet'], f'Networks for the distance of reconstructions: some of {sorted(build.PERCEPTUAL)}.'
)
SAMPLER = flags.DEFINE_enum('sampler', None, sorted(build.STEPPERS), "Sampler; the configuration's by default.")
ROLLOUT = flags.DEFINE_integer('rollout', 65, 'Frames of a rollout, of a denoiser that predicts frames.', 1)
STEPS = flags.DEFINE_integer('steps', None, "Sampler steps; the configuration's by default.", lower_bound=1)

READ_AS = 'packed; as large as they are, within the sides of the training'
Measured = tuple[dict[str, Any], dict[str, Any]]  # figures, protocol


def evaluate(workdir: str) -> dict[str, Any]:
    """All figures of a run, and under `protocol` how they came about."""
    config, mesh = saved_config(workdir), make_mesh()
    if 'classifier' in config:
        measure = of_classifier
    elif config['data']['name'] == 'packed':
        measure = of_packed_denoiser
    else:
        measure = of_denoiser if 'denoiser' in config else of_tokenizer
    if (CLASSIFIER.value or CLASSIFIER_GUIDANCE.value) and measure is not of_packed_denoiser:
        raise ValueError(f'a classifier guides samples of packed rows, and {workdir} makes none')
    data = build.clips_section(config['data'])
    figures, protocol = measure(workdir, data, mesh)
    return figures | {'protocol': {'data': data, 'device': jax.devices()[0].device_kind} | protocol}


def of_tokenizer(workdir: str, data: Mapping[str, Any], mesh: Mesh) -> Measured:
    frozen, _, step = restore.tokenizer(workdir, mesh)
    return of_reconstructions(frozen, step, read_clips(build.source(data, 'validation'), HELD_OUT.value))


def of_reconstructions(frozen: FrozenTokenizer, step: int, held_out: Clips) -> Measured:
    distances = [build.perceptual({'name': name}, 'float32') for name in PERCEPTUAL.value if name != 'none']
    measured = measure_tokenizer(frozen, held_out.videos, BATCH_SIZE.value, distances)
    said = 'means over held-out clips of uint8 reconstructions; of frames, for perceptual distances'
    return {'step': step, 'tokenizer': measured}, {'held_out_clips': len(held_out.videos), 'tokenizer': said}


def of_denoiser(workdir: str, data: Mapping[str, Any], mesh: Mesh) -> Measured:
    stage, config, step = restore.stage(workdir, mesh, sampling=sampling())
    conditions, rest = stage.denoiser.conditions, (SEED.value, BATCH_SIZE.value)
    validation = build.source(data, 'validation')
    held_out = read_clips(validation, HELD_OUT.value)
    figures, protocol = of_reconstructions(stage.frozen, step, held_out)
    protocol |= {'seed': SEED.value, 'sampler': build.other_sampler(config['sampler'], sampling())}
    if 'low' in conditions:
        figures['upsampling'] = measure_upsampling(stage, held_out, *rest)
        protocol['upsampling'] = 'from the latents of held-out clips, each pixel the mean of those it covers'
        return figures, protocol
    tells_motion = 'text' in conditions and data['name'] == 'moving_digits'
    if stage.denoiser.classes or tells_motion:
        judge, protocol['judge'] = find_judge(data, held_out, mesh)
        figures['judge_on_held_out'] = agreement(judge.read(held_out.videos), held_out.labels, judge.classes)
    if stage.denoiser.classes:
        figures['samples'] = measure_samples(stage, judge, SAMPLES.value, *rest)
        protocol['samples_of_each_class'] = SAMPLES.value
    if tells_motion:
        figures['prompts'] = measure_prompts(stage, judge, held_out, validation.lead, *rest)
        protocol['prompts'] = f'captions of held-out clips; heading of the bright mass over {validation.lead} frames'
    elif 'text' in conditions:
        network = build.perceptual({'name': 'squeezenet'}, 'float32')
        seen = read_clips(build.source(data, 'train'), HELD_OUT.value)
        figures['retrieval'] = {
            split: measure_retrieval(stage, clips, network, *rest)
            for split, clips in (('held_out', held_out), ('training', seen))
        }
        protocol['retrieval'] = 'rank of the real clip of a caption among real clips, by likeness to the sample'
    if 'frames' in conditions:
        figures['prediction'] = measure_prediction(stage, held_out, *rest, ROLLOUT.value)
        protocol['prediction'] = 'from the first frames of held-out clips; last frame of a chunk'
    return figures, protocol


def of_classifier(workdir: str, data: Mapping[str, Any], mesh: Mesh) -> Measured:
    judge, _, step = restore.packed_judge(workdir, mesh)
    measured = measure_classifier(judge, build.source(data, 'validation'), HELD_OUT.value)
    return {'step': step, 'classifier': measured}, {'classifier': READ_AS}


def of_packed_denoiser(workdir: str, data: Mapping[str, Any], mesh: Mesh) -> Measured:
    """By the judge of `--judge`, at the shapes of `--shapes`."""
    if not (JUDGE.value and SHAPES.value):
        raise ValueError(
            'samples of packed rows have any shape: name some with --shapes, and a classifier with --judge'
        )
    guide = {'classifier_workdir': CLASSIFIER.value, 'classifier_guidance': CLASSIFIER_GUIDANCE.value}
    stage, config, step = restore.packed_stage(workdir, mesh, sampling=sampling(), **guide)
    judge, _, judge_step = restore.packed_judge(JUDGE.value, mesh)
    if judge.classes != stage.denoiser.classes:
        raise ValueError(f'the judge knows {judge.classes} classes, the denoiser {stage.denoiser.classes}')
    shards = batch_shards(mesh)
    rows = shards * -(-BATCH_SIZE.value // (shards * stage.denoiser.most))
    figures = {
        'step': step,
        'judge_on_held_out': measure_classifier(judge, build.source(data, 'validation'), HELD_OUT.value),
        'samples': measure_packed_samples(stage, judge, SHAPES.value, SAMPLES.value, SEED.value, rows),
    }
    return figures, {
        'judge': f'NaViT of {JUDGE.value}, step {judge_step}; {READ_AS}',
        'samples_of_each_class': SAMPLES.value,
        'seed': SEED.value,
        'sampler': build.other_sampler(config['sampler'], sampling()),
        **guide,
    }


def find_judge(data: Mapping[str, Any], held_out: Clips, mesh: Mesh) -> tuple[Judge | PackedJudge, str]:
    """The judge of samples, and what to say of it.

    Raises:
        ValueError: if the classifier of `--judge` has other classes than the data.
    """
    if JUDGE.value:
        judge, config, step = restore.packed_judge(JUDGE.value, mesh)
        if judge.classes <= held_out.labels.max():
            raise ValueError(f'{JUDGE.value} knows {judge.classes} classes, the data have {held_out.labels.max() + 1}')
        trained_on = build.clips_section(config['data'])['name']
        return judge, f'NaViT of {JUDGE.value}, step {step}, trained on {trained_on}; clip = majority of frames'
    real = read_clips(build.source(data, 'train'), TRAINING.value)
    classes = int(max(real.labels.max(), held_out.labels.max())) + 1
    judge = Judge(classes).fit(real.videos, real.labels)
    return judge, f'SVM on centred frames of {len(real.videos)} real training clips; clip = majority of frames'


def sampling() -> dict[str, Any]:
    """What the flags change of the configuration's sampler."""
    asked = {'name': SAMPLER.value, 'guidance': GUIDANCE.value, 'steps': STEPS.value}
    return {key: value for key, value in asked.items() if value is not None}


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    result = evaluate(WORKDIR.value)
    path = Path(OUT.value or Path(WORKDIR.value) / 'evaluation.json')
    path.write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps({key: value for key, value in result.items() if key != 'protocol'}, indent=2))


if __name__ == '__main__':
    app.run(main)
