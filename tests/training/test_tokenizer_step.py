"""Training steps of the tokenizer: both sides from one pass, and every bottleneck learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt.parallel.mesh import make_mesh
from walt.tokenizer.bottleneck import Continuous, Fsq, Kl, Lfq, Vq
from walt.tokenizer.discriminator import Discriminator
from walt.tokenizer.objective import Logits, Objective
from walt.training.optimizer import adamw
from walt.training.tokenizer_step import create_tokenizer_state, make_tokenizer_step

SHAPE = (5, 8, 8, 3)
ADVERSARIAL = {'reconstruction': 1.0, 'adversarial': 0.5, 'r1': 0.01, 'lecam': 0.1}
DISCRIMINATOR = Discriminator(channels=4, multipliers=(1,))


@pytest.fixture(scope='module')
def batch():
    """Smooth moving gradients, of which there is something to learn."""
    t, y, x = np.mgrid[:5, :8, :8]
    phases = np.random.default_rng(0).uniform(0, 6, size=(4, 1, 1, 1, 3))
    wave = np.sin(0.5 * (x + y + t)[None, ..., None] + phases)
    return {'video': (127 + 100 * wave).astype(np.uint8)}


@pytest.fixture(scope='module')
def start(batch):
    """start(objective, optimizer) -> (state, jitted step without a feature network)."""

    def start(objective, optimizer, ema_decay=0.9):
        state, _ = create_tokenizer_state(objective, optimizer, make_mesh(), jax.random.key(0), SHAPE)
        step = make_tokenizer_step(objective, optimizer, ema_decay)
        return state, jax.jit(lambda state, key: step(state, None, batch, key))

    return start


@pytest.fixture(scope='module')
def adversarial(tiny_tokenizer, start):
    """(objective, first state, jitted step of Adam, the state after it, its metrics)."""
    objective = Objective(tiny_tokenizer.module, ADVERSARIAL, discriminator=DISCRIMINATOR)
    state, step = start(objective, optax.adam(3e-3, b1=0.5))
    return objective, state, step, *step(state, jax.random.key(1))


def norm(tree) -> float:
    return np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def test_both_gradients_of_one_pass_are_those_of_each_side_alone(adversarial, batch):
    """By the optimizers' first moments, half of the gradients after one step."""
    objective, state, _, after, metrics = adversarial
    video = jnp.float32(batch['video']) / 255

    def side(name):
        return lambda params, opposed: getattr(
            objective(params, opposed, state.adversary.averages, None, video, None, 0)[0], name
        )

    @jax.jit
    def alone(params, opposed):
        return jax.grad(side('tokenizer'))(params, opposed), jax.grad(side('discriminator'), 1)(params, opposed)

    own, other = jax.device_get(alone(state.params, state.adversary.params))
    after = jax.device_get(after)
    for gradient, opt_state in [(own, after.opt_state), (other, after.adversary.opt_state)]:
        jax.tree.map(lambda g, mu: np.testing.assert_allclose(2 * mu, g, atol=2e-5), gradient, opt_state[0].mu)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3
    np.testing.assert_allclose(metrics['gradient_norm'], norm(own), rtol=1e-4)
    np.testing.assert_allclose(metrics['gradient_norm_discriminator'], norm(other), rtol=1e-4)


def test_both_sides_move_against_their_gradients(adversarial):
    state, after = jax.device_get((adversarial[1], adversarial[3]))
    sides = (
        (state.params, after.params, after.opt_state),
        (
            state.adversary.params,
            after.adversary.params,
            after.adversary.opt_state,
        ),
    )
    for before, now, opt_state in sides:
        against = jax.tree.map(lambda p, q, mu: ((p - q) * mu).sum(), before, now, opt_state[0].mu)
        assert sum(jax.tree.leaves(against)) > 0
        moved = jax.tree.map(lambda p, q: float(np.abs(p - q).max()), before, now)
        assert max(jax.tree.leaves(moved)) > 1e-3


def test_metrics_tell_of_both_sides(adversarial):
    *_, metrics = adversarial
    expected = {'loss', 'reconstruction', 'adversarial', 'discriminator', 'r1', 'lecam', 'logit_real', 'logit_fake'}
    expected |= {'gradient_norm', 'gradient_norm_discriminator', 'latent_std', 'input_min', 'input_max'}
    expected |= {'bad', 'bad_tensors'}
    assert set(metrics) == expected


def test_the_logit_averages_follow_the_logits(adversarial):
    _, state, _, after, metrics = adversarial
    assert state.adversary.averages == Logits(0.0, 0.0)
    decay = 1 / 10  # of the first update, whatever the decay of later ones
    np.testing.assert_allclose(after.adversary.averages.real, (1 - decay) * metrics['logit_real'], rtol=1e-5)
    np.testing.assert_allclose(after.adversary.averages.fake, (1 - decay) * metrics['logit_fake'], rtol=1e-5)


def test_a_frozen_encoder_stays_bit_for_bit_and_costs_no_optimizer_memory(tiny_tokenizer, start):
    """Also under weight decay."""
    optimizer = adamw(steps=9, learning_rate=1e-2, warmup_steps=0, weight_decay=0.1)
    objective = Objective(tiny_tokenizer.module, {'reconstruction': 1.0}, freeze_encoder=True)
    state, step = start(objective, optimizer)
    after = state
    for _ in range(2):
        after, _ = step(after, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after.params['encoder'], state.params['encoder'])
    jax.tree.map(np.testing.assert_array_equal, after.ema['encoder'], state.ema['encoder'])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params['decoder'], state.params['decoder'])
    assert min(jax.tree.leaves(moved)) > 0
    size = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert size < 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params['decoder'])) + 10


def test_a_step_draws_latents_by_its_key(tiny_tokenizer, start):
    module = tiny_tokenizer.module.clone(bottleneck=Kl())
    state, step = start(Objective(module, {'reconstruction': 1.0, 'kl': 0.0}), optax.sgd(0.0))
    one, again, other = (float(step(state, jax.random.key(seed))[1]['reconstruction']) for seed in (0, 0, 1))
    assert one == again and abs(one - other) > 1e-5


def test_weights_follow_the_step_that_the_state_is_at(tiny_tokenizer, start):
    """That of LFQ's entropy comes down to once its value in 2,000 steps."""
    module = tiny_tokenizer.module.clone(bottleneck=Lfq())
    objective = Objective(module, {'reconstruction': 0.0, 'commitment': 0.0, 'entropy': 1.0})
    state, step = start(objective, optax.sgd(0.0))
    for number, weight in [(0, 3.0), (1000, 2.0), (5000, 1.0)]:
        _, metrics = step(state.replace(step=jnp.int32(number)), jax.random.key(0))
        np.testing.assert_allclose(metrics['loss'] / metrics['entropy'], weight, rtol=1e-4)


BOTTLENECKS = {
    'none': (Continuous(), {}),
    'kl': (Kl(), {'kl': 1e-4}),
    'vq': (Vq(codes=32), {'codebook': 1.0, 'commitment': 0.25, 'coverage': 0.25}),
    'lfq': (Lfq(), {'commitment': 0.25, 'entropy': 0.1}),
    'fsq': (Fsq(levels=(5, 5, 5)), {}),
}


# Runs of the programs train without a bottleneck and with 'vq'; 'kl' draws, 'lfq' passes gradients through its codes.
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] * (name not in ('kl', 'lfq'))) for name in BOTTLENECKS]
)
def test_every_bottleneck_trains(name, tiny_tokenizer, start):
    """Sixty steps on four clips: the error falls to a third, and a discrete one uses more than three codes."""
    bottleneck, weights = BOTTLENECKS[name]
    module = tiny_tokenizer.module.clone(bottleneck=bottleneck)
    optimizer = adamw(steps=60, learning_rate=1e-2, warmup_steps=3)
    state, step = start(Objective(module, {'reconstruction': 5.0, **weights}), optimizer)
    errors = []
    for number in range(60):
        state, metrics = step(state, jax.random.key(number))
        errors.append(float(metrics['reconstruction']))
    assert np.mean(errors[-5:]) < 0.33 * np.mean(errors[:3]), errors
    if name in ('vq', 'lfq', 'fsq'):
        assert metrics['perplexity'] > 3 and 0 < metrics['code_use'] <= 1


def test_the_discriminator_learns_to_tell_real_from_fake(adversarial):
    """Against a tokenizer that does not move."""
    _, state, step, *_ = adversarial
    params = state.params
    for number in range(40):
        state, metrics = step(state.replace(params=params), jax.random.key(number))
    assert metrics['logit_real'] > 0.5 > -0.5 > metrics['logit_fake']
