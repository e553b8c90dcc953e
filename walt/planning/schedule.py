"""How long the schedule of each instruction is that the TPU's compiler ends with.

At the end of all, the compiler packs what a core does for an instruction of HLO into bundles, one a cycle; where the
instruction is a loop over tiles, the bundles are those of one turn. It writes down how many there are, if libtpu was
told so when it was loaded, which happens once in a process:

    ask()  ->  ... libtpu is loaded, programs are compiled ...  ->  read() after each
"""

import atexit
import functools
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix='walt-schedule-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def ask() -> None:
    """Before libtpu is loaded; what the environment says to it already, stays."""
    flags = f'--xla_jf_dump_to={_folder()} --xla_jf_dump_llo_text=true --xla_jf_dump_category_filter=misc'
    said = os.environ.get('LIBTPU_INIT_ARGS', '')
    if flags not in said:
        os.environ['LIBTPU_INIT_ARGS'] = f'{said} {flags}'.strip()


def read() -> dict[str, int]:
    """Bundles by name of instruction, of what was compiled since the last call; empty if libtpu was loaded unasked."""
    found = Counter()
    for path in sorted(_folder().iterdir()):
        if path.name.endswith('hlo-static-bundle-profile.txt'):
            found.update(bundles(path.read_text()))
        path.unlink()
    return dict(found)


def bundles(text: str) -> Counter[str]:
    """Of the compiler's report, by the unit for exponentials: a bundle could use it once."""
    found, name = Counter(), None
    for line in text.splitlines():
        if line.startswith('HLO: '):
            named = re.match(r'HLO: (?:ROOT )?%([\w.-]+) = ', line)
            name = named and named[1]
        elif name and (used := re.match(r' - VECTOR_EUP: \(\d+/(\d+)\)', line)):
            found[name] += int(used[1])
    return found
