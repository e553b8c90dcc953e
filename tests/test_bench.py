"""Figures of configurations: every phase has them, and they hold together."""

import json
import math
import re

import pytest
from tiny import binary, conditioned_config, denoiser_config, finer_config, run_here, tokenizer_config

from walt import tasks
from walt.parallel.mesh import abstract_mesh
from walt.planning.chips import CHIPS

ADVERSARIAL = {
    'discriminator': {'name': 'residual_3d', 'channels': 8, 'multipliers': (2, 4)},
    'losses': {'reconstruction': 5.0, 'adversarial': 0.1, 'r1': 1.0, 'lecam': 0.001},
}


@pytest.fixture(scope='module')
def program():
    return binary('bench')


def figures(result: dict, prefix: str = '') -> dict[str, float]:
    """All numbers in it, by path."""
    found = {}
    for name, value in result.items():
        if isinstance(value, dict):
            found |= figures(value, f'{prefix}{name}/')
        elif isinstance(value, (int, float)):
            found[prefix + name] = value
    return found


@pytest.mark.parametrize(
    ('config', 'phase'),
    [
        (tokenizer_config(), 'train'),
        (tokenizer_config(), 'encode'),
        (tokenizer_config(), 'decode'),
        pytest.param(tokenizer_config() | ADVERSARIAL, 'discriminate', marks=pytest.mark.slow),
        (tokenizer_config(), 'data'),
        pytest.param(denoiser_config(), 'train', marks=pytest.mark.slow),
        pytest.param(denoiser_config(), 'forward', marks=pytest.mark.slow),
        pytest.param(denoiser_config(), 'sample', marks=pytest.mark.slow),
        pytest.param(conditioned_config(), 'train', marks=pytest.mark.slow),
        pytest.param(conditioned_config(), 'sample', marks=pytest.mark.slow),
        (conditioned_config(), 'data'),
        pytest.param(finer_config(), 'sample', marks=pytest.mark.slow),
    ],
)
def test_every_phase_has_finite_positive_figures_and_the_keys_that_are_documented(config, phase, program):
    result = program.bench(config, phase, steps=3)
    assert json.loads(json.dumps(result)) == result
    documented = re.findall(r'^    ([a-z_]+(?:, [a-z_]+)*)  ', program.__doc__.split('prints one object:')[1], re.M)
    assert list(result) == [name for names in documented for name in names.split(', ')]
    numbers = figures(result)
    assert all(math.isfinite(value) and value > 0 for value in numbers.values()), numbers
    assert ('flops' in numbers) == ('memory/bytes' in numbers) == ('compile_seconds' in numbers) == (phase != 'data')
    seconds = result['seconds']
    assert seconds['least'] <= seconds['median'] <= seconds['most']
    of_rate = seconds['mean' if phase == 'data' else 'median']
    assert result['samples_per_second'] == pytest.approx(4 / of_rate)
    table = program.as_table(result)
    assert table.startswith(f'{result["task"]}: {phase}\n') and ('MFU' in table) == (phase != 'data')


@pytest.mark.parametrize(
    ('config', 'phase', 'choices'),
    [
        (tokenizer_config(), 'sample', r"tokenizer has no phase 'sample'.*\['data', 'decode', 'encode', 'train'\]"),
        (denoiser_config(), 'decode', r"denoiser has no phase 'decode'.*\['data', 'forward', 'sample', 'train'\]"),
    ],
)
def test_a_phase_that_a_configuration_does_not_have_is_refused_with_its_phases(config, phase, choices, program):
    with pytest.raises(ValueError, match=choices):
        program.bench(config, phase)


def test_steps_are_as_many_as_asked_for_and_every_one_runs_on_the_state_of_the_one_before(program, monkeypatch):
    states = []
    wait = program.jax.block_until_ready

    def watched(out):
        states.append(int(out[0].step))
        return wait(out)

    monkeypatch.setattr(program.jax, 'block_until_ready', watched)
    monkeypatch.setattr(program, 'step_flops', lambda *_: 1)
    result = program.bench(tokenizer_config(), 'train', steps=4)
    assert result['steps'] == 4
    assert states == list(range(1, len(states) + 1)) and len(states) > 4  # some before those that are timed


def test_flops_are_the_models_and_grow_with_the_batch_but_not_with_recomputation_or_its_parts(program):
    def count(config):
        return program.step_flops(config, tasks.task(config, abstract_mesh(), config['batch_size']), 'train')

    config = tokenizer_config()
    config['tokenizer']['blocks'] = (1, 0)
    recomputed = config | {'tokenizer': config['tokenizer'] | {'remat': 'blocks'}, 'accumulation': 2}
    assert count(config) == count(recomputed) == count(recomputed | {'batch_size': 8}) / 2


def test_with_its_tokenizer_a_denoiser_decodes_and_encodes_in_its_step(program):
    config, tokenizer = denoiser_config() | {'cache_latents': False}, tokenizer_config()
    result = program.bench(config, 'decode', 1, tokenizer)
    assert (result['task'], result['phase']) == ('denoiser', 'decode')
    assert result['flops'] == program.bench(tokenizer, 'decode', 1)['flops']


@pytest.mark.slow
def test_training_from_pixels_costs_what_encoding_them_does_beside_training(program):
    config, tokenizer = denoiser_config() | {'cache_latents': False}, tokenizer_config()
    with_it, without = (program.bench(config, 'train', 1, beside)['flops'] for beside in (tokenizer, None))
    assert with_it - without == program.bench(tokenizer, 'encode', 1)['flops']


def test_mfu_is_the_share_of_the_peak_and_null_where_no_peak_is_known(program, monkeypatch):
    assert program.bench(tokenizer_config(), 'decode', steps=1)['mfu'] is None
    monkeypatch.setattr(program, 'chip_of', {'cpu': CHIPS['v5p']}.get)
    result = program.bench(tokenizer_config(), 'decode', steps=1)
    assert result['mfu'] == pytest.approx(result['flops'] / result['seconds']['median'] / CHIPS['v5p'].peak_flops)


def test_the_program_prints_one_json_object(program, capsys):
    cached = program.jax.config.jax_enable_compilation_cache
    try:
        run_here('bench', '--config=configs/quickstart_tokenizer.py:smoke', '--phase=data', '--steps=2', '--json')
    finally:
        program.jax.config.update('jax_enable_compilation_cache', cached)
    result = json.loads(capsys.readouterr().out)
    assert (result['task'], result['phase'], result['steps'], result['batch_size']) == ('tokenizer', 'data', 2, 6)
