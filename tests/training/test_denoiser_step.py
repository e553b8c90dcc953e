"""What the denoiser is trained on: normalised latents, and labels of which some are dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.randomness import stream
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm
from walt.training.denoiser_step import drop_labels, make_denoiser_step, make_validation_loss, normalised_latents
from walt.training.state import State

OPTIMIZER = optax.sgd(0.1)
LOSS = DenoisingLoss(DiscreteLinear())


@pytest.fixture
def frozen(small_tokenizer):
    norm = LatentNorm(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.0, 2.0]))
    return FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, norm)


@pytest.fixture(scope='module')
def state(small_denoiser):
    params = small_denoiser.params
    return State(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params), params)


@pytest.fixture(scope='module')
def batch():
    z = np.random.default_rng(5).normal(size=(4, 2, 4, 4, 3))
    return {'z': jnp.asarray(z, jnp.float32), 'label': jnp.array([1, 2, 3, 4])}


@pytest.fixture(scope='module')
def step(small_denoiser):
    """Drops every label."""
    return jax.jit(make_denoiser_step(small_denoiser.module, LOSS, OPTIMIZER, 0.9, label_dropout=1.0))


@pytest.fixture(scope='module')
def validation_loss(small_denoiser):
    return jax.jit(make_validation_loss(small_denoiser.module, LOSS))


@pytest.mark.parametrize(('probability', 'least', 'most'), [(0.0, 0, 0), (0.1, 0.07, 0.13), (1.0, 1, 1)])
def test_labels_are_replaced_by_the_null_class_with_the_probability(probability, least, most):
    dropped_B = drop_labels(jnp.full(1000, 3), 10, probability, jax.random.key(0))
    assert set(np.asarray(dropped_B).tolist()) <= {3, 10}
    assert least <= (dropped_B == 10).mean() <= most


def test_latents_from_disk_are_taken_as_they_are_and_clips_are_encoded(frozen, rng):
    video = rng.integers(256, size=(2, 5, 16, 16, 3), dtype=np.uint8)
    z = frozen.encode(video)
    np.testing.assert_array_equal(normalised_latents(frozen, {'video': video}), z)
    assert normalised_latents(frozen, {'z': z}) is z


def test_a_dropped_label_has_no_influence(step, state, batch):
    key, other = jax.random.key(1), batch | {'label': jnp.array([9, 8, 7, 6])}
    (after, metrics), (same, same_metrics) = (step(state, None, b, key) for b in (batch, other))
    assert metrics['loss'] == same_metrics['loss']
    np.testing.assert_array_equal(after.params['label']['table'], same.params['label']['table'])
    moved_K = np.abs(after.params['label']['table'] - state.params['label']['table']).max(-1)
    assert moved_K[10] > 0 and (moved_K[:10] == 0).all()


def test_a_step_has_the_loss_at_its_key_and_the_norm_of_its_gradient(step, validation_loss, state, batch):
    key = jax.random.key(2)
    after, metrics = step(state, None, batch, key)
    null = batch | {'label': jnp.full(4, 10)}
    np.testing.assert_allclose(metrics['loss'], validation_loss(state.params, None, null, key), rtol=1e-5)
    difference = jax.tree.map(lambda new, old: (old - new) / 0.1, after.params, state.params)
    np.testing.assert_allclose(metrics['gradient_norm'], optax.global_norm(difference), rtol=1e-3)
    assert after.step == 1


def test_another_key_draws_other_times_and_noise(step, state, batch):
    first, again, other = (step(state, None, batch, jax.random.key(i))[1]['loss'] for i in (3, 3, 4))
    assert first == again != other


def test_validation_keeps_the_labels(validation_loss, state, batch):
    key = stream(jax.random.key(0), 'validation')
    losses = [validation_loss(state.params, None, batch | {'label': jnp.full(4, i)}, key) for i in (1, 2)]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize('label_dropout', [-0.1, 1.1])
def test_a_label_dropout_that_is_no_probability_is_refused(small_denoiser, label_dropout):
    with pytest.raises(ValueError, match=rf'label_dropout .* \[0, 1\], not {label_dropout}'):
        make_denoiser_step(small_denoiser.module, LOSS, OPTIMIZER, 0.9, label_dropout)
