"""Training a tokenizer with every part: it resumes exactly, starts from another run, and tells how it does."""

import contextlib
import io
import itertools
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import DATA, binary, tokenizer_config

from walt import build, restore
from walt.evaluation.clips import read_clips
from walt.evaluation.reconstruction import measure_tokenizer
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import LatentNorm
from walt.tokenizer.pixels import check_brightness, check_unit, from_uint8


def full_config(**changes) -> dict:
    """All terms, a feature network, a discriminator and a code book; four steps, saved at 2 and 4."""
    config = tokenizer_config() | {'seed': 3, 'latent_norm_batches': 2, 'validation_batches': 2}
    config['data'] = DATA | {'size': 24}
    config['losses'] = dict(reconstruction=5.0, perceptual=0.1, adversarial=0.1, r1=1.0, lecam=0.01)
    config['losses'] |= dict(codebook=1.0, commitment=0.25, coverage=0.25, scale_equivariance=0.25)
    config['tokenizer']['bottleneck'] = dict(name='vq', codes=16)
    config['perceptual'] = dict(name='squeezenet')
    config['discriminator'] = dict(name='residual_3d', channels=4, multipliers=(1,))
    return config | changes


@pytest.fixture(scope='module')
def train():
    program = binary('train_tokenizer')
    return lambda config, workdir: program.train(config, str(workdir))


@pytest.fixture(scope='module')
def full(train, tmp_path_factory):
    """(workdir, last state, what was printed) of a run with every part."""
    workdir, printed = tmp_path_factory.mktemp('full'), io.StringIO()
    with contextlib.redirect_stdout(printed):
        state = train(full_config(), workdir)
    return workdir, state, printed.getvalue()


@pytest.fixture(scope='module')
def images(train, tmp_path_factory):
    """`workdir`, `state`, `config` of an image tokenizer as wide as `tokenizer_config`; its average has no memory."""
    workdir, config = tmp_path_factory.mktemp('images'), tokenizer_config() | {'ema_decay': 0.0}
    config['data'] = DATA | {'frames': 1}
    config['tokenizer'] |= {'kernel_t': 1, 'temporal_strides': (1,)}
    return SimpleNamespace(workdir=workdir, state=train(config, workdir), config=config)


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_a_run_with_a_discriminator_resumes_exactly(full, train, tmp_path):
    """From step 2, as if it had never stopped: tokenizer, discriminator, both optimizers, averages of logits."""
    workdir, state, _ = full
    half = shutil.copytree(workdir, tmp_path / 'half')
    shutil.rmtree(half / 'checkpoints' / '4')
    resumed = train(full_config(), half)
    assert resumed.step == 4
    assert_same(resumed, state)


def test_the_run_tells_of_every_term_and_of_held_out_clips(full):
    rows = [json.loads(line) for line in (full[0] / 'metrics.jsonl').read_text().splitlines()]
    train = next(row for row in rows if 'train/loss' in row)
    terms = {*full_config()['losses'], 'discriminator', 'logit_real', 'logit_fake', 'code_use', 'perplexity'}
    terms |= {'gradient_norm', 'gradient_norm_discriminator', 'latent_std', 'input_min', 'input_max'}
    assert terms <= {name.removeprefix('train/') for name in train}
    held_out = next(row for row in rows if 'validation/psnr' in row)
    expected = {'perceptual', 'code_use', 'perplexity', 'latent_mean/2', 'latent_std/2'}
    assert expected <= {name.removeprefix('validation/') for name in held_out}
    (events,) = (full[0] / 'tensorboard').iterdir()
    record = events.read_bytes()
    assert b'validation/reconstructions' in record and b'\x89PNG' in record


def test_the_averaged_parameters_are_what_is_validated_and_whose_latents_are_measured(full):
    """On as many batches as the configuration says, in the order of its seed."""
    workdir, state, _ = full
    program, config = binary('train_tokenizer'), full_config()
    module = program.build.tokenizer_objective(config).tokenizer

    def clips(split):
        source = program.build.source(config['data'], split)
        return [
            batch['video'] for batch in itertools.islice(program.process_batches(source, make_mesh(), 4, seed=3), 2)
        ]

    validate = program.make_tokenizer_validation(module)
    averaged, last = (validate(params, None, clips('validation')) for params in (state.ema, state.params))
    logged = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    logged = next(row for row in reversed(logged) if 'validation/psnr' in row)
    for name in ('psnr', 'latent_mean/0', 'latent_std/1'):
        np.testing.assert_allclose(logged[f'validation/{name}'], averaged[name], rtol=1e-4, err_msg=name)
    assert abs(last['psnr'] - averaged['psnr']) > 1e-3 * averaged['psnr']
    encode = jax.jit(lambda video: module.apply({'params': state.ema}, from_uint8(video), method='encode'))
    norm = LatentNorm.measure(encode(video) for video in clips('train'))
    np.testing.assert_allclose(state.measured.mean_C, norm.mean_C, atol=1e-5)
    np.testing.assert_allclose(state.measured.std_C, norm.std_C, atol=1e-5)


def test_the_decay_of_the_average_is_the_configurations(images, full):
    state, slow = images.state, full[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, state.params)
    kernels = [tree['encoder']['stem']['kernel'] for tree in (slow.ema, slow.params)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_another_seed_is_another_network(train, tmp_path, monkeypatch):
    """By what training starts with."""
    program = binary('train_tokenizer')
    monkeypatch.setattr(program, 'fit', lambda step, state, *_, **options: state)
    start = [
        train(tokenizer_config() | {'seed': seed}, tmp_path / f'{number}') for number, seed in enumerate((0, 0, 1))
    ]
    kernels = [state.params['encoder']['stem']['kernel'] for state in start]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-2
    assert_same(start[0].ema, start[0].params)


def test_held_out_clips_are_measured_in_a_feature_network_and_by_their_codes(full):
    frozen, config, _ = restore.tokenizer(str(full[0]), make_mesh())
    clips, *_ = read_clips(build.source(config['data'], 'validation'), 7)
    distance = build.perceptual({'name': 'squeezenet'}, 'float32')
    measured, at_once = (measure_tokenizer(frozen, clips, size, [distance]) for size in (3, 7))
    assert set(measured) == {'psnr_db', 'ssim', 'perceptual_squeezenet', 'code_use', 'perplexity'}
    for name, value in at_once.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-2, err_msg=name)
    fake = jax.jit(lambda frozen, clips: frozen.decode(frozen.encode(clips)))(frozen, clips)
    frames = [np.float32(x).reshape(-1, 24, 24, 3) / 255 for x in (fake, clips)]
    np.testing.assert_allclose(measured['perceptual_squeezenet'], distance(*frames).mean(), rtol=1e-2)


def test_what_is_on_and_off_is_said():
    program = binary('train_tokenizer')
    for config, said in [(tokenizer_config(), ('off', 'off')), (full_config(), ('squeezenet', 'residual_3d'))]:
        text = program.describe(program.build.tokenizer_objective(config), config)
        assert f'perceptual loss: {said[0]}\n' in text and f'adversarial loss: {said[1]}\n' in text
        assert 'weights: reconstruction 5' in text


def test_a_run_prints_what_is_on_and_off(full):
    assert 'perceptual loss: squeezenet\n' in full[2] and 'adversarial loss: residual_3d\n' in full[2]


def test_a_second_stage_trains_the_decoder_of_another_run(full, train, tmp_path):
    """And, once it has begun, goes on without that run. On other data latents are normalised as they were."""
    state = full[1]
    first = shutil.copytree(full[0], tmp_path / 'first')
    config = full_config(start=dict(tokenizer_dir=str(first), freeze_encoder=True))
    config |= {'perceptual': {'name': 'none'}, 'discriminator': {'name': 'none'}}
    config['losses'] = dict(reconstruction=5.0, codebook=1.0, commitment=0.25, coverage=0.25)
    config['data'] = config['data'] | {'seed': 1}
    after = train(config, tmp_path / 'second')
    assert_same(after.measured, state.measured)
    shutil.rmtree(first)
    assert_same(train(config, tmp_path / 'second'), after)
    for part in ('encoder', 'bottleneck'):
        assert_same(after.params[part], state.ema[part])
        assert_same(after.ema[part], state.ema[part])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params['decoder'], state.ema['decoder'])
    assert min(jax.tree.leaves(moved)) > 0


def test_a_video_tokenizer_starts_from_one_of_images(images, train, tmp_path):
    """Before its first step it does on single frames what the image tokenizer does."""
    program = binary('train_tokenizer')
    config = tokenizer_config()
    objective = program.build.tokenizer_objective(config)
    mesh = program.make_mesh()
    frozen, _, _ = program.restore.tokenizer(str(images.workdir), mesh)
    state, _ = program.create_tokenizer_state(
        objective, program.build.optimizer(config['optimizer'], 4), mesh, jax.random.key(0), (5, 16, 16, 3)
    )
    params, norm = program.restore.starting_tokenizer(str(images.workdir), objective.tokenizer, state.params, mesh)
    assert norm is None
    frame = np.random.default_rng(0).uniform(size=(1, 1, 16, 16, 3)).astype(np.float32)
    before, now = (
        jax.jit(lambda params, module=module: module.apply({'params': params}, frame)[0])(params)
        for module, params in ((frozen.module, frozen.params), (objective.tokenizer, params))
    )
    np.testing.assert_allclose(now, before, atol=1e-5)
    config['start'] = dict(tokenizer_dir=str(images.workdir), freeze_encoder=False)
    assert train(config, tmp_path).step == 4


def test_a_start_from_another_bottleneck_is_refused_with_both(full, train, tmp_path):
    config = tokenizer_config()
    config['start'] = dict(tokenizer_dir=str(full[0]), freeze_encoder=False)
    with pytest.raises(ValueError, match=r'(?s)bottleneck: Vq\(.*there, Continuous\(.*here'):
        train(config, tmp_path)
    assert not (tmp_path / 'config.json').exists()


def test_a_frozen_encoder_without_a_start_is_refused(train, tmp_path):
    config = full_config(start=dict(tokenizer_dir='', freeze_encoder=True))
    with pytest.raises(ValueError, match=r'start\.freeze_encoder is on, but start\.tokenizer_dir is empty'):
        train(config, tmp_path)


def test_another_bottleneck_or_discriminator_on_resume_is_refused_with_both(full, train):
    config = full_config()
    config['tokenizer']['bottleneck'] = dict(name='vq', codes=32)
    with pytest.raises(ValueError, match=r'tokenizer.bottleneck.codes: 16 there, 32 now'):
        train(config, full[0])
    config = full_config(discriminator=dict(name='residual_3d', channels=8, multipliers=(1,)))
    with pytest.raises(ValueError, match=r'discriminator.channels: 4 there, 8 now'):
        train(config, full[0])


def test_a_checkpoint_without_a_discriminator_is_refused_with_both(images, train, tmp_path):
    """Also if nothing tells which configuration wrote it."""
    workdir = shutil.copytree(images.workdir, tmp_path / 'copy')
    (workdir / 'config.json').unlink()
    config = images.config | {'discriminator': dict(name='residual_3d', channels=4, multipliers=(1,))}
    config['losses'] = dict(reconstruction=5.0, adversarial=0.1, r1=1.0, lecam=0.01)
    with pytest.raises(ValueError, match=r'4 in .* has no discriminator, the configuration has a discriminator'):
        train(config, workdir)


def test_data_of_nothing_but_black_are_refused_before_anything_is_written(train, tmp_path):
    """Most likely pixels in 0..1 that lost their fractions."""
    for number in range(40):
        (tmp_path / 'pictures').mkdir(exist_ok=True)
        Image.new('RGB', (16, 16), (1, 0, 1)).save(tmp_path / 'pictures' / f'{number}.png')
    data = dict(name='image_folder', root=str(tmp_path / 'pictures'), size=16)
    with pytest.raises(ValueError, match=r'0\.\.255, got one in 0\.\.1'):
        train(tokenizer_config() | {'data': data}, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_pixels_in_another_range_are_refused_with_both_ranges():
    video = np.zeros((1, 2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r'0\.\.255, got one in 0\.\.1'):
        check_brightness(video + (np.arange(4) % 2).astype(np.uint8)[:, None])
    check_brightness(video + 2)
    with pytest.raises(ValueError, match=r'pixels in 0\.\.1, got -1\.\.1'):
        check_unit(np.linspace(-1, 1, 10))
    with pytest.raises(ValueError, match=r'pixels in 0\.\.1, got 0\.\.255'):
        check_unit(np.array([0.0, 255.0]))
    with pytest.raises(ValueError, match='got nan'):
        check_unit(np.array([0.0, np.nan]))
    check_unit(np.array([0.0, 1.0]))
