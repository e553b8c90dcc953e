"""The directions of imports, read from the sources: what a package may know of the others."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Package or top module of walt -> the packages and top modules of walt that it may import, besides itself.
ALLOWED = {
    '': set(),  # walt/__init__.py
    'precision': set(),
    'randomness': set(),
    'tokens': set(),
    'weights': set(),
    'parallel': set(),
    'nn': {'precision'},
    'tokenizer': {'nn', 'precision'},
    'denoiser': {'nn', 'precision', 'tokens'},
    'navit': {'denoiser', 'nn', 'precision', 'tokens'},
    'diffusion': {'randomness', 'tokens'},
    'planning': set(),
    'data': {'tokens'},
    'features': {'weights'},
    'text': {'interop', 'nn', 'precision', 'weights'},
    'interop': {'denoiser', 'tokenizer'},
    'generation': {'data', 'diffusion', 'tokenizer', 'denoiser', 'parallel', 'randomness', 'tokens'},
    'evaluation': {'data', 'denoiser', 'features', 'generation', 'navit', 'randomness', 'tokenizer', 'tokens'},
    'training': {'data', 'diffusion', 'tokenizer', 'denoiser', 'navit', 'parallel', 'randomness', 'tokens'},
}
BUILD = {'build': set(ALLOWED) - {''}, 'processes': {'parallel'}}
BUILD['dense_or_packed'] = {'build', 'denoiser', 'diffusion', 'generation', 'tokenizer', 'training'}
BUILD['restore'] = set(ALLOWED) - {''} | {'build', 'dense_or_packed'}
# A plan, part upon part: what a configuration runs, what that costs by its shapes, and compiled for other machines.
BUILD['batches'] = {'build', 'denoiser', 'navit'}
BUILD['tasks'] = {'batches', 'build', 'dense_or_packed'}
BUILD['tasks'] |= {'denoiser', 'generation', 'navit', 'parallel', 'tokenizer', 'training'}
BUILD['costs'] = {'parallel', 'planning', 'tasks'}
BUILD['pods'] = {'build', 'costs', 'parallel', 'planning', 'tasks'}
# Programs may import everything, `build`, `restore` and `processes` among it; but no other program.
PROGRAM = set(ALLOWED) - {''} | set(BUILD)

# Library -> who may import it. `parallel.rules` and `training.state` read the names that Linen keeps in boxes.
LIBRARIES = {
    'ml_collections': {'build'},
    'flax.linen': {
        'nn',
        'tokenizer',
        'denoiser',
        'navit',
        'text.bert',
        'text.t5_network',
        'parallel.rules',
        'training.state',
    },
    'optax': {'training'},
    'orbax': {'training'},
    'absl': 'programs',
    'torch': set(),
    'transformers': set(),
    'huggingface_hub': {'text.t5'},
    'sentencepiece': {'text.t5'},
    'tokenizers': {'text'},
    'safetensors': {'weights'},
    'tensorflow': set(),
}
# These know no device and no network.
WITHOUT = {
    'data': {'jax', 'flax', 'optax', 'orbax'},
    'diffusion': {'flax', 'optax', 'orbax'},
    'generation': {'flax', 'optax', 'orbax'},
}

NO_NAMES = {'utils', 'util', 'helpers', 'helper', 'misc', 'common', 'base', 'lib', 'tools'}

MODULES = sorted((ROOT / 'walt').rglob('*.py'))


def name_of(path: Path) -> str:
    """The module's name below walt, e.g. 'nn.conv'; '' for walt itself."""
    return '.'.join(path.relative_to(ROOT / 'walt').with_suffix('').parts).removesuffix('__init__').rstrip('.')


def imported(path: Path) -> set[str]:
    """Full names of everything that a source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path} imports relatively'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def within(name: str, packages) -> bool:
    return any(name == package or name.startswith(package + '.') for package in packages)


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_imports_go_the_allowed_ways(path):
    name = name_of(path)
    package = name.split('.')[0]
    of_walt = {full.split('.')[1] for full in imported(path) if full.startswith('walt.')}
    allowed = (ALLOWED | BUILD).get(package, PROGRAM)
    assert of_walt - {package} <= allowed, f'walt.{name} may import {sorted(allowed)} of walt'


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_libraries_are_imported_where_they_belong(path):
    name = name_of(path)
    full_names = imported(path)
    for library, importers in LIBRARIES.items():
        if any(within(full, [library]) for full in full_names):
            if importers == 'programs':
                not_programs = set(ALLOWED | BUILD) - {'processes'}  # flags that programs share
                assert name.split('.')[0] not in not_programs, f'walt.{name} is no program but imports {library}'
            else:
                assert within(name, importers), f'walt.{name} imports {library}, which is for {sorted(importers)}'
    for package, libraries in WITHOUT.items():
        if within(name, [package]):
            assert not [full for full in full_names if within(full, libraries)], f'walt.{name} knows {libraries}'


def test_every_module_of_walt_that_is_imported_exists():
    """Or the first test would let a name through that stands for nothing."""
    for path in MODULES:
        for full in imported(path):
            if full.startswith('walt.'):
                place = ROOT / '/'.join(full.split('.')[:2])
                assert place.is_dir() or place.with_suffix('.py').is_file(), f'{path} imports {full}'


def test_no_module_is_a_drawer_for_odds_and_ends():
    odd = [name_of(path) for path in MODULES if NO_NAMES & set(name_of(path).split('.'))]
    assert not odd


def test_configs_import_no_model():
    for path in sorted((ROOT / 'configs').glob('*.py')):
        assert {full.split('.')[0] for full in imported(path)} <= {'math', 'ml_collections', 'configs'}, path
