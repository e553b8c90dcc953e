"""Training under every condition, from another run, and what is refused at the door."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from tiny import Letters, binary, denoiser_config

from walt import build, restore
from walt.data.video_io import write_mp4
from walt.denoiser.aspect import change_aspect
from walt.denoiser.walt import Walt
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.tokenizer.pixels import shrink
from walt.training.conditions import latent_rows


@pytest.fixture(scope='module')
def program():
    return binary('train_denoiser')


def metrics(workdir, name) -> list[float]:
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def moved(state) -> dict:
    """The greatest mean gradient of each parameter, as Adam remembers it."""
    mean = optax.tree_utils.tree_get(state.opt_state, 'mu')
    return jax.tree.map(lambda leaf: float(np.abs(leaf).max()), mean)


def test_every_way_of_a_text_into_the_network_learns(conditioned):
    """Keys and values in both kinds of layers, and the mean."""
    for name in ('base', 'finer'):
        gradient = moved(conditioned.state[name])
        assert min(jax.tree.leaves([gradient['text'], gradient['pooled_text']])) > 0
        for layer in ('spatial', 'spatiotemporal'):
            parts = gradient['blocks'][layer]
            assert min(jax.tree.leaves([parts['text'], parts['text_norm']])) > 0


def test_given_frames_their_mask_and_low_resolution_learn(conditioned):
    """Channels beside z_t: estimate, frames, mask and, of the finer one, the low-resolution clip."""
    for name, channels in {'base': 10, 'finer': 13}.items():
        mean = optax.tree_utils.tree_get(conditioned.state[name].opt_state, 'mu')['patch']['kernel']
        assert mean.shape == (channels, 8) and (np.abs(mean).max(1) > 0).all()
    gradient = moved(conditioned.state['finer'])
    assert min(jax.tree.leaves([gradient['low'], gradient['low_time']])) > 0


def test_joint_training_tells_the_loss_of_pictures_and_of_clips(conditioned):
    workdir = conditioned.folder / 'base'
    losses = {name: metrics(workdir, f'train/{name}') for name in ('loss', 'loss_images', 'loss_clips')}
    assert len(losses['loss']) == 2
    # One stack for each clip: the loss is the mean of the two.
    halves = np.add(losses['loss_images'], losses['loss_clips']) / 2
    np.testing.assert_allclose(losses['loss'], halves, rtol=1e-5)
    assert np.abs(np.subtract(losses['loss_images'], losses['loss_clips'])).min() > 1e-3
    assert not metrics(conditioned.folder / 'finer', 'train/loss_images')


def test_the_null_text_is_kept_beside_the_parameters(conditioned, letters):
    (text_SE,), (mask_S,) = Letters().encode([''])
    for name in ('base', 'finer'):
        stage, _, step = restore.stage(str(conditioned.folder / name), make_mesh())
        for null in (stage.null_text, conditioned.state[name].measured):
            np.testing.assert_array_equal(null.text_SE, text_SE)
            np.testing.assert_array_equal(null.mask_S, mask_S)
        assert step == 4 and stage.most_given == 1
        jax.tree.map(np.testing.assert_array_equal, stage.params, conditioned.state[name].ema)


def test_low_resolution_pictures_are_encoded_one_by_one_beside_clips(small_tokenizer, rng):
    frozen = FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, LatentNorm.identity(3))
    encode = jax.jit(frozen.encode)
    denoiser = Walt(latent_shape=(2, 4, 4, 3), upsample=2, images=True, heads=2, spatiotemporal_window=(2, 2))
    video, images = (rng.integers(256, size=(2, *shape, 16, 16, 3), dtype=np.uint8) for shape in ((5,), (1, 2)))
    rows = jax.jit(lambda batch: latent_rows(frozen, batch, denoiser))({'video': video, 'images': images})
    assert rows['image'].tolist() == [False, True, False, True] and rows['low'].shape == (4, 2, 2, 2, 3)
    for row, frame in np.ndindex(2, 2):
        alone = encode(shrink(images[row, :, frame][None], 2))[0, 0]
        np.testing.assert_allclose(rows['low'][2 * row + 1, frame], alone, atol=3e-3)  # a grey level of rounding
        assert np.abs(rows['low'][2 * row + 1, 1 - frame] - alone).max() > 3e-2
    np.testing.assert_allclose(rows['low'][::2], encode(shrink(video, 2)), atol=3e-3)


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """A configuration of 16x32 clips, of folders of ten classes; its denoiser does not learn."""
    root = tmp_path_factory.mktemp('wide')
    for label in range(10):
        (root / str(label)).mkdir()
        write_mp4(root / str(label) / 'a.mp4', np.full((12, 16, 32, 3), 20 * label, np.uint8))
    config = denoiser_config() | {'cache_latents': False, 'steps': 2}
    config['data'] = dict(name='video_folder', root=str(root), frames=5, size=(16, 32), validation_fraction=0.5)
    config['denoiser'] |= {'latent_shape': (2, 4, 8, 3), 'spatiotemporal_window': (2, 4)}
    config['optimizer'] |= {'learning_rate': 0.0}
    return config


@pytest.mark.slow
def test_a_run_starts_from_another_of_another_aspect_and_goes_on_from_itself(program, trained, wide, tmp_path):
    """Without learning it stays what it started from. When it goes on, the other run may be gone."""
    borrowed = shutil.copytree(trained.folder / 'denoiser', tmp_path / 'borrowed')
    tokenizer = {'tokenizer_dir': str(trained.folder / 'tokenizer')}
    config = wide | tokenizer | {'start': {'denoiser_dir': str(borrowed)}}
    state = program.train(config, str(tmp_path / 'new'))
    modules = [build.denoiser(c['denoiser'], 'float32') for c in (trained.configs['denoiser'], wide)]
    expected = change_aspect(trained.state['denoiser'].ema, *modules)
    for params in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert state.params['position']['space'].shape == (4, 8, 8)

    shutil.rmtree(borrowed)
    with pytest.raises(FileNotFoundError, match='borrowed'):
        program.train(config, str(tmp_path / 'another'))
    state = program.train(config | {'steps': 3}, str(tmp_path / 'new'))
    assert state.step == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'start': {'denoiser': ''}}, r"start has the key 'denoiser_dir', not \['denoiser'\]"),
        ({'denoiser': {'width': 16}}, r'does not fit: width: 8 there, 16 here'),
        ({'denoiser': {'frame_prediction': True}}, r'given_frames go up to 2, and a clip has 2 latent frames'),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_anything_is_written(changes, message, program, trained, wide, tmp_path):
    config = wide | {'tokenizer_dir': str(trained.folder / 'tokenizer')}
    config |= {'start': {'denoiser_dir': str(trained.folder / 'denoiser')}}
    config |= changes | {'denoiser': wide['denoiser'] | changes.get('denoiser', {})}
    with pytest.raises(ValueError, match=message):
        program.train(config, str(tmp_path / 'new'))
    assert not (tmp_path / 'new').exists()
