"""Runs on disk -> objects: what a program goes on from, and what it samples with.

A workdir holds the configuration it was trained with, so nothing else needs to be said of it.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from walt import build
from walt.denoiser.conditions import Denoiser
from walt.denoiser.packed import PackedDenoiser
from walt.dense_or_packed import stage_of, way_of
from walt.diffusion.loss import DenoisingLoss
from walt.evaluation.packed_judge import PackedJudge
from walt.generation.packed_stage import PackedStage
from walt.generation.stage import Stage, Weak
from walt.navit.classifier import Classifier
from walt.parallel.rules import replicated
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.frozen import NO_TOKENIZER, FrozenTokenizer, LatentNorm, Pixels
from walt.tokenizer.inflation import inflate
from walt.training.checkpoints import restore_ema, saved_config
from walt.training.state import abstract_params, ema_decays


def own_tokenizer(workdir: str) -> str:
    """Where a denoiser's workdir keeps a copy of the tokenizer that it was trained on."""
    return os.path.join(workdir, 'tokenizer')


def _whole(tree: Any, mesh: Mesh) -> Any:
    """Shapes -> shapes that every device has the whole of."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def smallest_clip(module: Tokenizer) -> tuple[int, int, int, int]:
    """(frames, height, width, channels) in pixels of one latent: parameters do not depend on the size of clips."""
    return (1, *[math.prod(module.spatial_strides)] * 2, module.pixel_channels)


def tokenizer(
    workdir: str, mesh: Mesh, step: int | None = None, decay: float | None = None
) -> tuple[FrozenTokenizer, dict[str, Any], int]:
    """The trained tokenizer in `workdir`: (averaged parameters and latent norm, its configuration, step).

    `decay` picks the average, as `restore_ema`; the configuration comes back with this one as its only `ema_decay`.
    """
    config = saved_config(workdir, step)
    module = build.tokenizer(config['tokenizer'], config['dtype'])
    norm = jax.eval_shape(lambda: LatentNorm.identity(module.latent_channels))
    items = {
        'params': abstract_params(build.init_tokenizer(module, smallest_clip(module)), mesh),
        'measured': _whole(norm, mesh),
    }
    restored, step = restore_ema(workdir, items, step, decay)
    config['ema_decay'] = ema_decays(config['ema_decay'])[0] if decay is None else decay
    return FrozenTokenizer(module, restored['params'], restored['measured']), config, step


def starting_tokenizer(tokenizer_dir: str, module: Tokenizer, params: Any, mesh: Mesh) -> tuple[Any, LatentNorm | None]:
    """The averaged parameters of another run, inflated if that one is of images and `module` is of video; and its
    norm, or None where they are inflated, since clips have latents of other statistics.

    Args:
        params: new parameters of `module`, whose shapes and layout the result has.

    Raises:
        ValueError: if the two tokenizers differ in anything else than time, naming each difference with both values.
    """
    frozen, _, _ = tokenizer(tokenizer_dir, mesh)
    if type(frozen.module) is not type(module):
        there, here = type(frozen.module).__name__, type(module).__name__
        raise ValueError(f'the tokenizer in {tokenizer_dir} does not fit: it is a {there}, that of this run a {here}')
    inflated = isinstance(module, Tokenizer) and frozen.module.kernel_t == 1 != module.kernel_t
    free = {'parent', 'name', 'dtype', 'remat'} | ({'kernel_t', 'temporal_strides'} if inflated else set())
    fields = [field.name for field in dataclasses.fields(module) if field.name not in free]
    changed = [
        f'{name}: {getattr(frozen.module, name)!r} there, {getattr(module, name)!r} here'
        for name in fields
        if getattr(frozen.module, name) != getattr(module, name)
    ]
    if changed:
        raise ValueError(f'the tokenizer in {tokenizer_dir} does not fit: ' + '; '.join(changed))
    found = inflate(frozen.params, params) if inflated else frozen.params
    placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), found, params)
    return placed, None if inflated else frozen.norm


def starting_denoiser(section: Mapping[str, Any], module: Denoiser, params: Any, mesh: Mesh) -> Any:
    """The averaged parameters of the run in `denoiser_dir`, for latents of another height and width, or for other rows,
    if need be.

    Args:
        section: `start`; an empty `denoiser_dir` returns `params`.
        params: new parameters of `module`, whose layout the result has.

    Raises:
        ValueError: if the two denoisers differ in anything else, naming each difference with both values.
    """
    if set(section) != {'denoiser_dir'}:
        raise ValueError(f"start has the key 'denoiser_dir', not {sorted(section)}")
    if not section['denoiser_dir']:
        return params
    restored, there, _, _ = denoiser(section['denoiser_dir'], mesh)
    found = way_of(module).start(restored['params'], there, module)
    return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), found, params)


def denoiser(workdir: str, mesh: Mesh, step: int | None = None, decay: float | None = None):
    """The trained denoiser in `workdir`: ({'params', 'measured': null text or None}, module, configuration, step)."""
    config = saved_config(workdir, step)
    module = build.denoiser(config['denoiser'], config['dtype'])
    measured = _whole(build.abstract_null_text(module), mesh)
    items = {'params': abstract_params(build.init_denoiser(module), mesh), 'measured': measured}
    restored, step = restore_ema(workdir, items, step, decay)
    return restored, module, config, step


def stage(
    workdir: str,
    mesh: Mesh,
    step: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    decay: float | None = None,
    weak_workdir: str | None = None,
) -> tuple[Stage, dict[str, Any], int]:
    """The trained denoiser in `workdir` with its tokenizer, ready to sample: (stage, its configuration, step).

    Args:
        sampling: keys that replace those of the configuration's section `sampler`.
        decay: of the average to sample from, where the run kept several; the first by default.
        weak_workdir: of a denoiser to guide away from (autoguidance), by the sampler's `weak_guidance`.

    Raises:
        ValueError: if the weak denoiser is of other latents, conditions or predictions, naming both.
    """
    restored, module, config, step = denoiser(workdir, mesh, step, decay)
    if isinstance(module, PackedDenoiser):
        raise ValueError(f'{workdir} holds a denoiser of packed rows: sample it with `python -m walt.sample_packed`')
    frozen, _, _ = tokenizer(own_tokenizer(workdir), mesh)
    noise = build.schedule(config['schedule'])
    objective, encoder = build.loss(config['loss'], noise), build.text_encoder(config['text'])
    restored_stage = stage_of(
        module,
        restored['params'],
        frozen,
        noise,
        objective,
        build.other_sampler(config['sampler'], sampling or {}),
        mesh,
        encode_text=encoder and encoder.encode,
        null_text=restored['measured'],
        most_given=max(build.conditioning(config['conditioning'], noise).given_frames),
        weak=weak_workdir and _weak(weak_workdir, mesh, module, objective),
    )
    return restored_stage, config, step


def classifier(workdir: str, mesh: Mesh, step: int | None = None) -> tuple[Classifier, dict[str, Any], int]:
    """The trained classifier in `workdir`: (averaged parameters, its configuration, step)."""
    config = saved_config(workdir, step)
    module = build.classifier(config)
    items = {'params': abstract_params(build.init_classifier(module), mesh), 'measured': None}
    restored, step = restore_ema(workdir, items, step)
    return Classifier(module, restored['params']), config, step


def packed_judge(workdir: str, mesh: Mesh) -> tuple[PackedJudge, dict[str, Any], int]:
    """The trained classifier in `workdir` as a judge of pictures: (judge, its configuration, step).

    Raises:
        ValueError: if it is no classifier of pixels, naming what it was trained on.
    """
    config = saved_config(workdir)
    if 'classifier' not in config:
        raise ValueError(f'{workdir} holds no classifier; its configuration has {sorted(config)}')
    trained, config, step = classifier(workdir, mesh)
    if trained.module.channels != 3:
        raise ValueError(f'{workdir} reads clips of {trained.module.channels} channels; a judge reads pixels')
    data = config['data']
    sides = build.construct('resolution', data.get('resolution', {'name': 'native'}), build.RESOLUTIONS)
    return PackedJudge(trained, sides, data['length'], data['most']), config, step


def packed_stage(
    workdir: str,
    mesh: Mesh,
    step: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    decay: float | None = None,
    classifier_workdir: str | None = None,
    classifier_guidance: float = 0.0,
) -> tuple[PackedStage, dict[str, Any], int]:
    """As `stage`, for a denoiser of packed rows.

    Args:
        classifier_workdir: of a classifier of noised rows to guide by, with the scale `classifier_guidance`.

    Raises:
        ValueError: if the run is of another denoiser; if the sampler has a key that packed rows have no use for; as
            `check_guide` and `PackedStage`.
    """
    restored, module, config, step = denoiser(workdir, mesh, step, decay)
    if not isinstance(module, PackedDenoiser):
        raise ValueError(f'{workdir} holds a {type(module).__name__}, no denoiser of packed rows')
    pixels = config['tokenizer_dir'] == NO_TOKENIZER
    noise = build.schedule(config['schedule'])
    objective = build.loss(config['loss'], noise)
    guide = None
    if classifier_workdir:
        check_guide(saved_config(classifier_workdir), config)
        guide = jax.tree_util.Partial(Classifier.log_prob_of_rows, classifier(classifier_workdir, mesh)[0])
    restored_stage = stage_of(
        module,
        restored['params'],
        Pixels() if pixels else tokenizer(own_tokenizer(workdir), mesh)[0],
        noise,
        objective,
        build.other_sampler(config['sampler'], sampling or {}),
        mesh,
        classifier=guide,
        classifier_guidance=classifier_guidance,
    )
    return restored_stage, config, step


def check_guide(config: Mapping[str, Any], denoiser_config: Mapping[str, Any]) -> None:
    """Raises `ValueError` if the run of a classifier cannot guide that of a denoiser of packed rows, naming all that
    differs with both values. How long rows are, and how many clips they hold, is the denoiser's business alone."""
    if 'classifier' not in config:
        raise ValueError(f'what is to guide is no run of a classifier: its configuration has {sorted(config)}')
    guide, guided = build.classifier(config), build.denoiser(denoiser_config['denoiser'], denoiser_config['dtype'])
    if not guide.timed:
        raise ValueError(f'a classifier of noised clips guides, and noising of this one is {dict(config["noising"])}')
    of_pixels = (
        build.clips_section(config['data'])['name'] != 'encoded',
        denoiser_config['tokenizer_dir'] == NO_TOKENIZER,
    )
    pairs = {
        'clips': tuple('pixels' if pixels else 'latents' for pixels in of_pixels),
        'classes': (guide.classes, guided.classes),
        'patch': (tuple(guide.patch), tuple(guided.tile)),
        'channels': (guide.channels, guided.channels),
        'schedule': (build.noising(config['noising']).schedule, build.schedule(denoiser_config['schedule'])),
    }
    changed = [
        f'{name}: {own} of the classifier, {other} of the denoiser'
        for name, (own, other) in pairs.items()
        if own != other
    ]
    if changed:
        raise ValueError('classifier and denoiser do not fit each other: ' + '; '.join(changed))
    largest = guided.extent if guided.position == 'learned' and not guided.fractional else (guided.length,) * 3
    learned = guide.positions == 'learned' and not guide.fractional
    if learned and any(most > known for most, known in zip(largest, guide.extent)):
        raise ValueError(
            f'the denoiser makes clips of up to {tuple(largest)} tokens, but positions of the classifier are learned '
            f'for {tuple(guide.extent)}'
        )


def _weak(workdir: str, mesh: Mesh, module: Denoiser, objective: DenoisingLoss) -> Weak:
    restored, weak, config, _ = denoiser(workdir, mesh)
    predicts = build.loss(config['loss'], build.schedule(config['schedule'])).parametrisation
    pairs = {
        'latents': (weak.latent_shape, module.latent_shape),
        'conditions': (weak.conditions, module.conditions),
        'prediction': (predicts, objective.parametrisation),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            raise ValueError(f'the weak denoiser in {workdir} has other {name}: {there}, the denoiser {here}')
    return Weak(weak, restored['params'])
