"""Times loss and gradients with windows, with full attention, and with a modulation of its own in every layer.

python -m tests.benchmarks.attention

The network of configs/digits_ablation.py (width 192, 6 layers) on latents of five frames of 2x2 tokens, as there, up to
16x16, as the paper's: 20 to 1,280 tokens a clip, and as many clips as make 1,280 tokens. Prints the median milliseconds
of the base for the self-conditioned loss and the gradients of all parameters, and how many times as long the other arms
take. The arms take turns, so that what else the machine does is in all of them. Three minutes on two CPU cores.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_ablation
from walt import build

SIDES = (2, 4, 8, 16)  # tokens along the side of a frame
CLIPS = {side: 1280 // (5 * side**2) for side in SIDES}
ARMS = ('base', 'full_attention', 'separate_adaln')
ROUNDS = 15


def gradients(arm: str, side: int):
    """A call that computes them; windows are the whole frame, and half its side through all frames."""
    config = digits_ablation.get_config(arm).to_dict()
    section = config['denoiser'] | {'latent_shape': (5, side, side, 8), 'patch': 1}
    denoiser = build.denoiser(section | {'spatiotemporal_window': (side // 2, side // 2)}, 'float32')
    loss = build.loss(config['loss'], build.schedule(config['schedule']))
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(CLIPS[side], *denoiser.latent_shape)), jnp.float32)
    cond = {'label': jnp.zeros(CLIPS[side], jnp.int32)}
    params = jax.jit(build.init_denoiser(denoiser))(jax.random.key(0))['params']

    def mean_loss(params, key):
        return loss(lambda *inputs: denoiser.apply({'params': params}, *inputs), z, cond, key)[0].mean()

    return functools.partial(jax.jit(jax.grad(mean_loss)), params, jax.random.key(1))


def milliseconds(calls) -> list[float]:
    """The median of each, in rounds of all of them, after a first round that compiles."""
    times = [[] for _ in calls]
    for number in range(1 + ROUNDS):
        for call, mine in zip(calls, times):
            start = time.perf_counter()
            jax.block_until_ready(call())
            if number:
                mine.append(time.perf_counter() - start)
    return [1000 * statistics.median(mine) for mine in times]


def main():
    print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}; milliseconds of the base, and the others over it')
    print(f'{"tokens a clip":>13} {"clips":>6} ' + ' '.join(f'{arm:>15}' for arm in ARMS))
    for side in SIDES:
        base, *others = milliseconds([gradients(arm, side) for arm in ARMS])
        shown = [f'{base:12.1f} ms'] + [f'{time / base:15.2f}' for time in others]
        print(f'{5 * side**2:13} {CLIPS[side]:6} ' + ' '.join(shown), flush=True)


if __name__ == '__main__':
    main()
