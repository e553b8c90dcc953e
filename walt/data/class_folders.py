"""Files in folders that name their classes: what `video_folder` and `image_folder` have in common.

root/                  one class for each sub-folder of root, in order of name
  jumping/a.mp4        jumping -> 0
  waving/far/b.webm    waving  -> 1, at any depth
  c.gif                files directly in root are one more class, '', which comes first
"""

import os
import pathlib
from collections.abc import Collection


def find_files(root: str | os.PathLike, suffixes: Collection[str], kind: str) -> list[str]:
    """Paths below `root`, relative to it, of all files with one of `suffixes` in any case, in order of path.

    Names with a leading dot, of files and of folders, are passed over. No file is opened. `kind`, such as 'videos',
    says in errors what was looked for. Raises ValueError where `root` is empty, for that is not the current folder,
    and FileNotFoundError where it is no folder.
    """
    if not os.fspath(root):
        raise ValueError(f'root is empty: give the folder that holds the {kind}')
    root = pathlib.Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder of {kind} at {root}')
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith('.')]
        inside = os.path.relpath(folder, root)
        chosen = (name for name in names if not name.startswith('.') and name.lower().endswith(tuple(suffixes)))
        paths += chosen if inside == '.' else (os.path.join(inside, name) for name in chosen)
    return sorted(paths, key=lambda path: path.split(os.sep))


def class_of(path: str) -> str:
    """The class of a file by its path relative to root: the first folder, '' where there is none."""
    first, _, rest = path.partition(os.sep)
    return first if rest else ''


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """A field `size`, one number or (height, width), as the latter. Raises ValueError where one is less than 1."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f'size must be 1 or more, got {size}')
    return height, width
