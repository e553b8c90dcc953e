"""python tests/proofs/train.py tokenizer ...: `python -m walt.train_tokenizer ...`, which also writes down its samples.

WORKDIR/samples.jsonl has a line for every step that a process began: {"step": 7, "rows": [a checksum of each row]}.
"""

import importlib
import json
import sys
import zlib
from pathlib import Path

import jax
from absl import app

from walt.parallel.distributed import fetch, first_process


def telling_samples(fit):
    """`fit`, which also writes the checksums of what a step is given, after it was put on the mesh."""

    def fit_and_tell(train_step, state, batches, *, workdir, put_batch, **rest):
        step = None

        def numbered(start):
            nonlocal step
            step = start
            return batches(start)

        def put(rows):
            nonlocal step
            step += 1
            batch = put_batch(rows)
            leaves = jax.tree.leaves(fetch(batch))
            sums = [zlib.crc32(b''.join(leaf[row].tobytes() for leaf in leaves)) for row in range(len(leaves[0]))]
            if first_process():
                with (Path(workdir) / 'samples.jsonl').open('a') as file:
                    file.write(json.dumps({'step': step, 'rows': sums}) + '\n')
            return batch

        return fit(train_step, state, numbered, workdir=workdir, put_batch=put, **rest)

    return fit_and_tell


if __name__ == '__main__':
    program = importlib.import_module(f'walt.train_{sys.argv.pop(1)}')
    program.fit = telling_samples(program.fit)
    app.run(program.main)
