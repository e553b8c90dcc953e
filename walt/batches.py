"""What a batch of a configuration looks like, in shapes; no data is opened."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from walt import build
from walt.denoiser.conditions import Denoiser, abstract

# Sources whose clips are of one frame, which no key says.
_IMAGES = {'image_folder'}


def pixel_batch(batch: Mapping[str, jax.ShapeDtypeStruct], clip: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of latents -> the same with the pixels of `clip` (frames, height, width, channels) in their place."""
    pixels = {name: leaf for name, leaf in batch.items() if name not in ('z', 'low', 'images_z', 'images_low')}
    pixels['video'] = jax.ShapeDtypeStruct((batch['z'].shape[0], *clip), jnp.uint8)
    if 'images_z' in batch:
        pixels['images'] = jax.ShapeDtypeStruct((*batch['images_z'].shape[:3], *clip[1:]), jnp.uint8)
    return pixels


def latent_batch(denoiser: Denoiser, rows: int, stacks: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of latents, in shapes: what `training.conditions.latent_rows` takes, with `stacks` for every clip."""
    shape = tuple(denoiser.latent_shape)
    of_row = {name: denoiser.conditions[name] for name in ('label', 'text', 'text_mask') if name in denoiser.conditions}
    stacked = 'image' in denoiser.conditions
    of_clip = {name: shape[1:] if stacked else shape for name, shape in of_row.items()} | {'z': shape}
    if 'low' in denoiser.conditions:
        of_clip['low'] = denoiser.conditions['low']
    batch = abstract(of_clip, rows)
    if stacked:
        wide = {name: of_clip[name] for name in ('z', 'low') if name in of_clip}
        of_stack = {name: (stacks, *shape) for name, shape in (of_row | wide).items()}
        batch |= {f'images_{name}': leaf for name, leaf in abstract(of_stack, rows).items()}
    return batch


def clip_shape(section: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(frames, height, width, channels) of the clips of a section `data`, which is not opened.

    Raises:
        ValueError: on an unknown source, or if neither the section nor the source's defaults say frames and size.
    """
    section = build.clips_section(section)
    name = section.get('name')
    if name not in build.SOURCES:
        raise ValueError(f'unknown data {name!r}; choices: {sorted(build.SOURCES | build.SOURCES_OF_SOURCES)}')
    fields = inspect.signature(build.SOURCES[name]).parameters.values()
    values = {field.name: field.default for field in fields if field.default is not inspect.Parameter.empty}
    values |= section | ({'frames': 1} if name in _IMAGES else {})
    missing = sorted({'frames', 'size'} - set(values))
    if missing:
        raise ValueError(f'the shape of a clip of data {name!r} needs {missing}, it has {sorted(values)}')
    height, width = (values['size'],) * 2 if isinstance(values['size'], int) else values['size']
    return values['frames'], height, width, 3
