"""Whether data, tokenizer, texts and denoiser fit each other, and what of the data the denoiser has a use for.

Checked before training, so that what does not fit is said at once, with both values.
"""

import numpy as np

from walt.data.encoded import Encoded
from walt.data.packing import Packed
from walt.data.pictures_and_clips import PicturesAndClips
from walt.denoiser.conditions import Denoiser, NullText, text_shape
from walt.denoiser.packed import PackedDenoiser
from walt.tokenizer.frozen import FrozenTokenizer, Pixels
from walt.training.conditions import Conditioning
from walt.training.latents import check_latents, latent_shape


def check_dense(denoiser: Denoiser, frozen: FrozenTokenizer | Pixels, source, null_text: NullText | None) -> None:
    """Raises `ValueError` if data, tokenizer, text encoder and denoiser do not fit each other."""
    if isinstance(frozen, Pixels):
        raise ValueError("tokenizer_dir is 'none', but only denoisers of packed rows take pixels")
    element, shape = source[0], latent_shape(frozen, source)
    if shape != tuple(denoiser.latent_shape):
        raise ValueError(f'the data have latents of {shape}, denoiser.latent_shape is {denoiser.latent_shape}')
    if denoiser.classes and denoiser.classes != source.num_classes:
        raise ValueError(f'the data has {source.num_classes} classes, but denoiser.classes is {denoiser.classes}')
    embedded = null_text.text_SE.shape if null_text else ()
    if embedded != text_shape(denoiser):
        raise ValueError(f'texts are embedded as {embedded}, denoiser.text_shape is {text_shape(denoiser)}')
    pictures = 'images_z' if 'z' in element else 'images'
    needed = ['label'] if denoiser.classes else []
    needed += ['text' if 'text' in element else 'caption'] if 'text' in denoiser.conditions else []
    needed += [pictures, *(f'images_{name}' for name in needed)] if 'image' in denoiser.conditions else []
    needed += ['low'] if 'low' in denoiser.conditions and 'z' in element else []
    missing = [name for name in needed if name not in element]
    if missing:
        raise ValueError(f'the denoiser needs {missing} of the data, whose elements have {sorted(element)}')
    if 'image' in denoiser.conditions and element[pictures].shape[1] != shape[0]:
        raise ValueError(f'stacks of {element[pictures].shape[1]} pictures beside clips of {shape[0]} latent frames')


def check_packed(
    denoiser: PackedDenoiser, frozen: FrozenTokenizer | Pixels, source, null_text: NullText | None
) -> None:
    """Raises `ValueError` if packed data, tokenizer and denoiser do not fit each other, naming both values."""
    if not isinstance(source, Packed):
        raise ValueError(f"a denoiser of packed rows takes data named 'packed', not {type(source).__name__}")
    if null_text is not None:
        raise ValueError('config.text names a text encoder, but a denoiser of packed rows takes no texts')
    there, of_pixels = source[0]['tokens'], source[0]['tokens'].dtype == np.uint8
    pairs = {
        'patch': (tuple(source.patch), denoiser.tile),
        'length': (source.length, denoiser.length),
        'most': (source.most, denoiser.most),
        'numbers in a token': (there.shape[-1], denoiser.latent_shape[-1]),
        'classes': (source.num_classes if denoiser.classes else 0, denoiser.classes),
    }
    changed = [
        f'{name}: {here} of the data, {own} of the denoiser' for name, (here, own) in pairs.items() if here != own
    ]
    if changed:
        raise ValueError('data and denoiser do not fit each other: ' + '; '.join(changed))
    denoiser.check_extent(source.largest)
    if of_pixels != isinstance(frozen, Pixels):
        raise ValueError(
            f"the data are {'pixels' if of_pixels else 'latents'}, and tokenizer_dir is 'none' for pixels alone; for "
            'latents, which `python -m walt.encode` writes, it is the tokenizer that made them'
        )
    for latents in source.source.parts if isinstance(source.source, PicturesAndClips) else [source.source]:
        if isinstance(latents, Encoded):
            check_latents(latents, frozen)


def check_given(denoiser: Denoiser, conditioning: Conditioning) -> None:
    """Raises `ValueError` if all frames of a clip may be given, which leaves nothing to predict."""
    most, frames = max(conditioning.given_frames), denoiser.latent_shape[0]
    if 'frames' in denoiser.conditions and most >= frames:
        raise ValueError(f'conditioning.given_frames go up to {most}, and a clip has {frames} latent frames')


def dense_keys(denoiser: Denoiser, source) -> list[str]:
    """What of the source's elements a batch has: all that the denoiser has a use for."""
    element = source[0]
    useful = {'z', 'low'} if 'z' in element else {'video', 'images'}
    useful |= {'label'} if denoiser.classes else set()
    if 'text' in denoiser.conditions:
        useful |= {'text', 'text_mask'} if 'text' in element else {'caption'}
    useful |= {f'images_{name}' for name in useful}
    stacks = 'image' in denoiser.conditions
    return [name for name in element if name in useful and (stacks or not name.startswith('images'))]


def packed_keys(denoiser: PackedDenoiser, source) -> list[str]:
    """All that a packed row has."""
    return list(source[0])
