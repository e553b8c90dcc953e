"""Configuration -> objects. The only reader of configurations.

A section's `name` picks from a table below; the rest of the section are that constructor's keyword arguments. So a key
is documented where its class is, and `grep` for a key of a config finds the field that takes it. Names that are not in
a table and keys that no constructor takes are errors that list the choices.
"""

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_flags

from walt.data.encoded import Encoded
from walt.data.image_folder import ImageFolder
from walt.data.joint import Joint
from walt.data.moving_digits import MovingDigits
from walt.data.video_folder import VideoFolder
from walt.denoiser.aspect import change_aspect
from walt.denoiser.conditions import NullText, abstract
from walt.denoiser.walt import Walt
from walt.diffusion.guidance import Interval, PowerCosine
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import ContinuousLinear, Cosine, DiscreteLinear, RectifiedFlow, Schedule
from walt.diffusion.steppers import Ddim, DpmSolverPlusPlus2M, Heun, ancestral
from walt.features.perceptual import squeezenet_distance, vgg_distance
from walt.generation.stage import Stage, Weak
from walt.parallel.rules import replicated
from walt.precision import compute_dtype
from walt.text.encoder import TextEncoder
from walt.text.minilm import MiniLm
from walt.text.t5 import T5
from walt.text.wordllama import WordLlama
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.bottleneck import Continuous, Fsq, Kl, Lfq, Vq
from walt.tokenizer.discriminator import Discriminator
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.tokenizer.inflation import inflate
from walt.tokenizer.objective import Objective
from walt.training.checkpoints import restore_ema, saved_config
from walt.training.conditions import Conditioning
from walt.training.optimizer import adafactor, adamw, muon
from walt.training.state import abstract_params, ema_decays

SOURCES = {
    'moving_digits': MovingDigits,
    'video_folder': VideoFolder,
    'image_folder': ImageFolder,
    'encoded': Encoded,
}
TOKENIZERS = {'causal_cnn': Tokenizer}
BOTTLENECKS = {'none': Continuous, 'kl': Kl, 'vq': Vq, 'lfq': Lfq, 'fsq': Fsq}
DISCRIMINATORS = {'none': lambda dtype: None, 'residual_3d': Discriminator}
PERCEPTUAL = {'none': lambda dtype: None, 'squeezenet': squeezenet_distance, 'vgg': vgg_distance}
TEXT_ENCODERS = {'none': lambda: None, 'wordllama': WordLlama, 'minilm': MiniLm, 't5': T5}
DENOISERS = {'walt': Walt}
SCHEDULES = {
    'discrete_linear': DiscreteLinear,
    'continuous_linear': ContinuousLinear,
    'cosine': Cosine,
    'rectified_flow': RectifiedFlow,
}
STEPPERS = {'ddim': Ddim, 'ancestral': ancestral, 'heun': Heun, 'dpm_solver_pp_2m': DpmSolverPlusPlus2M}
GUIDANCE_SCALES = {'power_cosine': PowerCosine, 'interval': Interval}
OPTIMIZERS = {'adamw': adamw, 'adafactor': adafactor, 'muon': muon}

_RUN_KEYS = {'seed', 'batch_size', 'steps', 'data', 'tokenizer', 'optimizer', 'ema_decay', 'dtype', 'mesh'}
_RUN_KEYS |= {'log_every', 'checkpoint_every', 'validate_every', 'validation_batches'}
TOKENIZER_KEYS = _RUN_KEYS | {'losses', 'perceptual', 'discriminator', 'start', 'latent_norm_batches'}
DENOISER_KEYS = _RUN_KEYS - {'tokenizer'} | {'tokenizer_dir', 'cache_latents', 'text', 'denoiser', 'start'}
DENOISER_KEYS |= {'schedule', 'loss', 'conditioning', 'sampler'}


def config_flag():
    """Defines `--config=configs/NAME.py[:smoke]` with overrides `--config.section.key=value`; unknown keys fail."""
    return config_flags.DEFINE_config_file('config', lock_config=True)


def check_keys(config: Mapping[str, Any], keys: set[str]) -> None:
    """Raises `ValueError` if the configuration lacks one of `keys` or has another."""
    missing, unknown = sorted(keys - set(config)), sorted(set(config) - keys)
    if missing or unknown:
        raise ValueError(f'configuration keys missing: {missing}, unknown: {unknown}; it has {sorted(keys)}')


def construct(kind: str, section: Mapping[str, Any], choices: Mapping[str, Callable], **given: Any) -> Any:
    """Calls `choices[section['name']]` with the rest of the section and what the program itself gives.

    Raises:
        ValueError: on an unknown name or key, with the choices, and where a key is missing or given twice.
    """
    keys = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
    name = keys.pop('name', None)
    if name not in choices:
        raise ValueError(f'unknown {kind} {name!r}; choices: {sorted(choices)}')
    parameters = inspect.signature(choices[name]).parameters
    settable = set(parameters) - set(given) - {'name', 'parent'}  # the last two are Linen's own
    unknown = sorted(set(keys) - settable)
    if unknown:
        raise ValueError(f'unknown keys {unknown} in {kind} {name!r}; choices: {sorted(settable)}')
    missing = sorted(key for key in settable - set(keys) if parameters[key].default is inspect.Parameter.empty)
    if missing:
        raise ValueError(f'{kind} {name!r} needs {missing}')
    return choices[name](**keys, **given)


def source(section: Mapping[str, Any], split: str):
    """The data set of a section; `split` is 'train' or 'validation'. Those of `joint` are sections of their own."""
    if section.get('name') == 'joint':
        section = dict(section) | {
            part: source(section[part], split) for part in ('clips', 'pictures') if part in section
        }
        return construct('data', section, {'joint': Joint})
    return construct('data', section, SOURCES, split=split)


def tokenizer(section: Mapping[str, Any], dtype: str) -> Tokenizer:
    """The module; its `bottleneck` is a section of its own."""
    section = dict(section)
    if 'bottleneck' in section:
        section['bottleneck'] = construct('bottleneck', section['bottleneck'], BOTTLENECKS)
    return construct('tokenizer', section, TOKENIZERS, dtype=compute_dtype(dtype))


def perceptual(section: Mapping[str, Any], dtype: str):
    """The distance of frames in a feature network, or None. Raises `FileNotFoundError` where it is not installed."""
    return construct('perceptual', section, PERCEPTUAL, dtype=compute_dtype(dtype))


def tokenizer_objective(config: Mapping[str, Any]) -> Objective:
    """What a tokenizer's configuration minimises; reads no weights."""
    start, dtype = config['start'], compute_dtype(config['dtype'])
    unknown = sorted({'tokenizer_dir', 'freeze_encoder'} ^ set(start))
    if unknown:
        raise ValueError(f"start has the keys 'tokenizer_dir' and 'freeze_encoder', and differs in {unknown}")
    if start['freeze_encoder'] and not start['tokenizer_dir']:
        raise ValueError('start.freeze_encoder is on, but start.tokenizer_dir is empty: a new encoder knows nothing')
    return Objective(
        tokenizer(config['tokenizer'], config['dtype']),
        config['losses'],
        perceptual=config['perceptual']['name'] != 'none',
        discriminator=construct('discriminator', config['discriminator'], DISCRIMINATORS, dtype=dtype),
        freeze_encoder=start['freeze_encoder'],
    )


def text_encoder(section: Mapping[str, Any]) -> TextEncoder | None:
    """Its `length` and `width` are known before it encodes. Raises where its package is not installed, as its class."""
    return construct('text', section, TEXT_ENCODERS)


def denoiser(section: Mapping[str, Any], dtype: str) -> Walt:
    return construct('denoiser', section, DENOISERS, dtype=compute_dtype(dtype))


def schedule(section: Mapping[str, Any]) -> Schedule:
    return construct('schedule', section, SCHEDULES)


def loss(section: Mapping[str, Any], schedule: Schedule) -> DenoisingLoss:
    return construct('loss', {'name': 'denoising', **section}, {'denoising': DenoisingLoss}, schedule=schedule)


def conditioning(section: Mapping[str, Any], schedule: Schedule) -> Conditioning:
    return construct(
        'conditioning', {'name': 'conditioning', **section}, {'conditioning': Conditioning}, schedule=schedule
    )


# Keys of the section `sampler` that are fields of `Stage`; the others are the stepper's.
_STAGE_KEYS = {'steps', 'guidance', 'rescale', 'frames_guidance', 'weak_guidance', 'frames_noise', 'low_noise'}


def sampler(section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Stage` that say how it samples: `stepper` (by name, with its keys), `steps` and so on.

    `guidance` and `frames_guidance` are numbers, or sections that name a scale which depends on the time. All fields
    but `steps` and `guidance` may be left out.
    """
    fields = {key: value for key, value in section.items() if key in _STAGE_KEYS}
    if not {'steps', 'guidance'} <= set(fields):
        raise ValueError(f"sampler needs 'steps' and 'guidance', it has {sorted(section)}")
    for key in ('guidance', 'frames_guidance', 'weak_guidance'):
        if isinstance(fields.get(key), Mapping):
            fields[key] = construct('guidance', fields[key], GUIDANCE_SCALES)
    rest = {key: value for key, value in section.items() if key not in _STAGE_KEYS}
    return fields | {'stepper': construct('sampler', rest, STEPPERS)}


def other_sampler(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section `sampler` with other entries. Another stepper does not inherit the keys of the one before."""
    another = changes.get('name', section['name']) != section['name']
    kept = {key: value for key, value in section.items() if not another or key in _STAGE_KEYS}
    return kept | dict(changes)


def optimizer(section: Mapping[str, Any], steps: int):
    return construct('optimizer', section, OPTIMIZERS, steps=steps)


def own_tokenizer(workdir: str) -> str:
    """Where a denoiser's workdir keeps a copy of the tokenizer that it was trained on."""
    return os.path.join(workdir, 'tokenizer')


def init_tokenizer(module: Tokenizer, video_shape: tuple[int, ...]) -> Callable[[jax.Array], Any]:
    """key -> variables, for clips of (T, H, W, C)."""
    return lambda key: module.init(key, jnp.zeros((1, *video_shape)))


def init_denoiser(module: Walt) -> Callable[[jax.Array], Any]:
    """key -> variables."""

    def init(key):
        cond = {name: jnp.zeros(entry.shape, entry.dtype) for name, entry in abstract(module.conditions, 1).items()}
        return module.init(key, cond['estimate'], jnp.zeros(1), cond)

    return init


def abstract_null_text(module: Walt) -> NullText | None:
    """What a denoiser's checkpoint keeps beside its parameters: shapes of the null text, or None."""
    if not module.text_shape:
        return None
    shape = tuple(module.text_shape)
    return NullText(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.bool_))


def _whole(tree: Any, mesh: Mesh) -> Any:
    """Shapes -> shapes that every device has the whole of."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def restore_tokenizer(
    workdir: str, mesh: Mesh, step: int | None = None, decay: float | None = None
) -> tuple[FrozenTokenizer, dict[str, Any], int]:
    """The trained tokenizer in `workdir`: (averaged parameters and latent norm, its configuration, step).

    `decay` picks the average, as `restore_ema`; the configuration comes back with this one as its only `ema_decay`.
    """
    config = saved_config(workdir, step)
    module = tokenizer(config['tokenizer'], config['dtype'])
    pixels = (1, *[math.prod(module.spatial_strides)] * 2, module.pixel_channels)
    norm = jax.eval_shape(lambda: LatentNorm.identity(module.latent_channels))
    items = {'params': abstract_params(init_tokenizer(module, pixels), mesh), 'measured': _whole(norm, mesh)}
    restored, step = restore_ema(workdir, items, step, decay)
    config['ema_decay'] = ema_decays(config['ema_decay'])[0] if decay is None else decay
    return FrozenTokenizer(module, restored['params'], restored['measured']), config, step


def starting_params(tokenizer_dir: str, module: Tokenizer, params: Any, mesh: Mesh) -> Any:
    """The averaged parameters of another run, inflated if that one is of images and `module` is of video.

    Args:
        params: new parameters of `module`, whose shapes and layout the result has.

    Raises:
        ValueError: if the two tokenizers differ in anything else than time, naming each difference with both values.
    """
    frozen, _, _ = restore_tokenizer(tokenizer_dir, mesh)
    free = {'parent', 'name', 'dtype'} | ({'kernel_t', 'temporal_strides'} if frozen.module.kernel_t == 1 else set())
    fields = [field.name for field in dataclasses.fields(Tokenizer) if field.name not in free]
    changed = [
        f'{name}: {getattr(frozen.module, name)!r} there, {getattr(module, name)!r} here'
        for name in fields
        if getattr(frozen.module, name) != getattr(module, name)
    ]
    if changed:
        raise ValueError(f'the tokenizer in {tokenizer_dir} does not fit: ' + '; '.join(changed))
    found = frozen.params if frozen.module.kernel_t == module.kernel_t else inflate(frozen.params, params)
    return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), found, params)


def starting_denoiser(section: Mapping[str, Any], module: Walt, params: Any, mesh: Mesh) -> Any:
    """The averaged parameters of the run in `denoiser_dir`, for latents of another height and width if need be.

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
    restored, there, _, _ = _restore_denoiser(section['denoiser_dir'], mesh)
    found = change_aspect(restored['params'], there, module)
    return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), found, params)


def _restore_denoiser(workdir: str, mesh: Mesh, step: int | None = None, decay: float | None = None):
    """(averaged parameters and null text, module, configuration, step)."""
    config = saved_config(workdir, step)
    module = denoiser(config['denoiser'], config['dtype'])
    measured = _whole(abstract_null_text(module), mesh)
    items = {'params': abstract_params(init_denoiser(module), mesh), 'measured': measured}
    restored, step = restore_ema(workdir, items, step, decay)
    return restored, module, config, step


def restore_stage(
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
    restored, module, config, step = _restore_denoiser(workdir, mesh, step, decay)
    frozen, _, _ = restore_tokenizer(own_tokenizer(workdir), mesh)
    noise = schedule(config['schedule'])
    objective, encoder = loss(config['loss'], noise), text_encoder(config['text'])
    stage = Stage(
        denoiser=module,
        params=restored['params'],
        frozen=frozen,
        schedule=noise,
        parametrisation=objective.parametrisation,
        self_conditioning=objective.self_conditioning > 0,
        mesh=mesh,
        encode_text=encoder and encoder.encode,
        null_text=restored['measured'],
        most_given=max(conditioning(config['conditioning'], noise).given_frames),
        weak=weak_workdir and _weak(weak_workdir, mesh, module, objective),
        **sampler(other_sampler(config['sampler'], sampling or {})),
    )
    return stage, config, step


def _weak(workdir: str, mesh: Mesh, module: Walt, objective: DenoisingLoss) -> Weak:
    restored, weak, config, _ = _restore_denoiser(workdir, mesh)
    predicts = loss(config['loss'], schedule(config['schedule'])).parametrisation
    pairs = {
        'latents': (weak.latent_shape, module.latent_shape),
        'conditions': (weak.conditions, module.conditions),
        'prediction': (predicts, objective.parametrisation),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            raise ValueError(f'the weak denoiser in {workdir} has other {name}: {there}, the denoiser {here}')
    return Weak(weak, restored['params'])
