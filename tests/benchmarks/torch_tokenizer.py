"""Times the tokenizer against the same network in PyTorch, on this machine's CPU, in one run.

python -m tests.benchmarks.torch_tokenizer --channels=32 --blocks=2 --frames=17 --size=64 --batch=1 --repeats=7

PyTorch is no dependency of walt: `pip install torch==2.13.0`, in its build for CPUs, goes into an environment of its
own. The network below is written in plain PyTorch, in its layout (N, C, D, H, W), and takes the parameters of
`walt.tokenizer.autoencoder.Tokenizer`. Before anything is timed, both must have as many parameters, give the same
reconstruction and latents (within 1e-4) and the same gradients. Both count the same operations: two for each
multiplication with an addition, in convolutions and matrix products, counted by PyTorch and from the shapes of ours.

Then both run in turns, each on all cores, with pauses, because idle threads of either spin for a moment; whoever was
first comes second the next time. Printed are the medians, of a reconstruction (forward) and of the mean square error
with its gradients by all parameters (backward), and ours / torch: below 1 ours is the faster. Compilation is not in
them. Timings mean something only where nothing else runs.
"""

import math
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict

from walt.nn.conv import CausalConv3d
from walt.nn.einsum import Einsum
from walt.tokenizer.autoencoder import Tokenizer

try:
    import torch
except ImportError:
    sys.exit('no PyTorch here: pip install torch==2.13.0 (the CPU build) into an environment that has walt')
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

CHANNELS = flags.DEFINE_integer('channels', 32, 'Width of the finest level; the paper has 128.', lower_bound=1)
BLOCKS = flags.DEFINE_integer('blocks', 2, 'Residual blocks of a level; the paper has 4.', lower_bound=0)
FRAMES = flags.DEFINE_integer('frames', 17, 'Frames of a clip, 1 + 4 k.', lower_bound=1)
SIZE = flags.DEFINE_integer('size', 64, 'Height and width of a clip, in pixels; divisible by 8.', lower_bound=8)
BATCH = flags.DEFINE_integer('batch', 1, 'Clips.', lower_bound=1)
REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed runs of each.', lower_bound=1)
CHANNELS_LAST = flags.DEFINE_bool('channels_last', False, "PyTorch's memory format channels_last_3d.")

_PAUSE = 0.2  # seconds between timed runs


class CausalConv(torch.nn.Conv3d):
    """The edge repeated, k_t - 1 frames in front and none behind."""

    def forward(self, x_BCTHW):
        kt, kh, kw = self.kernel_size
        around = ((kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2, kt - 1, 0)
        return super().forward(F.pad(x_BCTHW, around, mode='replicate') if any(around) else x_BCTHW)


class FrameNorm(torch.nn.Module):
    """Group norm of each frame by itself: time is folded into the batch, which is faster than moments written out."""

    def __init__(self, channels, groups, affine=True):
        super().__init__()
        self.groups = groups
        for name in ('weight', 'bias'):
            self.register_parameter(name, torch.nn.Parameter(torch.empty(channels)) if affine else None)

    def forward(self, x_BCTHW):
        frames = rearrange(x_BCTHW, 'B C T H W -> (B T) C H W')
        frames = F.group_norm(frames, self.groups, self.weight, self.bias, eps=1e-6)
        return rearrange(frames, '(B T) C H W -> B C T H W', B=len(x_BCTHW))


class AdaptiveNorm(torch.nn.Module):
    """x -> GN(x) (1 + gamma(z)) + beta(z); `strides` are the up-samplings from the grid of z to that of x."""

    def __init__(self, channels, latent_channels, groups, strides):
        super().__init__()
        self.strides = strides
        self.modulation = torch.nn.Conv3d(latent_channels, 2 * channels, 1)
        self.norm0 = FrameNorm(channels, groups, affine=False)

    def forward(self, x_BCTHW, z_BCTHW):
        gamma_beta = self.modulation(z_BCTHW)
        for strides in self.strides:
            gamma_beta = F.interpolate(gamma_beta, scale_factor=strides, mode='nearest')[:, :, strides[0] - 1 :]
        gamma, beta = gamma_beta.chunk(2, dim=1)
        return self.norm0(x_BCTHW) * (1 + gamma) + beta


class ResBlock(torch.nn.Module):
    def __init__(self, channels_in, channels_out, groups):
        super().__init__()
        self.norm0, self.norm1 = FrameNorm(channels_in, groups), FrameNorm(channels_out, groups)
        self.conv0 = CausalConv(channels_in, channels_out, 3, bias=False)
        self.conv1 = CausalConv(channels_out, channels_out, 3, bias=False)
        self.conv2 = CausalConv(channels_in, channels_out, 1, bias=False) if channels_in != channels_out else None

    def forward(self, x):
        y = self.conv0(F.silu(self.norm0(x)))
        y = self.conv1(F.silu(self.norm1(y)))
        return y + (x if self.conv2 is None else self.conv2(x))


class Downsample(torch.nn.Module):
    def __init__(self, channels, strides):
        super().__init__()
        self.conv0 = CausalConv(channels, channels, 3, strides)

    def forward(self, x):
        return self.conv0(x)


class Upsample(torch.nn.Module):
    def __init__(self, channels, strides):
        super().__init__()
        self.strides = strides
        self.conv0 = CausalConv(channels, channels * math.prod(strides), 3)

    def forward(self, x):
        st, sh, sw = self.strides
        x = rearrange(self.conv0(x), 'B (st sh sw C) T H W -> B C (T st) (H sh) (W sw)', st=st, sh=sh, sw=sw)
        return x[:, :, st - 1 :]


class Encoder(torch.nn.Sequential):
    def __init__(self, ours: Tokenizer, widths, strides):
        super().__init__()
        width = widths[0]
        self.add_module('stem', CausalConv(ours.pixel_channels, width, 3, bias=False))
        for level, next_width in enumerate(widths):
            for block in range(ours.blocks[level]):
                self.add_module(f'level{level}_block{block}', ResBlock(width, next_width, ours.groups))
                width = next_width
            if level < len(strides):
                self.add_module(f'level{level}_down', Downsample(width, strides[level]))
        for block in range(ours.middle_blocks):
            self.add_module(f'middle_block{block}', ResBlock(width, widths[-1], ours.groups))
            width = widths[-1]
        self.add_module('head_norm', FrameNorm(width, ours.groups))
        self.add_module('swish', torch.nn.SiLU())
        self.add_module('head', CausalConv(width, ours.latent_channels, 1))


class Decoder(torch.nn.Sequential):
    def __init__(self, ours: Tokenizer, widths, strides):
        super().__init__()
        width = widths[-1]
        self.add_module('stem', CausalConv(ours.latent_channels, width, 3))
        for block in range(ours.middle_blocks):
            self.add_module(f'middle_block{block}', ResBlock(width, width, ours.groups))
        for level in reversed(range(len(widths))):
            finer = tuple(reversed(strides[level:]))
            self.add_module(f'level{level}_adaptive', AdaptiveNorm(width, ours.latent_channels, ours.groups, finer))
            for block in range(ours.blocks[level]):
                self.add_module(f'level{level}_block{block}', ResBlock(width, widths[level], ours.groups))
                width = widths[level]
            if level:
                self.add_module(f'level{level}_up', Upsample(width, strides[level - 1]))
        self.add_module('head_norm', FrameNorm(width, ours.groups))
        self.add_module('swish', torch.nn.SiLU())
        self.add_module('head', CausalConv(width, ours.pixel_channels, 3))

    def forward(self, z_BCTHW):
        x = z_BCTHW
        for layer in self:
            x = layer(x, z_BCTHW) if isinstance(layer, AdaptiveNorm) else layer(x)
        return x


class TorchTokenizer(torch.nn.Module):
    """video -> (reconstruction, latents), all (B, C, T, H, W); modules have the names of ours."""

    def __init__(self, ours: Tokenizer):
        super().__init__()
        widths = [ours.channels * multiplier for multiplier in ours.multipliers]
        strides = [(t, s, s) for t, s in zip(ours.temporal_strides, ours.spatial_strides)]
        self.encoder, self.decoder = Encoder(ours, widths, strides), Decoder(ours, widths, strides)

    def forward(self, video_BCTHW):
        z_BCTHW = self.encoder(video_BCTHW)
        return self.decoder(z_BCTHW), z_BCTHW


def as_state_dict(params) -> dict[str, torch.Tensor]:
    """Our parameters, or gradients by them, under the names and in the layout of PyTorch's."""
    state = {}
    for (*modules, leaf), value in flatten_dict(params).items():
        path = '.'.join(modules).replace('FrameGroupNorm_', 'norm').replace('CausalConv3d_', 'conv')
        value = np.asarray(value)
        if modules[-1] == 'modulation':  # (c, 2, C), which maps every position by itself
            value = value.reshape(1, 1, 1, len(value), -1) if leaf == 'kernel' else value.ravel()
        if leaf == 'kernel':
            value = rearrange(value, 'T H W I O -> O I T H W')
        state[f'{path}.{"bias" if leaf == "bias" else "weight"}'] = torch.from_numpy(value.copy())
    return state


def random_params(module: Tokenizer, video_BTHWC, rng: np.random.Generator):
    """Parameters that keep activations at the size of 1, none of them 0 or 1 as in an initialisation."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), video_BTHWC))['params']

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        fan_in = leaf.shape[0] if leaf.ndim == 3 else math.prod(leaf.shape[:-1])
        return {'kernel': noise / math.sqrt(fan_in), 'scale': 1 + 0.2 * noise, 'bias': 0.2 * noise}[name]

    return jax.tree_util.tree_map_with_path(draw, shapes)


def operations(module: Tokenizer, params, video_BTHWC) -> tuple[int, int]:
    """Operations of a forward pass, and of one with the gradients, from the shapes that ours has; nothing is run.

    A gradient by the input and one by the kernel cost as much as the layer each; the pixels need none.
    """
    forward, unneeded = 0, 0

    def record(call, args, kwargs, context):
        nonlocal forward, unneeded
        y = call(*args, **kwargs)
        if context.method_name == '__call__' and isinstance(context.module, (CausalConv3d, Einsum)):
            taps = math.prod(context.module.kernel) if isinstance(context.module, CausalConv3d) else 1
            count = 2 * y.size * taps * args[0].shape[-1]
            forward += count
            unneeded += count if args[0].shape == video_BTHWC.shape else 0
        return y

    with nn.intercept_methods(record):
        jax.eval_shape(module.apply, {'params': params}, video_BTHWC)
    return forward, 3 * forward - unneeded


def counted(function, *arguments) -> int:
    """Operations of a call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


def check(what: str, difference: float, limit: float) -> None:
    print(f'{what:<46} {difference:.1e}', flush=True)
    if not difference < limit:
        sys.exit(f'{what}: {difference:.1e} is not below {limit:.0e}; no timings of different networks')


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(cores)
    rng = np.random.default_rng(0)
    ours = Tokenizer(
        channels=CHANNELS.value,
        blocks=(BLOCKS.value,) * 4,
        middle_blocks=BLOCKS.value,
        groups=math.gcd(32, CHANNELS.value),
    )
    video_BTHWC = rng.random((BATCH.value, FRAMES.value, SIZE.value, SIZE.value, 3), np.float32)
    ours.latent_shape(*video_BTHWC.shape[1:4])
    params = random_params(ours, video_BTHWC, rng)
    theirs = TorchTokenizer(ours)
    theirs.load_state_dict(as_state_dict(params))
    video_BCTHW = torch.from_numpy(rearrange(video_BTHWC, 'B T H W C -> B C T H W').copy())
    if CHANNELS_LAST.value:
        theirs, video_BCTHW = (x.to(memory_format=torch.channels_last_3d) for x in (theirs, video_BCTHW))
    params, video_BTHWC = jax.device_put((params, video_BTHWC))

    def reconstruct(params, video_BTHWC):
        reconstruction, bottled = ours.apply({'params': params}, video_BTHWC)
        return reconstruction, bottled.z_BTHWC

    def loss(params, video_BTHWC):
        return jnp.square(reconstruct(params, video_BTHWC)[0] - video_BTHWC).mean()

    # No jit within a jit: on CPUs, XLA runs the gradients of a nested one several times slower.
    forward, backward = jax.jit(reconstruct), jax.jit(jax.grad(loss))

    def torch_forward():
        with torch.no_grad():
            return theirs(video_BCTHW)

    def torch_backward():
        theirs.zero_grad(set_to_none=True)
        F.mse_loss(theirs(video_BCTHW)[0], video_BCTHW).backward()

    print(f'walt on jax {jax.__version__}, torch {torch.__version__}; {cores} cores, float32')
    print(f'{ours.channels} channels x {tuple(ours.multipliers)}, {BLOCKS.value} blocks; clips {video_BTHWC.shape}')
    sizes = [sum(x.size for x in jax.tree.leaves(params)), sum(x.numel() for x in theirs.parameters())]
    print(f'{"parameters, ours and torch":<46} {sizes[0]:,} {sizes[1]:,}')
    if sizes[0] != sizes[1]:
        sys.exit('the networks differ in size')

    for name, mine, yours in zip(('reconstructions', 'latents'), forward(params, video_BTHWC), torch_forward()):
        difference = np.abs(np.asarray(mine) - rearrange(yours.numpy(), 'B C T H W -> B T H W C')).max()
        check(f'largest difference of {name}', difference, 1e-4)
    torch_backward()
    yours = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    mine = as_state_dict(backward(params, video_BTHWC))
    largest = max(gradient.abs().max() for gradient in mine.values())
    difference = max((mine[name] - yours[name]).abs().max() for name in yours) / largest
    check('largest difference of gradients / largest one', float(difference), 1e-4)

    tasks = {
        'forward': (lambda: jax.block_until_ready(forward(params, video_BTHWC)), torch_forward),
        'backward': (lambda: jax.block_until_ready(backward(params, video_BTHWC)), torch_backward),
    }
    counts = dict(zip(tasks, operations(ours, params, video_BTHWC)))
    print(f'\n{"":>9} {"Gop ours":>10} {"Gop torch":>10} {"ms ours":>10} {"ms torch":>10} {"ours / torch":>13}')
    for name, (mine, yours) in tasks.items():
        pair = {'ours': (mine, []), 'torch': (yours, [])}
        order = list(pair)
        for _ in range(REPEATS.value + 1):  # the first run of each is not counted
            for who in order:
                function, times = pair[who]
                time.sleep(_PAUSE)
                start = time.perf_counter()
                function()
                times.append(1000 * (time.perf_counter() - start))
            order.reverse()
        ms = [statistics.median(times[1:]) for _, times in pair.values()]
        gops = counts[name] / 1e9, counted(yours) / 1e9
        print(
            f'{name:>9} {gops[0]:10.3f} {gops[1]:10.3f} {ms[0]:10.1f} {ms[1]:10.1f} {ms[0] / ms[1]:13.2f}', flush=True
        )


if __name__ == '__main__':
    app.run(main)
