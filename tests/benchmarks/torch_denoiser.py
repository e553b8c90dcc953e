"""Times the quickstart's training steps against the same networks in PyTorch, on this machine's CPU, in one run.

source launch/environment.sh && python -m tests.benchmarks.torch_denoiser [--channels_last]

PyTorch is no dependency of walt: `pip install torch==2.13.0`, in its build for CPUs, goes into an environment of its
own. The denoiser below is written in plain PyTorch and takes the parameters of `walt.denoiser.walt.Walt`; the tokenizer
is that of `torch_tokenizer.py`. Both sides do all of a step of configs/quickstart_{denoiser,tokenizer}.py:

    denoiser     draw time, noise and dropped labels; a pass without gradients, for the estimate; the loss and its
                 gradients; clip them, AdamW, moving average
    tokenizer    uint8 -> [0, 1]; the loss and its gradients; clip them, AdamW, moving average

PyTorch has its fused AdamW, its own attention and layer norm, and foreach operations for clipping and averaging. Before
anything is timed, both must have as many parameters, give the same outputs and the same gradients, and go the same way
for three updates on the same draws.

Then both run in turns on all cores, with pauses, because idle threads of either spin for a moment; whoever was first
comes second the next time. Printed are the medians of the parts and of the whole step, and ours / torch: below 1 ours
is the faster. Compilation is not in them. Timings mean something only where nothing else runs; where something does,
`taskset -c 0 python -m tests.benchmarks.torch_denoiser --cpu_time` compares the time that one core works for each.
"""

import importlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from einops import rearrange
from flax.traverse_util import flatten_dict

from tests.benchmarks import torch_tokenizer
from walt import build
from walt.denoiser.walt import Walt
from walt.nn.embeddings import relative_index
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import activate
from walt.randomness import bernoulli, normal, row_keys, stream
from walt.tokenizer.pixels import from_uint8
from walt.training.denoiser_step import make_denoiser_step
from walt.training.state import State, create
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step

try:
    import torch
except ImportError:
    sys.exit('no PyTorch here: pip install torch==2.13.0 (the CPU build) into an environment that has walt')
from torch.nn import functional as F

TASKS = flags.DEFINE_list('tasks', ['denoiser', 'tokenizer'], 'Which of the two steps.')
ROUNDS = flags.DEFINE_integer('rounds', 15, 'Timed runs of each part.', lower_bound=1)
CPU_TIME = flags.DEFINE_bool('cpu_time', False, 'Time of the processor in place of the clock.')
PAUSE = flags.DEFINE_float('pause', 0.1, 'Seconds between them.', lower_bound=0)

_UPDATES = 3  # that both must agree on


def modulate(x_BTHWD, scale_BTD, shift_BTD):
    return torch.addcmul(shift_BTD[:, :, None, None], x_BTHWD, 1 + scale_BTD[:, :, None, None])


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Attention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.q_norm, self.k_norm = (torch.nn.LayerNorm(width // heads, eps=1e-6) for _ in range(2))

    def forward(self, x_BPD, bias_NPP):
        q, k, v = rearrange(self.qkv(x_BPD), 'B P (S N K) -> S B N P K', S=3, N=self.heads)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=bias_NPP[None])
        return self.out(rearrange(y, 'B N P K -> B P (N K)'))


class Layer(torch.nn.Module):
    """A spatial or spatiotemporal layer: window attention and MLP, with AdaLN-LoRA."""

    def __init__(self, ours: Walt, window):
        super().__init__()
        width, hidden = ours.width, ours.hidden or 4 * ours.width
        self.window = window
        index_PP = torch.from_numpy(relative_index(window))
        self.register_buffer('index_PP', index_PP)
        self.table = torch.nn.Parameter(torch.empty(int(index_PP.max()) + 1, ours.heads))
        self.attention = Attention(width, ours.heads)
        self.lora_down, self.lora_up = (
            torch.nn.Linear(width, ours.rank, bias=False),
            torch.nn.Linear(ours.rank, 6 * width, bias=False),
        )
        self.up, self.down = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

    def forward(self, x_BTHWD, c_BTD, shared_BTE):
        pt, ph, pw = self.window
        (batch, frames, height, width, _), sizes = x_BTHWD.shape, dict(pt=pt, ph=ph, pw=pw)
        modulation = shared_BTE + self.lora_up(self.lora_down(c_BTD))
        gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2 = modulation.chunk(6, dim=-1)
        y = modulate(layer_norm(x_BTHWD), gamma_1, beta_1)
        y = rearrange(y, 'B (T pt) (H ph) (W pw) D -> (B T H W) (pt ph pw) D', **sizes)
        y = self.attention(y, self.table[self.index_PP].permute(2, 0, 1))
        extents = dict(B=batch, T=frames // pt, H=height // ph, W=width // pw, **sizes)
        y = rearrange(y, '(B T H W) (pt ph pw) D -> B (T pt) (H ph) (W pw) D', **extents)
        x_BTHWD = torch.addcmul(x_BTHWD, alpha_1[:, :, None, None], y)
        y = modulate(layer_norm(x_BTHWD), gamma_2, beta_2)
        y = self.down(F.gelu(self.up(y), approximate='tanh'))
        return torch.addcmul(x_BTHWD, alpha_2[:, :, None, None], y)


class TorchWalt(torch.nn.Module):
    """(z_BTHWC, t_B, label_B, estimate_BTHWC) -> prediction_BTHWC, all channels last: `Walt` with classes only."""

    def __init__(self, ours: Walt):
        super().__init__()
        frames, height, width = ours.grid
        channels, patches = ours.latent_shape[-1], ours.patch**2 * ours.latent_shape[-1]
        self.patch, self.channels = ours.patch, channels
        self.time_first, self.time_second = torch.nn.Linear(256, ours.width), torch.nn.Linear(ours.width, ours.width)
        self.label = torch.nn.Embedding(ours.classes + 1, ours.width)
        self.embed = torch.nn.Linear(2 * patches, ours.width)
        self.space = torch.nn.Parameter(torch.empty(height, width, ours.width))
        self.time = torch.nn.Parameter(torch.empty(frames, ours.width))
        self.modulation = torch.nn.Linear(ours.width, 6 * ours.width)
        layers = [Layer(ours, window) for _ in range(ours.depth // 2) for window in ours.windows.values()]
        self.layers = torch.nn.ModuleList(layers)
        self.head_modulation, self.head = (
            torch.nn.Linear(ours.width, 2 * ours.width),
            torch.nn.Linear(ours.width, patches),
        )
        self.register_buffer('rates', torch.exp(-math.log(10_000.0) * torch.arange(128) / 128))

    def forward(self, z_BTHWC, t_B, label_B, estimate_BTHWC):
        angles = 1000.0 * t_B[:, None] * self.rates
        c_BD = self.time_second(F.silu(self.time_first(torch.cat([angles.cos(), angles.sin()], dim=-1))))
        c_BTD = (c_BD + self.label(label_B))[:, None]
        x = torch.cat([z_BTHWC, estimate_BTHWC], dim=-1)
        x = rearrange(x, 'B T (H ph) (W pw) C -> B T H W (ph pw C)', ph=self.patch, pw=self.patch)
        x = self.embed(x) + self.space + self.time[:, None, None]
        shared_BTE = self.modulation(F.silu(c_BTD))
        for layer in self.layers:
            x = layer(x, c_BTD, shared_BTE)
        scale, shift = self.head_modulation(F.silu(c_BTD)).chunk(2, dim=-1)
        x = self.head(modulate(layer_norm(x), scale, shift))
        return rearrange(x, 'B T H W (ph pw C) -> B T (H ph) (W pw) C', ph=self.patch, pw=self.patch)


# Ours -> theirs, where names differ; a kernel is (in .., out ..), with two axes in for attention's output.
_NAMES = {
    'time.mlp.first': 'time_first',
    'time.mlp.second': 'time_second',
    'label.table': 'label.weight',
    'patch': 'embed',
    'position.space': 'space',
    'position.time': 'time',
    'modulation.linear': 'modulation',
    'head.modulation.linear': 'head_modulation',
    'head.linear': 'head',
}
_OF_LAYER = {
    'relative_position.table': 'table',
    'lora.down': 'lora_down',
    'lora.up': 'lora_up',
    'mlp.up': 'up',
    'mlp.down': 'down',
    'attention.q_norm.norm': 'attention.q_norm',
    'attention.k_norm.norm': 'attention.k_norm',
}


def as_state_dict(params) -> dict[str, torch.Tensor]:
    """Parameters of `Walt`, or gradients by them, under the names and in the layout of `TorchWalt`'s."""
    state = {}

    def put(path, names, value, prefix=''):
        *modules, leaf = path
        module, name = '.'.join(modules), '.'.join(path)
        if leaf == 'kernel':
            inner = 2 if modules[-1] == 'out' else 1
            value = value.reshape(math.prod(value.shape[:inner]), -1).T
        if leaf == 'bias':
            value = value.reshape(-1)
        theirs = names.get(name) or f'{names.get(module, module)}.{"bias" if leaf == "bias" else "weight"}'
        state[prefix + theirs] = torch.from_numpy(np.array(value))

    for path, value in flatten_dict(params).items():
        if path[0] != 'blocks':
            put(path, _NAMES, np.asarray(value))
            continue
        for block, of_block in enumerate(np.asarray(value)):
            layer = 2 * block + (path[1] == 'spatiotemporal')
            put(path[2:], _OF_LAYER, of_block, f'layers.{layer}.')
    return state


class TorchTraining:
    """What follows the gradients: clipping, AdamW after a warm-up, a moving average; as `State.apply` has them."""

    def __init__(self, module: torch.nn.Module, optimizer, ema_decay: float):
        self.settings, self.ema_decay, self.updates = optimizer, ema_decay, 0
        self.params = list(module.parameters())
        self.average = [param.detach().clone() for param in self.params]
        betas = optimizer['b1'], optimizer.get('b2', 0.99)
        self.optimizer = torch.optim.AdamW(self.params, lr=0.0, betas=betas, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, self.settings['clip_norm'])
        warm = min(self.updates / self.settings['warmup_steps'], 1.0)  # the cosine after it costs nothing either
        self.optimizer.param_groups[0]['lr'] = self.settings['learning_rate'] * warm
        self.optimizer.step()
        decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.params, 1 - decay)
        self.updates += 1


class Ours:
    """The state of one of our programs, its batch and its step, with the parts of the step by themselves."""

    def __init__(self, state: State, layout: State, step, forward, loss, optimizer, ema_decay, batch):
        """
        Args:
            step: (state, frozen, batch, key) -> (state, metrics).
            forward: (params, batch) -> array.
            loss: (params, batch, key) -> scalar.
        """
        self.state, self.batch, self.key = state, batch, jax.random.key(7)
        self._step = jax.jit(step, out_shardings=(layout, None), donate_argnums=0)
        self._forward, self._gradients = jax.jit(forward), jax.jit(jax.grad(loss))
        self._update = jax.jit(lambda state, gradients: state.apply(gradients, optimizer, ema_decay), donate_argnums=0)

    def forward(self):
        return jax.block_until_ready(self._forward(self.state.params, self.batch))

    def gradients(self):
        self.last = jax.block_until_ready(self._gradients(self.state.params, self.batch, self.key))
        return self.last

    def update(self):
        self.state = jax.block_until_ready(self._update(self.state, self.last))

    def step(self):
        self.state, _ = jax.block_until_ready(self._step(self.state, None, self.batch, self.key))


class TheirDenoiser:
    """The same of PyTorch."""

    def __init__(self, module: TorchWalt, schedule, config, z_BTHWC, label_B):
        self.module, self.z, self.label, self.config = module, z_BTHWC, label_B, config
        self.steps = schedule.steps
        levels = schedule.alpha_sigma(np.arange(1 + self.steps) / self.steps)
        self.levels = [torch.from_numpy(np.array(level)) for level in levels]
        self.training = TorchTraining(module, config['optimizer'], config['ema_decay'])
        self.drawn = None

    def forward(self):
        with torch.no_grad():
            half_B = torch.full((len(self.z),), 0.5)
            return self.module(self.z, half_B, self.label, self.z)

    def draws(self):
        """(steps of the diffusion, noise, who gets an estimate, labels with some dropped)."""
        rows = len(self.z)
        given_B = torch.rand(rows) < self.config['loss']['self_conditioning']
        dropped_B = torch.rand(rows) < self.config['conditioning']['dropout']
        label_B = torch.where(dropped_B, self.config['denoiser']['classes'], self.label)
        return torch.randint(1, self.steps + 1, (rows,)), torch.randn_like(self.z), given_B, label_B

    def gradients(self):
        k_B, eps, given_B, label_B = self.drawn or self.draws()
        t_B = k_B / self.steps
        alpha, sigma = (level[k_B][:, None, None, None, None] for level in self.levels)
        z_t = alpha * self.z + sigma * eps
        with torch.no_grad():
            first = self.module(z_t, t_B, label_B, torch.zeros_like(z_t))
            estimate = torch.where(given_B[:, None, None, None, None], alpha * z_t - sigma * first, 0.0)
        for param in self.training.params:
            param.grad = None
        F.mse_loss(self.module(z_t, t_B, label_B, estimate), alpha * eps - sigma * self.z).backward()

    def update(self):
        self.training.update()

    def step(self):
        self.gradients()
        self.training.update()


class TheirTokenizer:
    def __init__(self, module: torch.nn.Module, config, video_BTHWC):
        self.module, self.video_BTHWC = module, video_BTHWC
        self.weight = config['losses']['reconstruction']
        self.training = TorchTraining(module, config['optimizer'], config['ema_decay'])

    def pixels(self):
        return self.video_BTHWC.permute(0, 4, 1, 2, 3).float().div_(255)

    def forward(self):
        with torch.no_grad():
            return self.module(self.pixels())[0].permute(0, 2, 3, 4, 1)

    def gradients(self):
        video = self.pixels()
        for param in self.training.params:
            param.grad = None
        (self.weight * F.mse_loss(self.module(video)[0], video)).backward()

    def update(self):
        self.training.update()

    def step(self):
        self.gradients()
        self.training.update()


def denoisers(mesh) -> tuple[Ours, TheirDenoiser, Callable]:
    """Ours, theirs with the same parameters, and what makes their names of our parameters."""
    config = importlib.import_module('configs.quickstart_denoiser').get_config().to_dict()
    rng = np.random.default_rng(0)
    denoiser, schedule = build.denoiser(config['denoiser'], config['dtype']), build.schedule(config['schedule'])
    loss, conditioning = build.loss(config['loss'], schedule), build.conditioning(config['conditioning'], schedule)
    optimizer, decay = build.optimizer(config['optimizer'], config['steps']), config['ema_decay']
    state, layout = create(build.init_denoiser(denoiser), optimizer, mesh, jax.random.key(0), ema_decay=decay)
    params = random_params(state.params, rng)
    theirs = TorchWalt(denoiser)
    theirs.load_state_dict(as_state_dict(params), strict=False)
    rows = config['batch_size']
    z_BTHWC = rng.normal(size=(rows, *denoiser.latent_shape)).astype(np.float32)
    label_B = rng.integers(0, denoiser.classes, rows).astype(np.int32)

    def forward(params, batch):
        z = batch['z']
        cond = {'label': batch['label'], 'estimate': z}
        return denoiser.apply({'params': params}, z, jnp.full(len(z), 0.5), cond)

    def mean_loss(params, batch, key):
        key_B = row_keys(key, len(batch['z']))
        cond = conditioning(denoiser, batch, None, stream(key_B, 'conditioning'))
        return loss(lambda *inputs: denoiser.apply({'params': params}, *inputs), batch['z'], cond, key_B)[0].mean()

    ours = Ours(
        state.starting_from(params),
        layout,
        make_denoiser_step(denoiser, loss, optimizer, decay, conditioning),
        forward,
        mean_loss,
        optimizer,
        decay,
        {'z': jnp.asarray(z_BTHWC), 'label': jnp.asarray(label_B)},
    )
    theirs = TheirDenoiser(theirs, schedule, config, torch.from_numpy(z_BTHWC), torch.from_numpy(label_B).long())

    # What our step draws, for the comparison.
    key_B = row_keys(ours.key, rows)
    dropped = conditioning(denoiser, ours.batch, None, stream(key_B, 'conditioning'))['label']
    t_B = schedule.draw_times(stream(key_B, 'time'))
    eps = normal(stream(key_B, 'noise'), z_BTHWC.shape[1:])
    given_B = bernoulli(stream(key_B, 'self_conditioning'), loss.self_conditioning)
    k_B = np.rint(np.asarray(t_B) * schedule.steps).astype(np.int64)
    drawn = [torch.from_numpy(np.array(x)) for x in (k_B, eps, given_B, np.asarray(dropped, np.int64))]
    theirs.drawn = drawn
    return ours, theirs, as_state_dict


def tokenizers(mesh) -> tuple[Ours, TheirTokenizer, Callable]:
    config = importlib.import_module('configs.quickstart_tokenizer').get_config().to_dict()
    rng = np.random.default_rng(0)
    objective = build.tokenizer_objective(config)
    optimizer, decay = build.optimizer(config['optimizer'], config['steps']), config['ema_decay']
    clip = (config['data']['frames'], *[config['data']['size']] * 2, 3)
    state, layout = create_tokenizer_state(objective, optimizer, mesh, jax.random.key(0), clip, decay)
    params = random_params(state.params, rng)
    theirs = torch_tokenizer.TorchTokenizer(objective.tokenizer)
    theirs.load_state_dict(torch_tokenizer.as_state_dict(params))
    if torch_tokenizer.CHANNELS_LAST.value:
        theirs = theirs.to(memory_format=torch.channels_last_3d)
    video_BTHWC = rng.integers(0, 256, (config['batch_size'], *clip)).astype(np.uint8)

    def forward(params, batch):
        return objective.tokenizer.apply({'params': params}, from_uint8(batch['video']))[0]

    def loss(params, batch, key):
        video = from_uint8(batch['video'])
        return objective(params, None, None, None, video, stream(key, 'bottleneck'), 0)[0].tokenizer

    ours = Ours(
        state.starting_from(params),
        layout,
        make_tokenizer_step(objective, optimizer, decay),
        forward,
        loss,
        optimizer,
        decay,
        {'video': jnp.asarray(video_BTHWC)},
    )
    return ours, TheirTokenizer(theirs, config, torch.from_numpy(video_BTHWC)), torch_tokenizer.as_state_dict


def random_params(params, rng: np.random.Generator):
    """Parameters that keep activations at the size of 1, none of them 0 or 1 as in an initialisation."""

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        if name == 'scale':
            return jnp.asarray(1 + 0.2 * noise)
        if name != 'kernel':
            return jnp.asarray(0.2 * noise)
        # Of a linear map one axis comes in, after that of the scanned layers; of a convolution all but the last.
        fan_in = math.prod(leaf.shape[:-1]) if leaf.ndim == 5 else 4 * leaf.shape[path[0].key == 'blocks']
        return jnp.asarray(noise / math.sqrt(fan_in))

    return jax.tree_util.tree_map_with_path(draw, params)


def check(what: str, difference: float, limit: float) -> None:
    print(f'  {what:<66} {float(difference):.1e}', flush=True)
    if not difference < limit:
        sys.exit(f'{what}: {difference:.1e} is not below {limit:.0e}; no timings of different networks')


def compare(ours: Ours, theirs, named: Callable) -> None:
    """Ends the program unless both are the same."""
    parameters = dict(theirs.module.named_parameters())
    before = named(ours.state.params)
    assert {name: x.shape for name, x in before.items()} == {name: x.shape for name, x in parameters.items()}
    mine, yours = np.asarray(ours.forward()), theirs.forward().numpy()
    check(f'largest difference of outputs, which go to {np.abs(mine).max():.1f}', np.abs(mine - yours).max(), 1e-4)
    gradients = named(ours.gradients())
    theirs.gradients()
    largest = max(x.abs().max() for x in gradients.values())
    difference = max((gradients[name] - x.grad).abs().max() for name, x in parameters.items())
    check('largest difference of gradients / largest one', difference / largest, 1e-4)
    for _ in range(_UPDATES):
        ours.step()
        theirs.step()
    averages = dict(zip(parameters, theirs.training.average))
    for what, mine, yours in (('', ours.state.params, parameters), ('averages of ', ours.state.ema, averages)):
        mine = named(mine)
        moved = sum((mine[name] - before[name]).abs().sum() for name in mine)
        apart = sum((mine[name] - yours[name].detach()).abs().sum() for name in mine)
        check(f'{what}parameters apart / moved, after {_UPDATES} updates', apart / moved, 1e-2)
    theirs.drawn = None  # from now on it draws for itself, as ours does


def contest(ours: Ours, theirs) -> None:
    clock = time.process_time if CPU_TIME.value else time.perf_counter
    print(f'  {"":<10} {"ms ours":>10} {"ms torch":>10} {"ours / torch":>13}')
    for part in ('forward', 'gradients', 'update', 'step'):
        pair = {'ours': (getattr(ours, part), []), 'torch': (getattr(theirs, part), [])}
        order = list(pair)
        for _ in range(ROUNDS.value + 2):  # the first two of each are not counted
            for who in order:
                function, times = pair[who]
                time.sleep(PAUSE.value)
                start = clock()
                function()
                times.append(1000 * (clock() - start))
            order.reverse()
        mine, yours = (statistics.median(times[2:]) for _, times in pair.values())
        print(f'  {part:<10} {mine:10.1f} {yours:10.1f} {mine / yours:13.2f}', flush=True)


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(cores)
    print(f'walt on jax {jax.__version__}, torch {torch.__version__}; {cores} cores, float32')
    mesh = make_mesh()
    with activate(mesh):
        for task, made in {'denoiser': denoisers, 'tokenizer': tokenizers}.items():
            if task in TASKS.value:
                ours, theirs, named = made(mesh)
                count = sum(x.size for x in jax.tree.leaves(ours.state.params))
                print(f'\n{task}: {count:,} parameters')
                compare(ours, theirs, named)
                contest(ours, theirs)


if __name__ == '__main__':
    app.run(main)
