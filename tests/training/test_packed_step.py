"""A step on packed rows is a step on the clips in them, however they are packed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt import tokens
from walt.denoiser.packed import PackedDenoiser
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.packed_loss import PackedLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.tokenizer.frozen import Pixels
from walt.training.conditions import Conditioning
from walt.training.packed_step import make_packed_step, make_packed_validation_loss
from walt.training.state import State

SCHEDULE = DiscreteLinear()
SHAPES = [(2, 3, 2), (1, 2, 2), (1, 4, 1), (1, 2, 3), (1, 1, 5)]
MODULE = PackedDenoiser(26, 4, 3, (2, 4, 5), classes=5, layers=((1, 0, 0), (0, 2, 2)), width=8, depth=2, heads=1)
LOSS = PackedLoss(SCHEDULE, self_conditioning=0.5)
CONDITIONING = Conditioning(SCHEDULE, dropout=0.5)


def clips(dtype=np.float32):
    rng, made = np.random.default_rng(0), []
    for i, shape in enumerate(SHAPES):
        clip = tokens.from_clip((20 * rng.normal(size=(*shape, 3))).astype(dtype), (1, 1, 1))
        made.append(clip | {'index': np.int32(i), 'label': np.int32(i % 5)})
    return made


def batch(*of_rows):
    packed = [tokens.pack(some, 26, 4) for some in of_rows]
    return {name: jnp.asarray(np.stack([row[name] for row in packed])) for name in packed[0]}


@pytest.fixture(scope='module')
def state(random_parameters):
    cond = {name: jnp.zeros((1, *shape), jnp.int32) for name, shape in MODULE.conditions.items()}
    cond['estimate'] = jnp.zeros((1, 26, 3))
    params = random_parameters(MODULE, cond['estimate'], jnp.zeros(1), cond)
    return State(jnp.zeros((), jnp.int32), params, optax.sgd(1.0).init(params), params)


@functools.cache
def compiled(loss, conditioning, accumulation):
    return jax.jit(make_packed_step(MODULE, loss, optax.sgd(1.0), 0.0, conditioning, accumulation))


def stepped(state, rows, loss=LOSS, conditioning=CONDITIONING, accumulation=1, frozen=None):
    """The gradient, which is how far plain descent of rate 1 goes, and the metrics."""
    after, metrics = compiled(loss, conditioning, accumulation)(state, frozen, rows, jax.random.key(3))
    return jax.tree.map(jnp.subtract, state.params, after.params), metrics


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def test_a_step_is_the_same_however_the_clips_are_packed(state):
    """Time, noise, dropping and weight of a clip are its own: on other rows, in another order."""
    a, b, c, d, e = clips()
    one, of_one = stepped(state, batch([a, b, c], [d, e]))
    other, of_other = stepped(state, batch([e, a], [c, d, b]))
    assert_close(one, other)
    np.testing.assert_allclose(of_one['loss'], of_other['loss'], rtol=1e-5)
    np.testing.assert_allclose(of_one['loss_by_time'], of_other['loss_by_time'], rtol=1e-4, atol=1e-5)
    assert of_one['loss_by_time'][1].sum() == of_one['clips'] == 5
    np.testing.assert_allclose(of_one['filled'], 31 / 52)


@pytest.mark.parametrize('average', ['clips', pytest.param('tokens', marks=pytest.mark.slow)])
def test_micro_batches_of_different_numbers_of_clips_are_weighed_by_them(average, state):
    a, b, c, d, e = clips()
    rows, loss = batch([a, b, c, d], [e]), PackedLoss(SCHEDULE, self_conditioning=0.5, average=average)
    (whole, of_whole), (parts, of_parts) = (stepped(state, rows, loss, accumulation=k) for k in (1, 2))
    assert_close(whole, parts)
    np.testing.assert_allclose(of_whole['loss'], of_parts['loss'], rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_clips_alone(state):
    some = clips()[:3]
    whole, _ = stepped(state, batch(some))
    alone = [stepped(state, batch([clip]))[0] for clip in some]
    assert_close(whole, jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *alone))


@pytest.mark.slow
def test_another_step_draws_anew_and_a_label_is_dropped_clip_by_clip(state):
    rows = batch(clips()[:4])
    kept, _ = stepped(state, rows, conditioning=Conditioning(SCHEDULE, dropout=0.0))
    all_dropped, _ = stepped(state, rows, conditioning=Conditioning(SCHEDULE, dropout=1.0))
    some_dropped, _ = stepped(state, rows)
    used = [np.flatnonzero(np.abs(g['label']['table']).any(1)).tolist() for g in (kept, all_dropped, some_dropped)]
    assert used[0] == [0, 1, 2, 3] and used[1] == [5]
    assert 5 in used[2] and 1 < len(used[2]) < 5


@pytest.mark.slow
def test_pixels_are_trained_on_as_numbers_around_zero(state):
    pixels = batch(clips(np.uint8)[:3])
    numbers = pixels | {'tokens': pixels['tokens'].astype(jnp.float32) / 127.5 - 1}
    as_numbers = jnp.where(pixels['segment'][..., None] > 0, numbers['tokens'], -1)
    assert_close(
        stepped(state, pixels, frozen=Pixels())[0], stepped(state, numbers | {'tokens': as_numbers}, frozen=Pixels())[0]
    )


def test_the_validation_loss_drops_nothing_and_is_that_of_its_clips(state):
    loss = jax.jit(make_packed_validation_loss(MODULE, LOSS, CONDITIONING))
    some = clips()[:3]
    whole, *alone = (float(loss(state.params, None, batch(c), jax.random.key(1))) for c in (some, *([c] for c in some)))
    np.testing.assert_allclose(whole, np.mean(alone), rtol=1e-5)
    _, metrics = stepped(state, batch(some), conditioning=Conditioning(SCHEDULE, dropout=0.0))
    np.testing.assert_allclose(metrics['loss'], loss(state.params, None, batch(some), jax.random.key(3)), rtol=1e-5)


def test_the_loss_of_dense_batches_is_refused():
    with pytest.raises(ValueError, match="named 'packed', this is a DenoisingLoss"):
        make_packed_step(MODULE, DenoisingLoss(SCHEDULE), optax.sgd(1.0), 0.0, CONDITIONING)
