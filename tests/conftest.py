"""What tests share: small networks with random parameters, one trained run, and fast compilation.

Nearly all the time of these tests goes into compiling. So XLA's optimisations are off, its older code generator, which
takes a third of the time, is on where there is one, what is compiled is kept from run to run, and parameters are drawn
by NumPy rather than by an initialiser that has to be compiled. Tracing makes many objects that live on, which the
garbage collector need not go through every 700 objects.
"""
# ruff: noqa: E402 - JAX reads the environment when it is imported

import functools
import gc
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]

# The environment, so that programs that tests start inherit it.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
if version('jax').startswith('0.10.'):  # 0.12 refuses to start with this flag
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_use_fusion_emitters=false'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
gc.set_threshold(100_000, 50, 50)
sys.path.insert(0, str(ROOT))  # `configs` is a folder of the repository, not of the installed package

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import Letters, binary, conditioned_config, denoiser_config, finer_config, tokenizer_config
from torch_files import view_fixture, write_torch_fixture  # noqa: F401 - pytest finds fixtures by import

from walt import build
from walt.denoiser.walt import Walt
from walt.tokenizer.autoencoder import Tokenizer


def random_parameters(module: nn.Module, *args, method=None, scale: float = 0.3, seed: int = 0):
    """Parameters of `module` for inputs `args`, all of them normal numbers, also those that start as 0 or 1."""
    key = jax.random.key(0)
    _, variables = jax.eval_shape(lambda: module.init_with_output(key, *args, method=method))
    shapes = nn.unbox(variables)['params']
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope='session', name='random_parameters')
def random_parameters_fixture():
    return random_parameters


def _with_parameters(module: Tokenizer) -> SimpleNamespace:
    params = random_parameters(module, jnp.zeros((1, 5, 8, 8, 3)))
    encode, decode = (
        jax.jit(lambda params, x, method=method: module.apply({'params': params}, x, method=method))
        for method in ('encode', 'decode')
    )
    return SimpleNamespace(module=module, params=params, encode=encode, decode=decode)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope='session')
def small_tokenizer():
    """`module` with strides of 4 in time and in space, `params`, and jitted `encode`, `decode` (params, array)."""
    module = Tokenizer(
        channels=4,
        multipliers=(1, 1, 2),
        blocks=(0, 1, 1),
        middle_blocks=0,
        spatial_strides=(2, 2),
        temporal_strides=(2, 2),
        latent_channels=3,
        groups=2,
    )
    return _with_parameters(module)


@pytest.fixture(scope='session')
def tiny_tokenizer():
    """The same of a network of one stride of 2 in time and space, which compiles in a third of the time."""
    module = Tokenizer(
        channels=4,
        multipliers=(1, 2),
        blocks=(0, 0),
        middle_blocks=0,
        spatial_strides=(2,),
        temporal_strides=(2,),
        latent_channels=3,
        groups=2,
    )
    return _with_parameters(module)


def random_inputs(module: Walt, rows: int = 2, seed: int = 3):
    """z, t, cond of `rows` rows, random in every entry; no row is a stack of pictures."""
    rng = np.random.default_rng(seed)

    def normal(shape):
        return jnp.asarray(rng.normal(size=(rows, *shape)), jnp.float32)

    draw = {
        'label': lambda shape: jnp.asarray(rng.integers(module.classes, size=(rows, *shape)), jnp.int32),
        'text_mask': lambda shape: (jnp.arange(rows * np.prod(shape)) % 3 < 2).reshape(rows, *shape),
        'frames_mask': lambda shape: jnp.broadcast_to(jnp.arange(shape[0]) == 0, (rows, *shape)).astype(jnp.float32),
        'low_t': lambda shape: jnp.asarray(rng.uniform(size=rows), jnp.float32),
        'image': lambda shape: jnp.zeros(rows, bool),
    }
    cond = {name: draw.get(name, normal)(shape) for name, shape in module.conditions.items()}
    return normal(module.latent_shape), jnp.linspace(0.3, 0.9, rows), cond


@functools.cache
def tiny_denoiser(**fields):
    """`module` with these fields, `params`, jitted `apply` (params, z, t, cond), and `inputs`: two rows."""
    sizes = dict(latent_shape=(2, 4, 4, 3), width=8, depth=2, heads=2, spatiotemporal_window=(2, 2))
    module = Walt(**sizes | fields)
    inputs = random_inputs(module)
    apply = jax.jit(lambda params, z, t_B, cond: module.apply({'params': params}, z, t_B, cond))
    return SimpleNamespace(module=module, params=random_parameters(module, *inputs), apply=apply, inputs=inputs)


@pytest.fixture(scope='session', name='tiny_denoiser')
def tiny_denoiser_fixture():
    return tiny_denoiser


@pytest.fixture(scope='session', name='random_inputs')
def random_inputs_fixture():
    return random_inputs


@pytest.fixture(scope='session')
def small_denoiser():
    """`tiny_denoiser` for labels, and for the latents that `small_tokenizer` makes of 5x16x16 clips."""
    return tiny_denoiser(classes=10, depth=4)


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """A tokenizer and a denoiser that were trained for four steps; `folder` holds a workdir of each, by task.

    `train[task](workdir, **changes)` calls the program's `train`; `state[task]` is what it returned. The workdir that
    the denoiser took its tokenizer from is gone. Tests write to copies.
    """
    folder = tmp_path_factory.mktemp('trained')
    configs = {'tokenizer': tokenizer_config(), 'denoiser': denoiser_config()}

    def trainer(task):
        program = binary(f'train_{task}')
        return lambda workdir, **changes: program.train(configs[task] | changes, str(workdir))

    train = {task: trainer(task) for task in configs}
    state = {'tokenizer': train['tokenizer'](folder / 'tokenizer')}
    borrowed = shutil.copytree(folder / 'tokenizer', folder / 'borrowed')
    state['denoiser'] = train['denoiser'](folder / 'denoiser', tokenizer_dir=str(borrowed))
    shutil.rmtree(borrowed)
    return SimpleNamespace(folder=folder, train=train, state=state, configs=configs)


@pytest.fixture(scope='session')
def conditioned(trained, tmp_path_factory):
    """Denoisers of all conditions, trained for four steps: `base`, and `finer` above it, with texts of `Letters`.

    `folder` holds the workdirs, `state[name]` is what training returned, `configs[name]` what it was told.
    """
    folder = tmp_path_factory.mktemp('conditioned')
    program, configs = binary('train_denoiser'), {'base': conditioned_config(), 'finer': finer_config()}
    tokenizer = {'tokenizer_dir': str(trained.folder / 'tokenizer')}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.TEXT_ENCODERS, 'letters', Letters)
        state = {name: program.train(config | tokenizer, str(folder / name)) for name, config in configs.items()}
    return SimpleNamespace(folder=folder, state=state, configs=configs)


@pytest.fixture
def letters(monkeypatch):
    """The text encoder of `conditioned`."""
    monkeypatch.setitem(build.TEXT_ENCODERS, 'letters', Letters)
