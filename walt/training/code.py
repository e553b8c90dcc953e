"""Which code wrote a checkpoint."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

import walt


@functools.cache
def code_version() -> dict[str, str | None]:
    """Versions of `walt`, `jax` and `jaxlib`; `commit`, where walt lies in a git checkout of its own, else None.

    A commit ends in '-dirty' where tracked files differ from it.
    """
    versions = {package: importlib.metadata.version(package) for package in ('walt', 'jax', 'jaxlib')}
    return versions | {'commit': _commit(Path(walt.__file__).parent)}


def _commit(folder: Path) -> str | None:
    """Of the checkout that tracks this package: one that it was merely installed in says nothing of its code."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(['git', '-C', str(folder), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git('ls-files', '--error-unmatch', '__init__.py') is None:
        return None
    return git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')
