"""Peak memory of decoding clips of several lengths, streamed and whole, and how far apart the two are.

python -m tests.benchmarks.streaming        (or python tests/benchmarks/streaming.py)

Every measurement is a process of its own: its peak resident memory (`ru_maxrss`) before the first chunk, with JAX and
the parameters loaded, is the baseline, and the table prints what came on top. Latents come from a generator and pixels
are dropped, so this is the memory of the network and not of the clip. The last column compares the pixels of both ways
where the whole clip fits. Two latent frames a chunk, 64x64 pixels; takes two to five minutes on two CPU cores.
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.streaming import decode_stream

FRAMES, WHOLE = (17, 65, 257, 1025), (17, 65, 257)
CHUNK, SIDE = 2, 64
MODULE = Tokenizer(channels=16, blocks=(1, 1, 1, 1), middle_blocks=1, groups=8)


def random_params():
    variables = jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 1, SIDE, SIDE, 3)))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, nn.unbox(variables)['params'])


def latents(frames):
    """The latent frames of a clip, one at a time."""
    rng = np.random.default_rng(1)
    for _ in range(1 + (frames - 1) // 4):
        yield np.float32(rng.normal(size=(1, 1, SIDE // 8, SIDE // 8, MODULE.latent_channels)))


def decode_whole(params, frames):
    z_BTHWC = np.concatenate(list(latents(frames)), axis=1)
    return np.asarray(jax.jit(lambda params, z: MODULE.apply({'params': params}, z, method='decode'))(params, z_BTHWC))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(task: str, frames: int):
    """Prints one measurement: MiB above the baseline and seconds, or the largest difference."""
    params = jax.block_until_ready(random_params())
    baseline, start = peak_mib(), time.perf_counter()
    if task == 'difference':
        streamed = np.concatenate(list(decode_stream(MODULE, params, latents(frames), CHUNK)), axis=1)
        whole = decode_whole(params, frames)
        print(f'{np.abs(streamed - whole).max():.1e} of {np.abs(whole).max():.1f}')
        return
    if task == 'stream':
        assert sum(piece.shape[1] for piece in decode_stream(MODULE, params, latents(frames), CHUNK)) == frames
    else:
        decode_whole(params, frames)
    print(f'{peak_mib() - baseline:.0f} MiB {time.perf_counter() - start:5.1f} s')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('measurement', nargs='*', help='task and frames: one measurement, in this process')
    task_frames = parser.parse_args().measurement
    if task_frames:
        return measure(task_frames[0], int(task_frames[1]))
    print(f'{"frames":>6} {"streamed":>20} {"whole":>20} {"largest difference":>20}')
    for frames in FRAMES:
        row = [
            subprocess.run([sys.executable, __file__, task, str(frames)], text=True, check=True, capture_output=True)
            for task in (['stream', 'whole', 'difference'] if frames in WHOLE else ['stream'])
        ]
        print(f'{frames:>6} ' + ' '.join(f'{result.stdout.strip():>20}' for result in row), flush=True)


if __name__ == '__main__':
    main()
