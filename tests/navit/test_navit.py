"""What a clip is read as depends on its own tokens and on nothing else of its row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt import tokens
from walt.navit.navit import Navit

PATCH, EXTENT = (1, 2, 2), (3, 4, 4)
SHAPES = [(1, 4, 8), (3, 2, 4), (1, 2, 2), (2, 6, 2)]


def clips(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [tokens.from_clip(rng.normal(size=(*shape, 3)).astype(np.float32), PATCH) for shape in shapes]


def module(**fields):
    fields = {'positions': 'learned', 'timed': True} | fields
    return Navit(classes=5, patch=PATCH, extent=EXTENT, width=16, depth=2, heads=2, **fields)


def batch(*rows, length=32, most=6):
    made = [tokens.pack(row, length, most) for row in rows]
    return {name: jnp.stack([row[name] for row in made]) for name in made[0]}


@functools.partial(jax.jit, static_argnums=0)
def call(module, params, rows, t_BE=None):
    return module.apply(params, *(rows[name] for name in ('tokens', 'segment', 'place', 'size')), t_BE)


def alone(times=None):
    """Each clip in a row of its own, as they are packed in one, and their times."""
    t_BE = None if times is None else jnp.pad(times[0, : len(SHAPES), None], ((0, 0), (0, 5)))
    return batch(*([clip] for clip in clips())), t_BE


def parameters(module):
    """None of them zero, so that nothing is hidden by an initialisation."""
    rows, t_BE = batch(clips()), jnp.zeros((1, 6)) if module.timed else None
    shapes = jax.eval_shape(
        lambda key: module.init(key, *(rows[name] for name in ('tokens', 'segment', 'place', 'size')), t_BE),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), nn.unbox(shapes))


@pytest.fixture(scope='module')
def timed():
    model = module()
    return model, parameters(model)


TIMES = jnp.array([[0.1, 0.9, 0.4, 0.6, 0.0, 0.0]])


def test_packed_clips_are_read_as_each_alone(timed):
    together = call(*timed, batch(clips()), TIMES)[0, :4]
    rows, t_BE = alone(TIMES)
    np.testing.assert_allclose(call(*timed, rows, t_BE)[:, 0], together, atol=1e-5)
    without_padding = batch([clips()[1]], length=6, most=1)
    np.testing.assert_allclose(call(*timed, without_padding, TIMES[:, 1:2])[0, 0], together[1], atol=1e-5)


def test_gradients_of_packed_clips_are_those_of_each_alone(timed):
    """Of the parameters, summed, and of the tokens of each clip."""
    model, params = timed

    @jax.jit
    def gradients(rows, t_BE):
        def loss(params, x):
            log_BEC = jax.nn.log_softmax(call(model, params, rows | {'tokens': x}, t_BE))
            return (log_BEC[..., 2] * rows['size'].all(-1)).sum()

        return jax.grad(loss, (0, 1))(params, rows['tokens'])

    rows = alone(TIMES)
    of_params, of_tokens = gradients(batch(clips()), TIMES)
    params_alone, tokens_alone = gradients(*rows)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(of_params))
    for leaf, leaf_alone in zip(*map(jax.tree.leaves, (of_params, params_alone)), strict=True):
        np.testing.assert_allclose(leaf, leaf_alone, rtol=1e-5, atol=1e-5 * largest)
    apart = tokens_alone[rows[0]['segment'] > 0]
    np.testing.assert_allclose(of_tokens[0, : len(apart)], apart, atol=1e-5)
    assert abs(apart).max() > 0.01 and not of_tokens[0, len(apart) :].any()


def test_neighbours_and_order_change_nothing(timed):
    order, others = [2, 0, 3, 1], clips([(1, 8, 8), (1, 2, 4)], seed=1)
    first, turned = clips(), [clips()[i] for i in order]
    times = TIMES[:, jnp.array([*order, 4, 5])]
    read = call(*timed, batch(first), TIMES)[0]
    np.testing.assert_allclose(call(*timed, batch(turned), times)[0, :4], read[jnp.array(order)], atol=1e-5)
    beside = call(*timed, batch([others[0], first[1], others[1]]), jnp.array([[0.3, 0.9, 0.2, 0, 0, 0]]))
    np.testing.assert_allclose(beside[0, 1], read[1], atol=1e-5)


def test_padding_changes_no_value_whatever_is_in_it(timed):
    rows = batch(clips())
    filled_BL1 = (rows['segment'] > 0)[..., None]
    dirty = rows | {'tokens': jnp.where(filled_BL1, rows['tokens'], 1e3)}
    dirty |= {'place': jnp.where(filled_BL1, rows['place'], 2)}
    longer = batch(clips(), length=50, most=9)
    read = call(*timed, rows, TIMES)[0, :4]
    np.testing.assert_array_equal(call(*timed, dirty, TIMES)[0, :4], read)
    np.testing.assert_allclose(call(*timed, longer, jnp.pad(TIMES, ((0, 0), (0, 3))))[0, :4], read, atol=1e-5)


def test_clips_that_are_not_there_send_no_gradient_to_tokens(timed):
    rows = batch(clips())

    def of_absent(x):
        return call(*timed, rows | {'tokens': x}, TIMES)[0, 4:].sum()

    assert not jax.grad(of_absent)(rows['tokens']).any()


def test_what_a_clip_is_read_as_depends_on_its_places_its_time_and_its_tokens(timed):
    rows = batch(clips())
    before = call(*timed, rows, TIMES)[0]
    changes = {
        'place': (rows | {'place': rows['place'][:, ::-1]}, TIMES),
        'time': (rows, TIMES.at[0, 0].set(0.7)),
        'tokens': (rows | {'tokens': rows['tokens'].at[0, 0].add(1)}, TIMES),
    }
    for changed in changes.values():
        assert abs(call(*timed, *changed)[0, 0] - before[0]).max() > 1e-3
    only_first = call(*timed, *changes['tokens'])[0, 1:4]
    np.testing.assert_array_equal(only_first, before[1:4])


@pytest.mark.parametrize('positions', ['learned', 'sinusoidal', 'fourier'])
@pytest.mark.parametrize('fractional', [False, True])
def test_all_positions_are_packed_as_alone(positions, fractional):
    model = module(positions=positions, fractional=fractional, timed=False)
    params = parameters(model)
    together = call(model, params, batch(clips()))[0, :4]
    np.testing.assert_allclose(call(model, params, alone()[0])[:, 0], together, atol=1e-5)


def test_there_is_no_bias_in_layers(timed):
    _, params = timed
    layers = params['params']['blocks']
    assert {'attention', 'mlp'} == set(layers)
    biases = [path for path, _ in jax.tree_util.tree_leaves_with_path(layers) if 'bias' in str(path[-2:])]
    assert all('_norm' in str(path) for path in biases)  # those of QK-norm


def test_what_does_not_fit_is_refused(timed):
    model, params = timed
    rows = batch(clips())
    with pytest.raises(ValueError, match='tokens of 5 numbers, but patches have 12'):
        call(model, params, rows | {'tokens': rows['tokens'][..., :5]}, TIMES)
    with pytest.raises(ValueError, match='timed is True, but times are missing'):
        call(model, params, rows)
    with pytest.raises(ValueError, match='width 10 is not divisible by heads 4'):
        Navit(classes=2, patch=PATCH, width=10, heads=4)
