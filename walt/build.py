"""Configuration -> objects. The only reader of configurations.

A section's `name` picks from a table below; the rest of the section are that constructor's keyword arguments. So a key
is documented where its class is, and `grep` for a key of a config finds the field that takes it. Names that are not in
a table and keys that no constructor takes are errors that list the choices.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_flags

from walt.data import dropping, resolution
from walt.data.encoded import Encoded
from walt.data.fitted import Fitted
from walt.data.flipped import Flipped
from walt.data.image_folder import ImageFolder
from walt.data.joint import Joint
from walt.data.mixed_digits import MixedDigits
from walt.data.mosaic import Mosaic
from walt.data.moving_digits import MovingDigits
from walt.data.packing import Packed
from walt.data.pictures_and_clips import PicturesAndClips
from walt.data.video_folder import VideoFolder
from walt.data.whole_images import WholeImages
from walt.denoiser.conditions import Denoiser, NullText, abstract, text_shape
from walt.denoiser.dit import Dit
from walt.denoiser.packed import PackedDenoiser
from walt.denoiser.walt import Walt
from walt.diffusion.guidance import Interval, PowerCosine
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.packed_loss import PackedLoss
from walt.diffusion.schedules import ContinuousLinear, Cosine, DiscreteLinear, RectifiedFlow, Schedule
from walt.diffusion.steppers import Ddim, DpmSolverPlusPlus2M, Heun, LearnedAncestral, ancestral
from walt.features.perceptual import squeezenet_distance, vgg_distance
from walt.navit.navit import Navit
from walt.precision import compute_dtype
from walt.text.encoder import TextEncoder
from walt.text.minilm import MiniLm
from walt.text.t5 import T5
from walt.text.wordllama import WordLlama
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.autoencoder_kl import AutoencoderKl
from walt.tokenizer.bottleneck import Continuous, Fsq, Kl, Lfq, Vq
from walt.tokenizer.discriminator import Discriminator
from walt.tokenizer.objective import Objective
from walt.training.classifier_step import Noising
from walt.training.conditions import Conditioning
from walt.training.optimizer import adafactor, adamw, muon

SOURCES = {
    'moving_digits': MovingDigits,
    'video_folder': VideoFolder,
    'image_folder': ImageFolder,
    'whole_images': WholeImages,
    'mixed_digits': MixedDigits,
    'encoded': Encoded,
}
SOURCES_OF_SOURCES = {
    'fitted': Fitted,
    'flipped': Flipped,
    'joint': Joint,
    'mosaic': Mosaic,
    'pictures_and_clips': PicturesAndClips,
    'packed': Packed,
}
RESOLUTIONS = {
    'native': resolution.Native,
    'fixed': resolution.Fixed,
    'uniform': resolution.Uniform,
    'truncated_normal': resolution.TruncatedNormal,
}
DROPPING_SCHEDULES = {'always': dropping.Always, 'sigmoid': dropping.Sigmoid}
DROPPINGS = {
    'keep': dropping.Keep,
    'constant': dropping.Constant,
    'beta': dropping.Beta,
    'by_resolution': dropping.ByResolution,
}
TOKENIZERS = {'causal_cnn': Tokenizer, 'autoencoder_kl': AutoencoderKl}
BOTTLENECKS = {'none': Continuous, 'kl': Kl, 'vq': Vq, 'lfq': Lfq, 'fsq': Fsq}
DISCRIMINATORS = {'none': lambda dtype: None, 'residual_3d': Discriminator}
PERCEPTUAL = {'none': lambda dtype: None, 'squeezenet': squeezenet_distance, 'vgg': vgg_distance}
TEXT_ENCODERS = {'none': lambda: None, 'wordllama': WordLlama, 'minilm': MiniLm, 't5': T5}
DENOISERS = {'walt': Walt, 'dit': Dit, 'packed': PackedDenoiser}
SCHEDULES = {
    'discrete_linear': DiscreteLinear,
    'continuous_linear': ContinuousLinear,
    'cosine': Cosine,
    'rectified_flow': RectifiedFlow,
}
LOSSES = {'denoising': DenoisingLoss, 'packed': PackedLoss}
STEPPERS = {
    'ddim': Ddim,
    'ancestral': ancestral,
    'learned_ancestral': LearnedAncestral,
    'heun': Heun,
    'dpm_solver_pp_2m': DpmSolverPlusPlus2M,
}
GUIDANCE_SCALES = {'power_cosine': PowerCosine, 'interval': Interval}
CLASSIFIERS = {'navit': Navit}
OPTIMIZERS = {'adamw': adamw, 'adafactor': adafactor, 'muon': muon}

_RUN_KEYS = {'seed', 'batch_size', 'steps', 'data', 'tokenizer', 'optimizer', 'ema_decay', 'dtype', 'mesh'}
_RUN_KEYS |= {'accumulation', 'non_finite', 'log_every', 'checkpoint_every', 'validate_every', 'validation_batches'}
TOKENIZER_KEYS = _RUN_KEYS | {'losses', 'perceptual', 'discriminator', 'start', 'latent_norm_batches'}
DENOISER_KEYS = _RUN_KEYS - {'tokenizer'} | {'tokenizer_dir', 'cache_latents', 'text', 'denoiser', 'start'}
DENOISER_KEYS |= {'schedule', 'loss', 'conditioning', 'sampler'}
CLASSIFIER_KEYS = _RUN_KEYS - {'tokenizer'} | {'classifier', 'noising'}


def config_flag(name: str = 'config'):
    """Defines `--config=configs/NAME.py[:smoke]` with overrides `--config.section.key=value`; unknown keys fail."""
    return config_flags.DEFINE_config_file(name, lock_config=True)


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
    keys = {key: _with_tuples(value) for key, value in section.items()}
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


def _with_tuples(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as tuples."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def source(section: Mapping[str, Any], split: str):
    """The data set of a section; `split` is 'train' or 'validation'. Sources inside a source are sections inside it,
    and so are `resolution` and `dropping` of packed rows."""
    if section.get('name') in SOURCES_OF_SOURCES:
        part_of = {'resolution': _resolution, 'dropping': _dropping}
        parts = {
            part: part_of[part](inner) if part in part_of else source(inner, split)
            for part, inner in section.items()
            if isinstance(inner, Mapping)
        }
        drawing = {'split': split} if section['name'] in ('packed', 'fitted') else {}
        return construct('data', dict(section) | parts, SOURCES_OF_SOURCES, **drawing)
    return construct('data', section, SOURCES, split=split)


def _resolution(section: Mapping[str, Any]) -> resolution.Resolution:
    return construct('resolution', section, RESOLUTIONS)


def _dropping(section: Mapping[str, Any]) -> dropping.Dropping:
    section = dict(section)
    if 'schedule' in section:
        section['schedule'] = construct('dropping.schedule', section['schedule'], DROPPING_SCHEDULES)
    return construct('dropping', section, DROPPINGS)


def clips_section(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a section `data`, the one that names the clips themselves, not the pictures beside them."""
    if section.get('name') not in SOURCES_OF_SOURCES:
        return section
    inner = next(section[part] for part in ('source', 'clips', 'pictures') if part in section)
    return clips_section(inner) if section['name'] in ('packed', 'fitted', 'pictures_and_clips') else inner


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


def denoiser(section: Mapping[str, Any], dtype: str) -> Denoiser:
    return construct('denoiser', section, DENOISERS, dtype=compute_dtype(dtype))


def schedule(section: Mapping[str, Any]) -> Schedule:
    return construct('schedule', section, SCHEDULES)


def loss(section: Mapping[str, Any], schedule: Schedule) -> DenoisingLoss:
    """Of a denoiser of packed rows it is named 'packed'; without a name it is that of any other."""
    return construct('loss', {'name': 'denoising', **section}, LOSSES, schedule=schedule)


def conditioning(section: Mapping[str, Any], schedule: Schedule) -> Conditioning:
    return construct(
        'conditioning', {'name': 'conditioning', **section}, {'conditioning': Conditioning}, schedule=schedule
    )


# Keys of the section `sampler` that are fields of `Stage`; the others are the stepper's.
_STAGE_KEYS = {'steps', 'last_time', 'guidance', 'guidance_channels', 'rescale', 'frames_guidance', 'weak_guidance'}
_STAGE_KEYS |= {'frames_noise', 'low_noise'}


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


def packed_sampler(section: Mapping[str, Any]) -> dict[str, Any]:
    """As `sampler`, the fields of `PackedStage`.

    Raises:
        ValueError: on a key that means something for other stages only.
    """
    fields = sampler(section)
    unused = sorted(set(fields) - {'stepper', 'steps', 'last_time', 'guidance'})
    if unused:
        raise ValueError(
            f"a sampler of packed rows has 'steps', 'last_time', 'guidance' and the stepper's keys, not {unused}"
        )
    return fields


def other_sampler(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section `sampler` with other entries. Another stepper does not inherit the keys of the one before."""
    another = changes.get('name', section['name']) != section['name']
    kept = {key: value for key, value in section.items() if not another or key in _STAGE_KEYS}
    return kept | dict(changes)


def noising(section: Mapping[str, Any]) -> Noising | None:
    """The noise on what a classifier is trained on: a section `schedule`, which may have a `power` too; or None."""
    rest = {key: value for key, value in section.items() if key != 'power'}
    made = construct('noising', rest, {'none': lambda: None} | SCHEDULES)
    if made is None:
        if 'power' in section:
            raise ValueError(f"a power of the times of noise, {section['power']}, and noising is 'none'")
        return None
    return Noising(made, section.get('power', 1.0))


def classifier(config: Mapping[str, Any]) -> Navit:
    given = {'timed': noising(config['noising']) is not None, 'dtype': compute_dtype(config['dtype'])}
    return construct('classifier', config['classifier'], CLASSIFIERS, **given)


def optimizer(section: Mapping[str, Any], steps: int):
    return construct('optimizer', section, OPTIMIZERS, steps=steps)


def init_tokenizer(module: Tokenizer, video_shape: tuple[int, ...]) -> Callable[[jax.Array], Any]:
    """key -> variables, for clips of (T, H, W, C)."""
    return lambda key: module.init(key, jnp.zeros((1, *video_shape)))


def init_denoiser(module: Denoiser) -> Callable[[jax.Array], Any]:
    """key -> variables."""

    def init(key):
        cond = {name: jnp.zeros(entry.shape, entry.dtype) for name, entry in abstract(module.conditions, 1).items()}
        return module.init(key, jnp.zeros((1, *module.latent_shape)), jnp.zeros(1), cond)

    return init


def abstract_null_text(module: Denoiser) -> NullText | None:
    """What a denoiser's checkpoint keeps beside its parameters: shapes of the null text, or None."""
    shape = text_shape(module)
    if not shape:
        return None
    return NullText(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.bool_))


def init_classifier(module: Navit) -> Callable[[jax.Array], Any]:
    """key -> variables."""
    length, most = 128, 1  # Of rows that the kernels of all platforms take; parameters do not depend on it.

    def init(key):
        of_tokens = (jnp.zeros((1, length), jnp.int32), jnp.zeros((1, length, 3), jnp.int32))
        times = jnp.zeros((1, most)) if module.timed else None
        return module.init(
            key, jnp.zeros((1, length, module.token_width)), *of_tokens, jnp.zeros((1, most, 3), jnp.int32), times
        )

    return init
