"""DiT from a configuration to samples: as published, and as flow matching, on pictures and their mirror images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import DATA, binary, denoiser_config

from walt import build, restore
from walt.data.encoded import Encoded
from walt.denoiser.conditions import bound
from walt.diffusion.guidance import of_estimate
from walt.diffusion.steppers import Heun, LearnedAncestral
from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.parallel.mesh import make_mesh
from walt.randomness import stream

FLOW = {
    'schedule': {'name': 'rectified_flow'},
    'loss': {'parametrisation': 'flow', 'self_conditioning': 0.0},
    'sampler': {'name': 'heun', 'steps': 3, 'guidance': 2.0},
}


def config(flow: bool = False) -> dict:
    config = denoiser_config()
    config['data'] = {'name': 'flipped', 'clips': DATA | {'frames': 1}}
    config['denoiser'] = dict(name='dit', latent_shape=(1, 4, 4, 3), classes=10, width=16, depth=2, heads=2, patch=2)
    config['denoiser'] |= {'learn_variance': not flow}
    config['schedule'] |= {'zero_terminal_snr': False}
    config['loss'] = {'parametrisation': 'eps', 'self_conditioning': 0.0, 'vlb_weight': 0.001}
    config['sampler'] = {'name': 'learned_ancestral', 'steps': 4, 'last_time': 0.001, 'guidance': 2.0}
    config['sampler'] |= {'guidance_channels': 2}
    return config | (FLOW if flow else {})


@pytest.fixture(scope='module', params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=['published', 'flow'])
def run(request, trained, tmp_path_factory):
    """(whether it is flow matching, workdir, state) of four steps."""
    workdir = tmp_path_factory.mktemp('dit')
    asked = config(request.param) | {'tokenizer_dir': str(trained.folder / 'tokenizer')}
    return request.param, workdir, binary('train_denoiser').train(asked, str(workdir))


def test_all_that_can_learn_after_so_few_steps_does(run):
    """The gates open in the first step; then the layers behind them. Both halves of the head, where there are two."""
    flow, _, state = run
    mean = optax.tree_utils.tree_get(state.opt_state, 'mu')
    kernel = mean['head']['linear']['kernel'].reshape(16, 2 * 2, -1, 3)
    assert kernel.shape[2] == (1 if flow else 2) and (np.abs(kernel).max((0, 1, 3)) > 0).all()
    assert (np.abs(mean['blocks']['global']['attention']['qkv']['kernel']).max((1, 2, 3, 4)) > 0).all()
    assert np.abs(mean['label']['table']).max() > 0


def test_pictures_and_their_mirror_images_are_trained_on(run):
    assert len(Encoded(run[1] / 'latents', 'train')) == 2 * DATA['clips']


def latents(stage, labels=(3, 7)):
    key_B = stream(jax.random.key(0), 'clip', jnp.arange(len(labels)))
    return np.asarray(stage.latents(stage.conditions(Request(list(labels))), key_B))


def test_what_was_trained_is_restored_and_sampled_as_its_configuration_says(run):
    flow, workdir, _ = run
    stage, _, step = restore.stage(str(workdir), make_mesh())
    assert step == 4 and stage.stepper == (Heun() if flow else LearnedAncestral()) and not stage.self_conditioning
    z = latents(stage)
    assert z.shape == (2, 1, 4, 4, 3) and np.isfinite(z).all()
    assert stage.decode(z).shape == (2, 1, 16, 16, 3)


@pytest.fixture(scope='module')
def stage(trained, random_parameters):
    """Of the published sampler, with random parameters."""
    asked, mesh = config(), make_mesh()
    denoiser = build.denoiser(asked['denoiser'], 'float32')
    inputs = jnp.zeros((1, *denoiser.latent_shape)), jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)}
    return Stage(
        denoiser=denoiser,
        params=random_parameters(denoiser, *inputs),
        frozen=restore.tokenizer(str(trained.folder / 'tokenizer'), mesh)[0],
        schedule=build.schedule(asked['schedule']),
        parametrisation='eps',
        self_conditioning=False,
        mesh=mesh,
        **build.sampler(asked['sampler']),
    )


@pytest.fixture(scope='module')
def plain(stage):
    return latents(stage)


SLOW = [pytest.param(change, marks=pytest.mark.slow) for change in ({'name': 'ddim'}, {'last_time': None})]
CHANGES = [{'name': 'ancestral'}, {'guidance_channels': 3}, *SLOW]


@pytest.mark.parametrize('sampling', CHANGES, ids=str)
def test_every_part_of_the_sampler_matters(stage, plain, sampling):
    changed = dataclasses.replace(stage, **build.sampler(build.other_sampler(config()['sampler'], sampling)))
    other = latents(changed)
    assert np.isfinite(other).all() and np.abs(other - plain).max() > 1e-3


@pytest.mark.parametrize('clean', [False, True], ids=['of noisy latents', 'of the prediction'])
def test_a_stage_is_guided_by_a_classifier(clean, stage, plain):
    """One that likes bright latents makes them brighter."""

    def of_clean(z0, cond):
        return 3 * z0.sum((1, 2, 3, 4)) + 0 * cond['label']

    told = dict(schedule=stage.schedule, parametrisation=stage.parametrisation)
    of_prediction = of_estimate(bound(stage.denoiser, stage.params), of_clean, **told)
    log_prob = of_prediction if clean else lambda z, t_B, cond: of_clean(z, cond)
    guided = latents(dataclasses.replace(stage, classifier=log_prob, classifier_guidance=0.05))
    assert (guided.mean((1, 2, 3, 4)) > plain.mean((1, 2, 3, 4))).all()


def test_a_classifier_and_its_scale_come_together(stage):
    with pytest.raises(ValueError, match=r'classifier_guidance is 2\.0, and there is no classifier'):
        dataclasses.replace(stage, classifier_guidance=2.0)
    with pytest.raises(ValueError, match=r'classifier_guidance is 0\.0, and there is a classifier'):
        dataclasses.replace(stage, classifier=lambda z, t_B, cond: z)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'loss': {'parametrisation': 'eps', 'self_conditioning': 0.9}}, r'self_conditioning is 0\.9, but the'),
        ({'loss': {'parametrisation': 'eps', 'self_conditioning': 0.0}}, 'says about its variance, and vlb_weight is'),
        ({'sampler': {'name': 'learned_ancestral', 'steps': 4, 'guidances': 1.0}}, "needs 'steps' and 'guidance'"),
    ],
)
def test_what_does_not_fit_a_dit_is_refused_before_training(changes, message, trained, tmp_path):
    asked = config() | {'tokenizer_dir': str(trained.folder / 'tokenizer')} | changes
    with pytest.raises(ValueError, match=message):
        binary('train_denoiser').train(asked, str(tmp_path))
