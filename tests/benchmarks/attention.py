"""Times a training step with windows, with full attention, and with a modulation of its own in every layer.

python -m tests.benchmarks.attention

The network of configs/digits_ablation.py (width 192, 6 layers) on latents of five frames of 2x2 tokens, as there, up to
16x16, as the paper's: 20 to 1,280 tokens a clip, 1,280 tokens a batch at least. A step is the self-conditioned loss
with the gradients of all parameters. Prints the median milliseconds of the base, and how many times as long the other
arms take. A few minutes on two CPU cores.
"""

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_ablation
from tests.benchmarks.conv import milliseconds
from walt import build

SIDES = (2, 4, 8, 16)  # tokens along the side of a frame
ARMS = ('base', 'full_attention', 'separate_adaln')
TOKENS = 1280


def step_time(arm: str, side: int) -> float:
    """Milliseconds of a step; windows are the whole frame, and half its side through all frames."""
    config = digits_ablation.get_config(arm).to_dict()
    section = config['denoiser'] | {'latent_shape': (5, side, side, 8), 'patch': 1}
    denoiser = build.denoiser(section | {'spatiotemporal_window': (side // 2, side // 2)}, 'float32')
    loss = build.loss(config['loss'], build.schedule(config['schedule']))
    rows = max(1, TOKENS // (5 * side**2))
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(rows, *denoiser.latent_shape)), jnp.float32)
    cond = {'label': jnp.zeros(rows, jnp.int32)}
    params = jax.jit(build.init_denoiser(denoiser))(jax.random.key(0))['params']

    @jax.jit
    def step(params, key):
        def mean_loss(params):
            return loss(lambda *inputs: denoiser.apply({'params': params}, *inputs), z, cond, key)[0].mean()

        return jax.grad(mean_loss)(params)

    return milliseconds(step, params, jax.random.key(1))


def main():
    print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}; milliseconds of the base, and the others over it')
    print(f'{"tokens a clip":>13} {"clips":>6} ' + ' '.join(f'{arm:>15}' for arm in ARMS))
    for side in SIDES:
        base, *others = (step_time(arm, side) for arm in ARMS)
        shown = [f'{base:12.1f} ms'] + [f'{time / base:15.2f}' for time in others]
        print(f'{5 * side**2:13} {max(1, TOKENS // (5 * side**2)):6} ' + ' '.join(shown), flush=True)


if __name__ == '__main__':
    main()
