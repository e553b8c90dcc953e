"""Weights of others become runs that sample, and runs become weights of others; errors come before anything is made."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import DATA, binary, conditioned_config, denoiser_config, run_here, tokenizer_config

from configs import tokenizer_sd

sys.path.insert(0, str(Path(__file__).parent / 'interop'))
import foreign
from test_dit_weights import published

SHAPE = {'channels': 32, 'multipliers': (1, 2), 'blocks': 1, 'groups': 8}


def sd_config() -> dict:
    config = tokenizer_sd.get_config('smoke').to_dict() | {'data': DATA | {'frames': 1}}
    config |= {'perceptual': {'name': 'none'}, 'losses': {'reconstruction': 4.0, 'kl': 1e-6}}
    config['tokenizer'] |= SHAPE
    return config


def dit_config(tokenizer_dir='') -> dict:
    config = denoiser_config() | {'tokenizer_dir': str(tokenizer_dir)}
    config['denoiser'] = dict(name='dit', latent_shape=(1, 8, 8, 4), classes=10, width=32, depth=2, heads=2, patch=2)
    config['schedule'] = dict(name='discrete_linear', steps=1000, zero_terminal_snr=False)
    config['loss'] = dict(parametrisation='eps', self_conditioning=0.0, vlb_weight=0.001)
    config['sampler'] = dict(name='ancestral', steps=2, guidance=1.5)
    return config


@pytest.fixture(scope='module')
def program():
    return binary('import_weights')


@pytest.fixture(scope='module')
def export():
    return binary('export_weights').export_weights


@pytest.fixture(scope='module')
def autoencoder():
    return foreign.weights(foreign.shapes('autoencoder_kl'))


@pytest.fixture(scope='module')
def dit():
    return published(foreign.dit_weights(foreign.shapes('dit')), foreign.golden('dit')['positions'])


@pytest.fixture(scope='module')
def runs(program, autoencoder, dit, write_torch, tmp_path_factory):
    """A folder with `sd` and `dit`, imported from a safetensors file and one of PyTorch."""
    folder = tmp_path_factory.mktemp('imported')
    save_file(autoencoder, folder / 'sd.safetensors')
    weights = write_torch(folder / 'dit.pt', dit)
    sd = program.import_weights(sd_config(), 'autoencoder_kl', str(folder / 'sd.safetensors'), str(folder / 'sd'))
    made = program.import_weights(dit_config(folder / 'sd'), 'dit', str(weights), str(folder / 'dit'))
    sizes = [sum(array.size for array in arrays.values()) for arrays in (autoencoder, dit)]
    assert [sd, made + dit['pos_embed'].size] == sizes
    return folder


@pytest.fixture(scope='module')
def weights(runs):
    return str(runs / 'dit.pt')


def test_an_imported_run_makes_pictures(runs, tmp_path):
    moved = shutil.copytree(runs / 'dit', tmp_path / 'dit')  # the tokenizer is in it
    run_here('sample', f'--workdir={moved}', '--labels=3,7', '--batch_size=2')
    record = json.loads((moved / 'samples' / 'samples.json').read_text())
    assert record['labels'] == [3, 7] and record['step'] == [0]
    assert record['files'] == ['0000_label3.png', '0001_label7.png']
    pictures = [np.asarray(Image.open(moved / 'samples' / name)) for name in record['files']]
    assert pictures[0].shape == (16, 16, 3) and (pictures[0] != pictures[1]).any()


def test_latents_are_scaled_as_stable_diffusions(program, runs, tmp_path):
    frozen, _, _ = program.restore.tokenizer(str(runs / 'dit' / 'tokenizer'), program.make_mesh())
    np.testing.assert_allclose(1 / frozen.norm.std_C, np.full(4, 0.18215), rtol=1e-6)
    np.testing.assert_array_equal(frozen.norm.mean_C, np.zeros(4))
    other = (sd_config(), 'autoencoder_kl', str(runs / 'sd.safetensors'), str(tmp_path / 'xl'))
    program.import_weights(*other, latent_scale=0.13025)
    frozen, _, _ = program.restore.tokenizer(str(tmp_path / 'xl'), program.make_mesh())
    np.testing.assert_allclose(1 / frozen.norm.std_C, np.full(4, 0.13025), rtol=1e-6)


def test_where_the_weights_are_from_is_kept(runs, weights, program):
    origin = json.loads((runs / 'dit' / 'imported.json').read_text())
    assert origin == {'format': 'dit', 'weights': weights, 'sha256': program.sha256(weights), 'allow_missing': []}
    assert json.loads((runs / 'dit' / 'config.json').read_text())['denoiser']['name'] == 'dit'


@pytest.mark.parametrize('names', ['dit', 'dit_diffusers'])
def test_what_is_exported_is_what_was_imported(names, runs, dit, export, program, tmp_path):
    """And imported once more it is the same run."""
    export(str(runs / 'dit'), str(tmp_path / 'dit.safetensors'), names)
    arrays = load_file(tmp_path / 'dit.safetensors')
    expected = {'dit': dit, 'dit_diffusers': foreign.dit_weights(foreign.shapes('dit'))}[names]
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=0, atol=1e-6 if name == 'pos_embed' else 0)
    with safe_open(tmp_path / 'dit.safetensors', 'numpy') as file:
        about = file.metadata()
    assert about['names'] == names and about['step'] == '0' and about['format'] == 'pt'
    assert json.loads(about['config'])['denoiser']['name'] == 'dit'
    again = tmp_path / 'again'
    program.import_weights(dit_config(runs / 'sd'), names, str(tmp_path / 'dit.safetensors'), str(again))
    assert_same(program, runs / 'dit', again)


def assert_same(program, one, other):
    first, second = (program.restore.denoiser(str(workdir), program.make_mesh())[0] for workdir in (one, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_autoencoder_is_exported_as_it_was_with_its_norm_in_the_header(runs, autoencoder, export, tmp_path):
    out = tmp_path / 'sd.safetensors'
    export(str(runs / 'sd'), str(out), 'autoencoder_kl')
    arrays = load_file(out)
    assert set(arrays) == set(autoencoder)
    for name, array in autoencoder.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    with safe_open(out, 'numpy') as file:
        np.testing.assert_allclose(json.loads(file.metadata()['latent_std']), 1 / 0.18215, rtol=1e-6)


@pytest.fixture(scope='module')
def ours(program, tmp_path_factory):
    """A run of a tokenizer and one of a W.A.L.T denoiser of all conditions, never trained: (workdir, configuration)."""
    folder, rng = tmp_path_factory.mktemp('ours'), np.random.default_rng(0)
    configs = {'tokenizer': tokenizer_config(), 'denoiser': conditioned_config()}
    configs['denoiser']['tokenizer_dir'] = str(folder / 'tokenizer')
    for part, config in configs.items():
        _, init, measured = program._network(config, part)
        shapes = {'params': program.abstract_params(init, program.make_mesh()), 'measured': measured}
        trained = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
        program.save_ema(folder / part, trained, config, step=5)
    return {part: (folder / part, config) for part, config in configs.items()}


@pytest.mark.parametrize('part', ['tokenizer', 'denoiser'])
def test_runs_of_ours_go_out_and_come_in_under_their_own_names(part, ours, export, program, tmp_path):
    """With what was measured: a tokenizer's latent norm, a denoiser's null text."""
    (workdir, config), out = ours[part], tmp_path / 'ours.safetensors'
    arrays = export(str(workdir), str(out))
    names = {
        'tokenizer': {'params.decoder.head.bias', 'measured.mean_C', 'measured.std_C'},
        'denoiser': {'params.blocks.spatial.attention.qkv.kernel', 'measured.text_SE', 'measured.mask_S'},
    }
    assert names[part] < set(arrays) and all(name.split('.')[0] in ('params', 'measured') for name in arrays)
    program.import_weights(config, 'walt', str(out), str(tmp_path / 'again'))
    if part == 'denoiser':
        assert_same(program, workdir, tmp_path / 'again')
    else:
        found = [program.restore.tokenizer(str(path), program.make_mesh())[0] for path in (workdir, tmp_path / 'again')]
        jax.tree.map(np.testing.assert_array_equal, *found)

    read, measured = load_file(out), min(name for name in names[part] if 'measured' in name)
    for lacking, options, message in [
        (min(name for name in names[part] if 'params' in name), {}, 'missing: {}'),
        (measured, {'allow_missing': ['measured.*']}, r"lacks \['{}'\], which nothing can stand for"),
    ]:
        save_file({name: array for name, array in read.items() if name != lacking}, out)
        with pytest.raises(ValueError, match=message.format(lacking)):
            program.import_weights(config, 'walt', str(out), str(tmp_path / 'none'), **options)
    assert not (tmp_path / 'none').exists()


def test_parameters_that_may_be_missing_start_as_those_of_a_new_run(runs, dit, program, tmp_path):
    lacking = {name: array for name, array in dit.items() if not name.startswith('y_embedder')}
    save_file(lacking, tmp_path / 'dit.safetensors')
    arguments = (dit_config(runs / 'sd'), 'dit', str(tmp_path / 'dit.safetensors'), str(tmp_path / 'run'))
    with pytest.raises(ValueError, match=r'missing: y_embedder\.embedding_table\.weight \(11, 32\)'):
        program.import_weights(*arguments)
    program.import_weights(*arguments, allow_missing=['y_embedder.*'])
    params = program.restore.denoiser(str(tmp_path / 'run'), program.make_mesh())[0]['params']
    table = np.asarray(params['label']['table'])
    assert 0.015 < table.std() < 0.025  # 0.02 is what a new table has
    assert json.loads((tmp_path / 'run' / 'imported.json').read_text())['allow_missing'] == ['y_embedder.*']


def test_what_does_not_go_together_is_refused_and_nothing_is_made(runs, weights, program, tmp_path):
    target, whole = tmp_path / 'run', dit_config(runs / 'sd')
    causal = tokenizer_config()
    narrow = dit_config(runs / 'sd')
    narrow['denoiser']['latent_shape'] = (1, 8, 8, 3)
    cases = [
        (
            sd_config(),
            'dit',
            weights,
            {},
            r"of a denoiser 'dit', the configuration of \{'tokenizer': 'autoencoder_kl'\}",
        ),
        (
            causal,
            'autoencoder_kl',
            weights,
            {},
            r"'autoencoder_kl', the configuration of \{'tokenizer': 'causal_cnn'\}",
        ),
        (whole, 'dit', weights, {'latent_scale': 0.5}, 'latent_scale 0.5 is of autoencoder_kl, the weights are dit'),
        (dit_config(), 'dit', weights, {}, 'config.tokenizer_dir is empty'),
        (narrow, 'dit', weights, {}, r'latents of 4 channels, the denoiser takes latents of \(1, 8, 8, 3\)'),
        (whole, 'dit', 'weights.onnx', {}, r"ends in '\.onnx'; weights are read from .*'\.pt'"),
        (whole, 'dit_diffusers', weights, {}, r'(?s)missing: pos_embed\.proj\.weight .*not expected: pos_embed '),
    ]
    for config, names, file, options, message in cases:
        with pytest.raises(ValueError, match=message):
            program.import_weights(config, names, file, str(target), **options)
        assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_there_is_left_alone(runs, weights, program):
    before = sorted(runs.rglob('*'))
    with pytest.raises(FileExistsError, match='is there already'):
        program.import_weights(dit_config(runs / 'sd'), 'dit', weights, str(runs / 'sd'))
    assert sorted(runs.rglob('*')) == before


def test_an_import_that_is_cut_leaves_no_run_and_the_next_one_makes_it(runs, weights, program, tmp_path, monkeypatch):
    arguments = (dit_config(runs / 'sd'), 'dit', weights, str(tmp_path / 'run'))
    with monkeypatch.context() as patch:
        patch.setattr(program, 'sha256', lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            program.import_weights(*arguments)
    assert not (tmp_path / 'run').exists()
    program.import_weights(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ['run']
    assert_same(program, runs / 'dit', tmp_path / 'run')


def test_names_of_another_network_and_other_files_are_not_exported(runs, export, tmp_path):
    with pytest.raises(
        ValueError, match=r"of a denoiser 'dit', the configuration of \{'tokenizer': 'autoencoder_kl'\}"
    ):
        export(str(runs / 'sd'), str(tmp_path / 'sd.safetensors'), 'dit')
    with pytest.raises(ValueError, match=r"ends in '\.pt'; weights are written as \.safetensors"):
        export(str(runs / 'sd'), str(tmp_path / 'sd.pt'))
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_starts_from_one_of_its_own_kind(runs, program):
    mesh, path = program.make_mesh(), str(runs / 'sd')
    frozen, _, _ = program.restore.tokenizer(path, mesh)
    params, norm = program.restore.starting_tokenizer(path, frozen.module, frozen.params, mesh)
    jax.tree.map(np.testing.assert_array_equal, (params, norm), (frozen.params, frozen.norm))
    causal = program.build.tokenizer(tokenizer_config()['tokenizer'], 'float32')
    with pytest.raises(ValueError, match='it is a AutoencoderKl, that of this run a Tokenizer'):
        program.restore.starting_tokenizer(path, causal, frozen.params, mesh)


@pytest.mark.slow
def test_an_imported_autoencoder_trains_on_with_its_encoder_frozen(runs, program, tmp_path):
    train = binary('train_tokenizer').train
    config = sd_config() | {'start': {'tokenizer_dir': str(runs / 'sd'), 'freeze_encoder': True}}
    state = train(config, str(tmp_path / 'mine'))
    frozen, _, _ = program.restore.tokenizer(str(runs / 'sd'), program.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, state.params['encoder'], frozen.params['encoder'])
    jax.tree.map(np.testing.assert_array_equal, state.measured, frozen.norm)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params['decoder'], frozen.params['decoder'])
    assert max(jax.tree.leaves(moved)) > 0
