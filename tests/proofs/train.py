"""python tests/proofs/train.py tokenizer ...: `python -m walt.train_tokenizer ...`, which also writes down its samples.

WORKDIR/samples.jsonl has a line for every step that was begun: {"step": 7, "rows": [31, 2, ...]}, where a row is the
number of its clip in the data. It is found by the bytes on the mesh, not by what the feed meant to put there.
"""

import importlib
import json
import sys
import zlib
from pathlib import Path

from absl import app

from walt.parallel.distributed import fetch, first_process


def tell_samples(program):
    """Makes the `fit` of a training program write down what every step is given."""
    feed, fit, numbers = program.process_batches, program.fit, {}

    def checksum(rows, index=()) -> int:
        return zlib.crc32(rows['z' if 'z' in rows else 'video'][index].tobytes())

    def remembering_feed(source, **options):
        numbers.update((checksum(source[number]), number) for number in range(len(source)))
        return feed(source, **options)

    def telling_fit(train_step, state, batches, *, workdir, put_batch, **rest):
        step = None

        def numbered(start):
            nonlocal step
            step = start
            return batches(start)

        def put(rows):
            nonlocal step
            step += 1
            batch = put_batch(rows)
            there = fetch(batch)
            samples = [numbers[checksum(there, row)] for row in range(len(next(iter(there.values()))))]
            if first_process():
                with (Path(workdir) / 'samples.jsonl').open('a') as file:
                    file.write(json.dumps({'step': step, 'rows': samples}) + '\n')
            return batch

        return fit(train_step, state, numbered, workdir=workdir, put_batch=put, **rest)

    program.process_batches, program.fit = remembering_feed, telling_fit


if __name__ == '__main__':
    program = importlib.import_module(f'walt.train_{sys.argv.pop(1)}')
    tell_samples(program)
    app.run(program.main)
