"""Captions of files: `captions.json` in the folder that is searched for them, a path below it -> what the file shows.

{"jumping/a.mp4": "a frog jumps over a stone", "waving/far/b.webm": "a child waves"}

Paths have slashes on every system.
"""

import json
import os
import pathlib
from collections.abc import Sequence

NAME = 'captions.json'

# Files that an error names, of those without a caption.
_NAMED = 5


def read_captions(root: str | os.PathLike, paths: Sequence[str]) -> dict[str, str] | None:
    """The captions of `paths`, which are relative to `root`; None where the folder has no file of captions.

    Captions of other files are passed over. Raises ValueError, naming them, where some of `paths` have no caption, and
    where the file holds something else than text by path.
    """
    file = pathlib.Path(root) / NAME
    if not file.is_file():
        return None
    try:
        captions = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} cannot be read: {error}') from error
    if not isinstance(captions, dict):
        raise ValueError(f'{file} holds a {type(captions).__name__}, expected captions by path')
    keys = {path: pathlib.PurePath(path).as_posix() for path in paths}
    missing = [key for key in keys.values() if key not in captions]
    if missing:
        named = ', '.join(missing[:_NAMED]) + (', ...' if len(missing) > _NAMED else '')
        raise ValueError(f'{file} has no caption for {len(missing)} of {len(keys)} files: {named}')
    for key in keys.values():
        if not isinstance(captions[key], str):
            raise ValueError(f'the caption of {key} in {file} is {captions[key]!r}, expected text')
    return {path: captions[key] for path, key in keys.items()}


def write_captions(root: str | os.PathLike, captions: dict[str, str]) -> None:
    """Writes the captions of files by their paths relative to `root`, all or nothing, in order of path."""
    file = pathlib.Path(root) / NAME
    unfinished = file.with_name(f'.{NAME}.{os.getpid()}')
    by_key = {pathlib.PurePath(path).as_posix(): captions[path] for path in sorted(captions)}
    unfinished.write_text(json.dumps(by_key, indent=0, ensure_ascii=False) + '\n', encoding='utf-8')
    unfinished.replace(file)
