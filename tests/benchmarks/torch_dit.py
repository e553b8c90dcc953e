"""Times DiT-S/2 against diffusers' DiT in PyTorch, on this machine's CPU, in one run: forward pass and training step.

source launch/environment.sh && python -m tests.benchmarks.torch_dit [--rows=4]
taskset -c 0 python -m tests.benchmarks.torch_dit --cpu_time          where other programs run
python -m tests.benchmarks.torch_dit --memory                         peak memory, each side in a process of its own

Needs the extra `interop`. Both sides have the same float32 parameters and do all of a step: draw time, noise and
dropped labels; the loss, mean squared error of the noise, and its gradients; clip them, AdamW, moving average. As in
`torch_denoiser.py`, whose flags these are too, both must agree in outputs, gradients and three updates before anything
is timed.

Theirs is diffusers' module with two numbers of the published code (see tests/interop/make_goldens.py) and one set of
embedders for all blocks, which are copies otherwise: by default diffusers has 6.9M parameters more in S. It computes
them anew in every block all the same, as it is written to. Its attention is PyTorch's fused one.
"""

import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from tests.benchmarks.torch_denoiser import Ours, TorchTraining, compare, contest, random_params
from walt import build
from walt.denoiser.conditions import bound
from walt.denoiser.dit import Dit
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.interop import dit
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import activate
from walt.randomness import normal, row_keys, stream
from walt.training.conditions import Conditioning
from walt.training.denoiser_step import make_denoiser_step
from walt.training.state import create

try:
    import torch
    from diffusers import DiTTransformer2DModel
except ImportError:
    sys.exit("no diffusers here: pip install -e '.[interop]' into an environment that has walt")
from torch.nn import functional as F

ROWS = flags.DEFINE_integer('rows', 4, 'Pictures in a batch.', lower_bound=1)
SIZE = flags.DEFINE_enum('dit', 'S', ['S', 'B', 'L', 'XL'], 'Which DiT, all with patches of 2.')
MEMORY = flags.DEFINE_bool('memory', False, 'Peak memory in place of time.')
ALONE = flags.DEFINE_enum('alone', None, ['ours', 'theirs'], 'Of which --memory tells; both, by default.')

SIZES = {'S': (384, 12, 6), 'B': (768, 12, 12), 'L': (1024, 24, 16), 'XL': (1152, 28, 16)}
DROPOUT, DECAY = 0.1, 0.9999
OPTIMIZER = {'name': 'adamw', 'learning_rate': 1e-4, 'warmup_steps': 1, 'b1': 0.9, 'b2': 0.999, 'clip_norm': 1.0}


def ours_and_shapes() -> tuple[Dit, DiscreteLinear]:
    width, depth, heads = SIZES[SIZE.value]
    module = Dit((1, 32, 32, 4), learn_variance=False, width=width, depth=depth, heads=heads, patch=2)
    return module, DiscreteLinear(zero_terminal_snr=False)


class TheirDit:
    def __init__(self, module: Dit, schedule: DiscreteLinear, params, z_BTHWC, label_B):
        self.module = DiTTransformer2DModel(
            num_attention_heads=module.heads,
            attention_head_dim=module.width // module.heads,
            out_channels=4,
            num_layers=module.depth,
            num_embeds_ada_norm=module.classes,
            norm_eps=1e-6,
        ).eval()  # which would drop labels by itself
        for block in self.module.transformer_blocks:
            block.norm1.emb = self.module.transformer_blocks[0].norm1.emb
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        if params is not None:
            arrays = dit.diffusers(module).export(params)
            self.module.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()})
        self.z, self.label = (
            torch.from_numpy(np.moveaxis(z_BTHWC[:, 0], -1, 1).copy()),
            torch.from_numpy(label_B).long(),
        )
        levels = schedule.alpha_sigma(np.arange(1 + schedule.steps) / schedule.steps)
        self.levels, self.classes = [torch.from_numpy(np.array(level)) for level in levels], module.classes
        self.training, self.drawn = TorchTraining(self.module, OPTIMIZER, DECAY), None

    def forward(self):
        with torch.no_grad():
            index_B = torch.full((len(self.z),), 499)
            return self.module(self.z, index_B, self.label).sample.permute(0, 2, 3, 1)[:, None]

    def draws(self):
        """(steps of the diffusion, noise, labels with some dropped)."""
        rows = len(self.z)
        label_B = torch.where(torch.rand(rows) < DROPOUT, self.classes, self.label)
        return torch.randint(1, len(self.levels[0]), (rows,)), torch.randn_like(self.z), label_B

    def gradients(self):
        k_B, eps, label_B = self.drawn or self.draws()
        alpha, sigma = (level[k_B][:, None, None, None] for level in self.levels)
        for param in self.training.params:
            param.grad = None
        F.mse_loss(self.module(alpha * self.z + sigma * eps, k_B - 1, label_B).sample, eps).backward()

    def update(self):
        self.training.update()

    def step(self):
        self.gradients()
        self.training.update()


def batch_of(module: Dit) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z_BTHWC = rng.normal(size=(ROWS.value, *module.latent_shape)).astype(np.float32)
    return z_BTHWC, rng.integers(0, module.classes, ROWS.value).astype(np.int32)


def our_dit(mesh, module: Dit, schedule: DiscreteLinear) -> Ours:
    loss, conditioning = DenoisingLoss(schedule, 'eps', 0.0), Conditioning(schedule, dropout=DROPOUT)
    optimizer = build.optimizer(OPTIMIZER, 100_000)
    state, layout = create(build.init_denoiser(module), optimizer, mesh, jax.random.key(0), ema_decay=DECAY)
    z_BTHWC, label_B = batch_of(module)

    def forward(params, batch):
        z = batch['z']
        return module.apply({'params': params}, z, jnp.full(len(z), 0.5), {'label': batch['label']})

    def mean_loss(params, batch, key):
        key_B = row_keys(key, len(batch['z']))
        cond = conditioning(module, batch, None, stream(key_B, 'conditioning'))
        return loss(bound(module, params), batch['z'], cond, key_B)[0].mean()

    state = state.starting_from(random_params(state.params, np.random.default_rng(0)))
    step = make_denoiser_step(module, loss, optimizer, DECAY, conditioning)
    batch = {'z': jnp.asarray(z_BTHWC), 'label': jnp.asarray(label_B)}
    return Ours(state, layout, step, forward, mean_loss, optimizer, DECAY, batch)


def both(mesh) -> tuple[Ours, TheirDit]:
    """With the same parameters; the first draws of theirs are those of ours."""
    module, schedule = ours_and_shapes()
    ours = our_dit(mesh, module, schedule)
    theirs = TheirDit(module, schedule, jax.device_get(ours.state.params), *batch_of(module))
    key_B = row_keys(ours.key, ROWS.value)
    label_B = Conditioning(schedule, dropout=DROPOUT)(module, ours.batch, None, stream(key_B, 'conditioning'))['label']
    t_B = schedule.draw_times(stream(key_B, 'time'))
    eps = np.array(normal(stream(key_B, 'noise'), module.latent_shape))[:, 0]
    k_B = torch.from_numpy(np.rint(np.array(t_B) * schedule.steps).astype(np.int64))
    theirs.drawn = k_B, torch.from_numpy(eps).permute(0, 3, 1, 2), torch.from_numpy(np.array(label_B)).long()
    return ours, theirs


def peak() -> float:
    """MiB of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_of(side: str) -> None:
    """Prints the peak, in MiB, of this process with everything imported, and after three of each part of one side."""
    module, schedule = ours_and_shapes()
    begun = peak()
    if side == 'ours':
        run = our_dit(make_mesh(), module, schedule)
    else:
        run = TheirDit(module, schedule, None, *batch_of(module))
    seen = {}
    for part in ('forward', 'step'):
        for _ in range(3):
            getattr(run, part)()
        seen[part] = peak() - begun
    print(f'  {side:<8} {begun:14.0f} {seen["forward"]:12.0f} {seen["step"]:12.0f}')


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(cores)
    if MEMORY.value and ALONE.value:
        with activate(make_mesh()):
            memory_of(ALONE.value)
        return
    print(f'walt on jax {jax.__version__}, torch {torch.__version__}; {cores} cores, float32')
    print(f'\nDiT-{SIZE.value}/2, {ROWS.value} pictures of 32x32x4 latents')
    if MEMORY.value:
        print(f'  MiB      {"when imported":>14} {"+ forward":>12} {"+ step":>12}', flush=True)
        for side in ('ours', 'theirs'):
            command = [sys.executable, '-m', 'tests.benchmarks.torch_dit', *sys.argv[1:], f'--alone={side}']
            subprocess.run(command, check=True)
        return
    with activate(make_mesh()):
        ours, theirs = both(make_mesh())
        names = [name for name, _ in theirs.module.named_parameters()]

        def named(tree):
            arrays = dit.diffusers(ours_and_shapes()[0]).export(jax.device_get(tree))
            return {name: torch.from_numpy(np.array(arrays[name])) for name in names}

        print(f'  {sum(x.size for x in jax.tree.leaves(ours.state.params)):,} parameters')
        compare(ours, theirs, named)
        contest(ours, theirs)


if __name__ == '__main__':
    app.run(main)
