"""Times the two forms of the 3-D convolution on this machine's default device, forward and backward.

python -m tests.benchmarks.conv        (or python tests/benchmarks/conv.py)

For each shape (3x3x3 kernel, stride 1, float32, batch 8, 9 frames out) it prints the median milliseconds of
`conv3d_native` and of `conv3d_decomposed`, forward and forward with the gradients by input and kernel, and how many
times as fast as the native form the decomposed one is. `walt.nn.conv.conv3d` chooses between them by platform on the
grounds of this table. Takes under a minute on two CPU cores.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from walt.nn.conv import conv3d_decomposed, conv3d_native, pad_causal

BATCH, FRAMES, KERNEL = 8, 9, (3, 3, 3)
SHAPES = [(3, 8, 32), (8, 3, 32), (16, 16, 16), (32, 256, 8), (64, 64, 4)]  # channels in, channels out, side
REPEATS = 5


def milliseconds(function, *arguments) -> float:
    """The median of some calls after the first, which compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def forward_and_backward(form):
    """(x -> y, x -> gradients of x and kernel), both jitted."""

    def forward(x, kernel):
        return form(x, kernel, (1, 1, 1))

    def loss(x, kernel):
        return jnp.square(forward(x, kernel)).mean()

    return jax.jit(forward), jax.jit(jax.grad(loss, argnums=(0, 1)))


def main():
    rng = np.random.default_rng(0)
    print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {BATCH}, {FRAMES} frames; milliseconds')
    print(f'{"channels @ side":>16} {"pass":>9} {"native":>9} {"decomposed":>11} {"times as fast":>14}')
    for channels_in, channels_out, side in SHAPES:
        x = rng.normal(size=(BATCH, FRAMES, side, side, channels_in)).astype(np.float32)
        x = jax.block_until_ready(pad_causal(x, KERNEL))
        kernel = jnp.asarray(rng.normal(size=(*KERNEL, channels_in, channels_out)), jnp.float32)
        native, decomposed = map(forward_and_backward, (conv3d_native, conv3d_decomposed))
        for name, *pair in zip(('forward', 'backward'), native, decomposed):
            before, after = (milliseconds(function, x, kernel) for function in pair)
            shape = f'{channels_in}->{channels_out}@{side}'
            print(f'{shape:>16} {name:>9} {before:9.2f} {after:11.2f} {before / after:14.1f}', flush=True)


if __name__ == '__main__':
    main()
