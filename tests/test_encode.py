"""The program that encodes, and training from what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import binary

from configs import quickstart_denoiser
from walt.data.encoded import Encoded

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def latents(trained, tmp_path_factory):
    """The folder of both splits of the tiny data, in shards of five."""
    out = tmp_path_factory.mktemp('latents')
    for split in ('train', 'validation'):
        tokenizer = trained.folder / 'tokenizer'
        binary('encode').encode(trained.configs['denoiser'], str(tokenizer), str(out), split, shard_size=5)
    return out


@pytest.fixture(scope='module')
def from_disk(trained, latents, tmp_path_factory):
    """A denoiser's workdir, trained on these latents."""
    workdir = tmp_path_factory.mktemp('from_disk')
    trained.train['denoiser'](workdir, **settings(trained, latents))
    return workdir


def settings(trained, latents):
    return {
        'data': {'name': 'encoded', 'root': str(latents)},
        'tokenizer_dir': str(trained.folder / 'tokenizer'),
        'cache_latents': False,
    }


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [row['train/loss'] for row in rows if 'train/loss' in row]


def test_training_from_encoded_latents_has_the_losses_of_training_that_encodes(trained, from_disk):
    assert len(losses(from_disk)) == 2
    np.testing.assert_allclose(losses(from_disk), losses(trained.folder / 'denoiser'), rtol=1e-5)


def test_the_manifest_names_the_tokenizers_checkpoint_and_the_data(trained, latents):
    for split in ('train', 'validation'):
        manifest = Encoded(latents, split).manifest
        assert manifest['tokenizer']['checkpoint'] == f'{trained.folder}/tokenizer/checkpoints/4'
        assert manifest['tokenizer']['step'] == 4
        assert manifest['data'] == json.loads(json.dumps(trained.configs['denoiser']['data']))
        assert [shard['clips'] for shard in manifest['shards']] == [5, 5, 5, 1]


def test_training_on_latents_of_another_tokenizer_is_refused(trained, latents, tmp_path):
    config = trained.configs['tokenizer'] | {'seed': 9, 'steps': 2}
    other = tmp_path / 'other'
    binary('train_tokenizer').train(config, str(other))
    with pytest.raises(
        ValueError, match=r'holds latents of the tokenizer \w{64} .*, the tokenizer of this run is \w{64}'
    ):
        trained.train['denoiser'](tmp_path / 'new', **settings(trained, latents) | {'tokenizer_dir': str(other)})
    assert not (tmp_path / 'new').exists()


def test_latents_are_not_encoded_again(trained, latents):
    config = trained.configs['denoiser'] | {'data': {'name': 'encoded', 'root': str(latents)}}
    with pytest.raises(ValueError, match='the data are latents already'):
        binary('encode').encode(config, str(trained.folder / 'tokenizer'), str(latents), 'train')


def test_the_command_writes_the_bytes_of_the_function(trained, tmp_path):
    config = quickstart_denoiser.get_config('smoke').to_dict() | {'batch_size': 4}
    sizes = {key: value for key, value in trained.configs['denoiser']['data'].items() if key != 'name'}
    config['data'] = config['data'] | sizes
    binary('encode').encode(config, f'{trained.folder}/tokenizer', f'{tmp_path}/function', 'train', shard_size=5)
    command = [f'--config={ROOT}/configs/quickstart_denoiser.py:smoke', '--config.batch_size=4', '--shard_size=5']
    command += [f'--config.data.{key}={value}' for key, value in sizes.items()]
    done = subprocess.run(
        [sys.executable, '-m', 'walt.encode', *command, f'--tokenizer_dir={trained.folder}/tokenizer', '--out=command'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written, twin = (
        {path.name: path.read_bytes() for path in (tmp_path / name / 'train').iterdir()}
        for name in ('command', 'function')
    )
    assert len(written) == 5 and written == twin
