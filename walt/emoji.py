"""Makes captioned clips of the animated Fluent Emoji that launch/emoji.sh fetches.

python -m walt.emoji --packages=.cache/emoji/packages --target=.cache/emoji/64 --size=64

An animation has 72 frames at 24 a second, mostly, on a transparent ground. Every fourth is taken, on white; where that
gives fewer than `--frames`, it goes on from the beginning, as emoji do. The name of a file is its emoji in code points,
whose name in Unicode is the caption, and whose group in Unicode is the class:

    1f44b-1f3fd.webp    waving hand, medium skin tone    TARGET/train/people_and_body/1f44b-1f3fd.mp4

Skin tones of one gesture are nearly one clip. So the caption without its tone decides, by a hash, whether a clip is for
training or for validation: the splits share no gesture, and stay as they are when parts are added. `video_folder` reads
them as `root=TARGET/train`, `validation_root=TARGET/validation`, `validation_fraction=0`.

Clips that were made before are left as they are; animations that cannot be read are named with the reason, and the exit
status is then 1.
"""

import concurrent.futures
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from absl import app, flags
from PIL import Image
from tqdm import tqdm

from walt.data.captions import write_captions
from walt.data.class_folders import find_files
from walt.data.draws import SPLITS
from walt.data.video_file import VideoFile
from walt.data.video_io import write_mp4_for_training

PACKAGES = flags.DEFINE_string(
    'packages', None, 'Folder with unicode-emoji-json and fluent-emoji-anim-*.', required=True
)
TARGET = flags.DEFINE_string('target', None, 'Folder to write to.', required=True)
SIZE = flags.DEFINE_integer('size', 64, 'Height and width of a clip, in pixels.', lower_bound=2)
EVERY = flags.DEFINE_integer('every', 4, 'Which frames to take: one of so many.', lower_bound=1)
FRAMES = flags.DEFINE_integer('frames', 17, 'The least number of frames of a clip; shorter ones loop.', lower_bound=1)
VALIDATION_FRACTION = flags.DEFINE_float(
    'validation_fraction', 0.1, 'About which part of the captions without tone is for validation.', 0, 1
)

_TONES = {
    '\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}': 'light skin tone',
    '\N{EMOJI MODIFIER FITZPATRICK TYPE-3}': 'medium-light skin tone',
    '\N{EMOJI MODIFIER FITZPATRICK TYPE-4}': 'medium skin tone',
    '\N{EMOJI MODIFIER FITZPATRICK TYPE-5}': 'medium-dark skin tone',
    '\N{EMOJI MODIFIER FITZPATRICK TYPE-6}': 'dark skin tone',
}
# Asks for the picture and not the letter; files and Unicode's list have it in different places.
_VARIATION = '\N{VARIATION SELECTOR-16}'
_WHITE = (255, 255, 255, 255)
# What Pillow raises on damaged animations.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError)


class Emoji(NamedTuple):
    """An emoji: its caption, the caption without skin tones, and its group."""

    caption: str
    toneless: str
    group: str


def main(_) -> int:
    packages, target = Path(PACKAGES.value), Path(TARGET.value)
    names = read_names(packages / 'unicode-emoji-json' / 'data-by-emoji.json')
    files = sorted(packages.glob('fluent-emoji-anim-*/assets/*.webp'))
    if not files:
        raise app.UsageError(f'no fluent-emoji-anim-*/assets/*.webp in --packages {packages}')
    emojis = {path: describe(path.stem, names) for path in files}
    clips = {path: place(path.stem, emoji) for path, emoji in emojis.items() if emoji}
    for split in SPLITS:
        (target / split).mkdir(parents=True, exist_ok=True)
        # Before the clips, so that no clip is ever without; those of parts that are no longer here keep theirs.
        inside = {path.relative_to(split) for path in clips.values() if path.parts[0] == split}
        inside |= {Path(path) for path in find_files(target / split, ['.mp4'], 'clips')}
        captions = {str(path): describe(path.stem, names) for path in inside}
        write_captions(target / split, {path: emoji.caption for path, emoji in captions.items() if emoji})

    def convert(path: Path) -> bool | str | None:
        try:
            return make_clip(path, target / clips[path], SIZE.value, EVERY.value, FRAMES.value)
        except (*_DAMAGED, av.FFmpegError) as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = dict(zip(clips, tqdm(pool.map(convert, clips), 'emoji', len(clips), unit='clip')))
    written, before, still = (sum(result is outcome for result in made.values()) for outcome in (True, False, None))
    damaged = {path: result for path, result in made.items() if isinstance(result, str)}
    print(
        f'{len(files)} files: {written} clips written, {before} there already, {still} do not move, '
        f'{len(files) - len(clips)} have no name in Unicode, {len(damaged)} skipped; {target}'
    )
    for split in SPLITS:
        paths = [path for path in clips if isinstance(made[path], bool) and clips[path].parts[0] == split]
        toneless = {emojis[path].toneless for path in paths}
        print(f'{split}: {len(paths)} clips, {len(toneless)} captions without skin tone')
    for path, reason in damaged.items():
        print(f'skipped {path}: {reason}')
    return 1 if damaged else 0


def read_names(path: Path) -> dict[str, Mapping]:
    """Unicode's `name` and `group` of every emoji without skin tone; emojis are without variation selectors."""
    with open(path, encoding='utf-8') as file:
        return {emoji.replace(_VARIATION, ''): entry for emoji, entry in json.load(file).items()}


def describe(stem: str, names: Mapping[str, Mapping]) -> Emoji | None:
    """The emoji that a file's name spells in code points, None where it is none of Unicode's.

    Vendors number pictures of their own beyond the last code point.
    """
    if not re.fullmatch(r'[0-9a-f]{1,6}(-[0-9a-f]{1,6})*', stem):
        return None
    points = [int(point, 16) for point in stem.split('-')]
    if max(points) > 0x10FFFF:
        return None
    letters = [chr(point) for point in points]
    entry = names.get(''.join(letter for letter in letters if letter not in _TONES and letter != _VARIATION))
    if entry is None:
        return None
    tones = list(dict.fromkeys(_TONES[letter] for letter in letters if letter in _TONES))  # of two people alike: once
    caption = ', '.join([entry['name'], ' and '.join(tones)] if tones else [entry['name']])
    return Emoji(caption, entry['name'], entry['group'])


def place(stem: str, emoji: Emoji) -> Path:
    """Where a clip belongs: split, class, name."""
    digest = hashlib.blake2b(emoji.toneless.encode(), digest_size=8).digest()
    held_out = int.from_bytes(digest) < VALIDATION_FRACTION.value * 2**64
    group = emoji.group.lower().replace(' & ', '_and_').replace(' ', '_')
    return Path(SPLITS[held_out], group, f'{stem}.mp4')


def make_clip(path: Path, clip: Path, size: int, every: int, frames: int) -> bool | None:
    """Writes the animation `path` to `clip`; returns whether it had to, None where it does not move.

    The clip appears under its name when it is complete. Raises what Pillow does where the animation is damaged.
    """
    with Image.open(path) as animation:
        length = getattr(animation, 'n_frames', 1)
        if length == 1:
            return None
        wanted = every * np.arange(max(-(-length // every), frames)) % length
        if _shape(clip) == (len(wanted), size, size):
            return False
        pictures, milliseconds = {}, 0
        for number in range(length):
            animation.seek(number)
            animation.load()
            milliseconds += animation.info['duration']
            if number in wanted:
                pictures[number] = _on_white(animation, size)
    clip.parent.mkdir(parents=True, exist_ok=True)
    unfinished = clip.with_name(f'.{clip.name}.{os.getpid()}')
    try:
        fps = 1000 * length / milliseconds / every
        write_mp4_for_training(unfinished, np.stack([pictures[number] for number in wanted]), fps)
        unfinished.replace(clip)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _on_white(image: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3), averaged over areas. On white first: what is transparent has a colour that nobody sees."""
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, _WHITE), image).convert('RGB')
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _shape(path: Path) -> tuple[int, int, int] | None:
    """Frames, height and width of a clip, or None where there is none that can be opened."""
    try:
        file = VideoFile.open(path)
    except (av.FFmpegError, ValueError):
        return None
    return len(file), file.height, file.width


if __name__ == '__main__':
    app.run(main)
