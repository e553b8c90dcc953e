"""Configurations become objects, or errors that list the choices."""

import importlib
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny import binary

from walt import build
from walt.batches import latent_batch, packed_batch
from walt.data.moving_digits import MovingDigits
from walt.data.video_io import write_mp4
from walt.denoiser.conditions import text_shape
from walt.denoiser.walt import Walt
from walt.dense_or_packed import stage_of, way_of
from walt.diffusion.guidance import Interval, PowerCosine
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import ContinuousLinear, Cosine, DiscreteLinear, RectifiedFlow
from walt.diffusion.steppers import Ddim, DpmSolverPlusPlus2M, Heun, LearnedAncestral
from walt.parallel.mesh import make_mesh
from walt.tokenizer.autoencoder import Tokenizer
from walt.training.classifier_step import make_classifier_step
from walt.training.state import create
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step

FILES = Path(__file__).parents[1].glob('configs/*.py')
CONFIGS = sorted(path.stem for path in FILES if path.stem not in ('__init__', 'common'))


def get_config(name: str, mode: str = '') -> ConfigDict:
    return importlib.import_module(f'configs.{name}').get_config(mode)


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    """A folder with two videos and one with pictures, for configurations whose data the user brings."""
    videos, images = tmp_path_factory.mktemp('videos'), tmp_path_factory.mktemp('images')
    for name in 'ab':
        write_mp4(videos / f'{name}.mp4', np.zeros((400, 16, 16, 3), np.uint8))
    for number in range(1000):
        Image.new('RGB', (16, 16)).save(images / f'{number}.png')
    for folder in (videos, images):
        captions = {path.name: f'this is {path.stem}' for path in folder.iterdir()}
        (folder / 'captions.json').write_text(json.dumps(captions))
    return {'video_folder': str(videos)} | dict.fromkeys(('image_folder', 'whole_images'), str(images))


def with_roots(section: dict, roots: dict) -> dict:
    """A section `data` that reads those folders."""
    section = {key: with_roots(value, roots) if isinstance(value, dict) else value for key, value in section.items()}
    return section | {key: roots[section['name']] for key in ('root', 'validation_root') if key in section}


# In millions, of tokenizer and discriminator.
PARAMETERS = {
    'tokenizer_imagenet': (102.64, 36.46),  # no figure is published; the others are MAGVIT-v2's
    'tokenizer_ucf101': (370.4, 61.3),
    'tokenizer_k600': (370.4, 61.3),
    'tokenizer_t2v': (370.4, 61.3),
}

# In millions; those of text to video with an embedding of T5-XL (table 8 and section 5.3 of the paper).
DENOISERS = {
    'walt_ucf101_l': 313.2,
    'walt_ucf101_xl': 460.0,
    'walt_k600_l': 313.1,
    'walt_imagenet_l': 459.8,
    'walt_t2v_l_joint': 416.1,
    'walt_t2v_base': 3091.1,
    'walt_t2v_base_9x16': 3094.7,
    'walt_t2v_sr1': 1296.5,
    'walt_t2v_sr2': 418.7,
    'dit_imagenet_b4': 130.4,
    'dit_imagenet_xl2': 674.8,
}


def millions(tree) -> float:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6


# Of these, the smoke mode takes the step of another one's.
ALIKE = {'tokenizer_imagenet', 'tokenizer_k600', 'tokenizer_ucf101', 'walt_k600_l', 'walt_ucf101_xl'}
ALIKE |= {'walt_t2v_base', 'walt_t2v_base_9x16', 'walt_t2v_sr2', 'dit_imagenet_b4'}
ALIKE |= {'tokenizer_real_clips', 'video_folder_tokenizer', 'video_folder_denoiser'}
ALIKE |= {name for name in CONFIGS if name.startswith(('digits_', 'emoji_'))}
MODES = [(name, '', []) for name in CONFIGS]
MODES += [(name, 'smoke', [pytest.mark.slow] if name in ALIKE else []) for name in CONFIGS]


@pytest.mark.parametrize(('name', 'mode'), [pytest.param(name, mode, marks=marks) for name, mode, marks in MODES])
def test_every_config_builds_its_objects_and_its_smoke_mode_takes_a_step_in_shapes(name, mode, roots):
    """At full size too; a parameter with a logical axis that no rule covers would be refused."""
    config = get_config(name, mode).to_dict()
    brought = "'root'" in str(config['data'])
    config['data'] = with_roots(config['data'], roots)
    source, held_out = (build.source(config['data'], split) for split in ('train', 'validation'))
    assert min(len(source), len(held_out)) >= (1 if brought else config['batch_size'])
    packed = config['data']['name'] == 'packed'
    video_shape = None if packed else source[0]['video'].shape
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    if 'tokenizer' in config:
        build.check_keys(config, build.TOKENIZER_KEYS)
        objective = build.tokenizer_objective(config)
        perceptual = build.perceptual(config['perceptual'], config['dtype'])
        batch = {'video': jax.ShapeDtypeStruct((config['batch_size'], *video_shape), jnp.uint8)}
        whole_step = make_tokenizer_step(objective, optimizer, config['ema_decay'])

        def new(key):
            return create_tokenizer_state(objective, optimizer, make_mesh(), key, video_shape)[0]

        def step(state, batch, key):
            return whole_step(state, perceptual, batch, key)
    elif 'classifier' in config:
        classifier = build.classifier(config)
        binary('train_classifier').check_fits(classifier, source)
        batch = packed_batch(classifier, source.length, source.most, config['batch_size'])
        read = np.stack([source[row]['tokens'] for row in range(config['batch_size'])])
        assert (batch['tokens'].shape, batch['tokens'].dtype) == (read.shape, read.dtype)
        whole_step = make_classifier_step(
            classifier, build.noising(config['noising']), optimizer, config['ema_decay'], config['accumulation']
        )

        def new(key):
            init = build.init_classifier(classifier)
            return create(init, optimizer, make_mesh(), key, ema_decay=config['ema_decay'])[0]

        def step(state, batch, key):
            return whole_step(state, None, batch, key)
    else:
        build.check_keys(config, build.DENOISER_KEYS)
        denoiser = build.denoiser(config['denoiser'], config['dtype'])
        assert brought or denoiser.classes in (0, source.num_classes)
        packed = config['denoiser']['name'] == 'packed'
        way = way_of(denoiser)
        schedule = build.schedule(config['schedule'])
        loss, conditioning = build.loss(config['loss'], schedule), build.conditioning(config['conditioning'], schedule)
        whole_step = way.make_step(denoiser, loss, optimizer, config['ema_decay'], conditioning)
        null_text = build.abstract_null_text(denoiser)
        if mode == 'smoke' and text_shape(denoiser):
            encoder = build.text_encoder(config['text'])
            assert (encoder.length, encoder.width) == text_shape(denoiser)
            assert 'caption' in way.keys(denoiser, source)

        def new(key):
            null = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), null_text)
            init = build.init_denoiser(denoiser)
            return create(init, optimizer, make_mesh(), key, null, ema_decay=config['ema_decay'])[0]

        def step(state, batch, key):
            return whole_step(state, None, batch, key)

        stage = stage_of(denoiser, None, None, schedule, loss, config['sampler'], make_mesh())
        batch = latent_batch(denoiser, config['batch_size'], config['data'].get('stacks', 1)) if not packed else None
        if packed:
            tokens = jax.ShapeDtypeStruct((config['batch_size'], *denoiser.latent_shape), jnp.float32)
            batch = stage.abstract_rows(config['batch_size']) | {'tokens': tokens}

        def sample(params):
            rows = stage.abstract_rows(2)
            if packed:
                return jax.eval_shape(stage.sample_latents, params, rows, key)
            return jax.eval_shape(stage.sample_latents, params, null_text, rows)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(new, key)
    assert len(jax.tree.leaves(state.params)) > 10
    if name in DENOISERS and not mode:
        np.testing.assert_allclose(millions(state.params), DENOISERS[name], rtol=0.003)
    if name in PARAMETERS and not mode:
        counts = millions(state.params), millions(state.adversary.params)
        np.testing.assert_allclose(counts, PARAMETERS[name], rtol=0.003)
    if 'denoiser' in config:
        assert sample(state.params).shape == (2, *denoiser.latent_shape)
    if mode == 'smoke' or 'denoiser' in config:
        after, metrics = jax.eval_shape(step, state, batch, key)
        assert metrics['loss'].shape == ()
        before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, after))
        assert after == before


@pytest.mark.parametrize('name', CONFIGS)
def test_an_unknown_mode_is_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=r"'quick'.*'smoke'"):
        get_config(name, 'quick')


@pytest.mark.parametrize('name', CONFIGS)
def test_the_smoke_mode_is_a_few_steps_with_everything_in_them_on_any_machine(name):
    smoke = get_config(name, 'smoke')
    assert smoke.mesh.to_dict() == dict(data=-1, fsdp=1, context=1, tensor=1) and smoke.accumulation == 1
    assert smoke.steps <= 10 and smoke.batch_size <= 8
    for every in ('log_every', 'checkpoint_every', 'validate_every'):
        assert smoke[every] < smoke.steps, every


@pytest.mark.parametrize('name', PARAMETERS)
def test_the_papers_tokenizers_train_as_magvit_v2_did(name):
    section = get_config(name).optimizer
    assert (section.learning_rate, section.b1, section.b2, section.weight_decay) == (1e-4, 0.0, 0.99, 0.0)


def test_sections_become_the_objects_that_they_name():
    source = build.source({'name': 'moving_digits', 'frames': 5, 'speed': [1, 2]}, 'validation')
    assert source == MovingDigits('validation', frames=5, speed=(1, 2))
    tokenizer = build.tokenizer({'name': 'causal_cnn', 'channels': 64}, 'bfloat16')
    assert tokenizer == Tokenizer(channels=64, dtype=jnp.bfloat16)
    section = {'name': 'walt', 'latent_shape': [5, 16, 16, 8], 'classes': 3}  # a list, as JSON has it
    assert build.denoiser(section, 'float32') == Walt(latent_shape=(5, 16, 16, 8), classes=3)
    schedule = build.schedule({'name': 'discrete_linear', 'steps': 10})
    assert schedule == DiscreteLinear(steps=10)
    assert isinstance(build.schedule({'name': 'continuous_linear'}), ContinuousLinear)
    assert build.loss({'parametrisation': 'z0'}, schedule) == DenoisingLoss(schedule, 'z0')
    sampler = build.sampler({'name': 'ddim', 'steps': 7, 'guidance': 1.5, 'eta': 0.5})
    assert sampler == {'stepper': Ddim(0.5), 'steps': 7, 'guidance': 1.5}


def test_sections_of_the_diffusion_options_become_what_they_name():
    assert build.schedule({'name': 'cosine', 'steps': 10}) == Cosine(10)
    flow = build.schedule({'name': 'rectified_flow', 'shift': 3.0, 'logit_normal': [0.0, 1.0]})
    assert flow == RectifiedFlow(3.0, (0.0, 1.0))
    section = {'parametrisation': 'flow', 'min_snr_gamma': 5.0}
    assert build.loss(section, flow) == DenoisingLoss(flow, 'flow', min_snr_gamma=5.0)
    section = {'steps': 7, 'guidance': 1.5, 'rescale': 0.7, 'guidance_channels': 3, 'last_time': 0.1}
    steppers = {'ancestral': Ddim(1.0), 'heun': Heun(), 'dpm_solver_pp_2m': DpmSolverPlusPlus2M()}
    steppers |= {'learned_ancestral': LearnedAncestral()}
    for name, stepper in steppers.items():
        assert build.sampler({'name': name, **section}) == {'stepper': stepper, **section}
    scales = {
        PowerCosine(3.0, 2.0): {'name': 'power_cosine', 'scale': 3.0, 'power': 2.0},
        Interval(2.0, 0.2, 0.7): {'name': 'interval', 'scale': 2.0, 'low': 0.2, 'high': 0.7},
    }
    for scale, section in scales.items():
        assert build.sampler({'name': 'ddim', 'steps': 7, 'guidance': section})['guidance'] == scale


BUILDERS = {
    'tokenizer': lambda section: build.tokenizer(section, 'float32'),
    'denoiser': lambda section: build.denoiser(section, 'float32'),
    'schedule': build.schedule,
    'sampler': lambda section: build.sampler({'steps': 5, 'guidance': 1.0, **section}),
    'guidance': lambda section: build.sampler({'name': 'ddim', 'steps': 5, 'guidance': section}),
    'optimizer': lambda section: build.optimizer(section, 5),
    'data': lambda section: build.source(section, 'train'),
}
CHOICES = {
    'tokenizer': 'causal_cnn',
    'denoiser': 'walt',
    'schedule': 'discrete_linear',
    'sampler': 'ddim',
    'guidance': 'power_cosine',
    'optimizer': 'adamw',
    'data': 'moving_digits',
}


@pytest.mark.parametrize('kind', BUILDERS)
def test_an_unknown_or_missing_name_is_refused_with_the_choices(kind):
    for section, shown in [({'name': 'wlat'}, "'wlat'"), ({}, 'None')]:
        with pytest.raises(ValueError, match=f"unknown {kind} {shown}; choices: .*'{CHOICES[kind]}'"):
            BUILDERS[kind](section)


def test_an_unknown_key_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"\['widht'\] in denoiser 'walt'; choices: .*'width'"):
        build.denoiser({'name': 'walt', 'latent_shape': (5, 16, 16, 8), 'classes': 1, 'widht': 5}, 'float32')
    with pytest.raises(ValueError, match=r"\['p_sc'\] in loss .*'self_conditioning'"):
        build.loss({'p_sc': 0.9}, DiscreteLinear())


@pytest.mark.parametrize(
    ('kind', 'key'), [('tokenizer', 'dtype'), ('tokenizer', 'parent'), ('data', 'split'), ('optimizer', 'steps')]
)
def test_what_the_program_or_linen_gives_is_no_key_of_a_section(kind, key):
    with pytest.raises(ValueError, match=rf"unknown keys \['{key}'\]") as error:
        BUILDERS[kind]({'name': CHOICES[kind], key: 'x'})
    assert f"'{key}'" not in str(error.value).split('choices')[1]


def test_another_stepper_does_not_inherit_the_keys_of_the_one_before():
    section = {'name': 'ddim', 'steps': 50, 'guidance': 3.0, 'eta': 0.5, 'low_noise': 0.05}
    assert build.other_sampler(section, {'steps': 9}) == section | {'steps': 9}
    heun = build.other_sampler(section, {'name': 'heun', 'guidance': 1.0})
    assert heun == {'name': 'heun', 'steps': 50, 'guidance': 1.0, 'low_noise': 0.05}
    assert build.sampler(heun)['stepper'] == Heun()


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"denoiser 'walt' needs \['latent_shape'\]"):
        build.denoiser({'name': 'walt'}, 'float32')
    with pytest.raises(ValueError, match=r"needs 'steps' and 'guidance', it has \['name', 'steps'\]"):
        build.sampler({'name': 'ddim', 'steps': 5})


def test_an_unknown_dtype_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'float16'; choices: \['bfloat16', 'float32'\]"):
        build.tokenizer({'name': 'causal_cnn'}, 'float16')


@pytest.mark.parametrize(('name', 'keys'), [('tokenizer', build.TOKENIZER_KEYS), ('denoiser', build.DENOISER_KEYS)])
def test_a_configuration_has_all_keys_at_its_top_and_no_others(name, keys):
    config = get_config(f'quickstart_{name}').to_dict()
    build.check_keys(config, keys)
    with pytest.raises(ValueError, match=r"missing: \[\], unknown: \['stpes'\]; it has .*'steps'"):
        build.check_keys(config | {'stpes': 5}, keys)
    del config['seed']
    with pytest.raises(ValueError, match=r"missing: \['seed'\], unknown: \[\]"):
        build.check_keys(config, keys)
