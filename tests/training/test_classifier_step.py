"""The classifier's step: clips count alike, wherever they are, and padding not at all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt import build, tokens
from walt.data.mixed_digits import MixedDigits
from walt.data.packing import Packed
from walt.data.resolution import TruncatedNormal
from walt.diffusion.schedules import DiscreteLinear
from walt.navit.classifier import Classifier
from walt.navit.navit import Navit
from walt.parallel.mesh import make_mesh
from walt.training.classifier_step import Noising, examine, make_classifier_step, make_classifier_validation
from walt.training.state import create

PATCH = (1, 4, 4)
SCHEDULE = DiscreteLinear()
NOISING = Noising(SCHEDULE)


def module(**fields):
    return Navit(classes=10, patch=PATCH, extent=(1, 16, 16), width=16, depth=1, heads=2, **fields)


@functools.cache
def digits(length, most):
    packed = Packed(MixedDigits('train', pictures=50), PATCH, length, most, TruncatedNormal(8, 24))
    return [packed[number] for number in range(4)]


def rows(length=64, most=6, clips=None):
    made = digits(length, most) if clips is None else [tokens.pack(row, length, most) for row in clips]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


@pytest.fixture(scope='module')
def start():
    """start(noising, accumulation) -> (first state, jitted step), of parameters that are not new."""

    @functools.cache
    def start(noising=None, accumulation=1):
        net, optimizer = module(timed=noising is not None), optax.sgd(0.1, momentum=0.9)
        state, _ = create(build.init_classifier(net), optimizer, make_mesh(), jax.random.key(0))
        noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), state.params)
        state = state.starting_from(jax.tree.map(jnp.add, state.params, noise))
        return state, jax.jit(make_classifier_step(net, noising, optimizer, 0.9, accumulation))

    return start


def same(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tree, other)


def test_the_loss_is_the_mean_over_clips_however_they_are_packed(start):
    state, step = start()
    clips = [clip for row in tokens.rows_of(rows()) for clip in tokens.unpack(row)][:12]
    after, metrics = step(state, None, rows(clips=[clips[:4], clips[4:8], clips[8:]], length=80), jax.random.key(0))
    alone = rows(clips=[[clip] for clip in clips], length=80, most=2)
    after_alone, metrics_alone = step(state, None, alone, jax.random.key(0))
    np.testing.assert_allclose(metrics['loss'], metrics_alone['loss'], rtol=1e-5)
    same(after.params, after_alone.params)
    assert metrics['clips_a_row'] == 4 and metrics_alone['clips_a_row'] == 1


@pytest.mark.slow
def test_micro_batches_change_nothing(start):
    batch, key = rows(), jax.random.key(0)
    whole, parts = (step(state, None, batch, key) for state, step in (start(NOISING), start(NOISING, 2)))
    same(whole[0].params, parts[0].params)
    assert abs(whole[1]['accuracy'] - parts[1]['accuracy']) < 1e-6


def test_labels_of_clips_that_are_not_there_count_nothing(start):
    state, step = start()
    batch = rows()
    absent = ~batch['size'].all(-1)
    assert absent.any()
    other = batch | {'label': np.where(absent, 7, batch['label'])}
    same(*(step(state, None, b, jax.random.key(0))[0].params for b in (batch, other)))


def test_the_statistics_of_packing_are_among_the_metrics(start):
    state, step = start()
    _, metrics = step(state, None, rows(), jax.random.key(0))
    for name, value in tokens.statistics(rows()).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


def test_training_lowers_the_loss_on_clean_and_on_noised_clips(start):
    for noising in (None, NOISING):
        state, step = start(noising)
        losses = []
        for number in range(40):
            state, metrics = step(state, None, rows(), jax.random.key(number))
            losses.append(float(metrics['loss']))
        assert np.mean(losses[-5:]) < losses[0] - (0.5 if noising is None else 0.05)


def test_every_clip_has_a_time_and_noise_of_its_own_and_padding_none(monkeypatch):
    seen = {}

    def logits(self, rows, t_BE=None):
        seen.update(rows, t_BE=t_BE)
        return jnp.zeros((*rows['size'].shape[:2], 10))

    monkeypatch.setattr(Classifier, 'logits', logits)
    batch = rows()
    keys = jax.random.split(jax.random.key(0), 4)
    examine(Classifier(module(timed=True), {}), NOISING, batch, keys)
    t_BE, z_BLC = np.array(seen['t_BE']), np.array(seen['tokens'])
    assert len(np.unique(t_BE)) == t_BE.size and t_BE.min() > 0 and t_BE.max() <= 1
    clean_BLC, alpha_sigma = batch['tokens'] / 127.5 - 1, jax.jit(SCHEDULE.alpha_sigma)
    for b in range(4):
        for e in range(batch['size'][b].all(-1).sum()):
            alpha, sigma = map(np.asarray, alpha_sigma(t_BE[b, e]))
            own = batch['segment'][b] == e + 1
            noise = (z_BLC[b, own] - alpha * clean_BLC[b, own]) / sigma
            assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.15
    assert not z_BLC[batch['segment'] == 0].any()


def test_a_power_draws_times_that_are_less_noise():
    key_B = jax.random.split(jax.random.key(0), 1000)
    np.testing.assert_allclose(Noising(SCHEDULE, 2.0).draw_times(key_B), SCHEDULE.draw_times(key_B) ** 2)
    with pytest.raises(ValueError, match='power is positive, not 0'):
        Noising(SCHEDULE, 0.0)
    assert build.noising({'name': 'discrete_linear', 'power': 2.0}) == Noising(SCHEDULE, 2.0)
    with pytest.raises(ValueError, match=r"a power of the times of noise, 2\.0, and noising is 'none'"):
        build.noising({'name': 'none', 'power': 2.0})


def test_validation_counts_clips_and_what_is_read_right():
    net = module()
    params = jax.jit(build.init_classifier(net))(jax.random.key(0))['params']
    params = jax.tree.map(
        lambda x: x.value if hasattr(x, 'value') else x, params, is_leaf=lambda x: hasattr(x, 'value')
    )
    params['head'] = {'kernel': jnp.zeros((16, 10)), 'bias': jnp.zeros(10).at[0].set(5.0)}  # as padding is labelled
    batch = rows()
    sums = jax.jit(make_classifier_validation(net, None))(params, batch, jax.random.key(0))
    there = batch['size'].all(-1)
    assert sums['clips'] == there.sum() and sums['right'] == (there & (batch['label'] == 0)).sum()
