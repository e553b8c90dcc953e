"""Denoisers of packed rows: a clip is what it is alone, and what the dense networks make of it."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt import tokens
from walt.denoiser.dit import Dit
from walt.denoiser.packed import PackedDenoiser, time_of_clips
from walt.denoiser.walt import Walt
from walt.denoiser.windows import window_ids

SHAPES = [(2, 3, 5, 3), (1, 4, 4, 3), (3, 2, 3, 3)]
"""Of clips of latents, which windows of 2 x 2 do not tile; 30, 16 and 18 tokens."""
LENGTH, MOST = 72, 4
TIMES = (0.2, 0.9, 0.6)
SIZES = dict(length=LENGTH, most=MOST, channels=3, extent=(4, 8, 8), classes=5, width=16, depth=4, heads=2)
LAYERS = {
    'walt': dict(layers=((1, 0, 0), (0, 2, 2))),
    'dit': dict(layers=((0, 0, 0),), rank=0, separate_adaln=True, qk_norm=False, rope=False, position='sinusoidal')
    | dict(self_condition=False, first_time=1 / 1000),
    'fractional': dict(layers=((1, 2, 2), (0, 0, 0)), position='fourier', fractional=True),
}


def clips(shapes=SHAPES, seed=0):
    """Clips as `tokens.pack` takes them, with a label, a time and an estimate each."""
    rng = np.random.default_rng(seed)
    made = []
    for i, shape in enumerate(shapes):
        clip = tokens.from_clip(rng.normal(size=shape).astype(np.float32), (1, 1, 1))
        made.append(clip | {'label': np.int32(i + 1), 'time': np.float32(TIMES[i])})
    return made


def packed(some, length=LENGTH, most=MOST):
    """A batch of one row."""
    return {name: jnp.asarray(value)[None] for name, value in tokens.pack(some, length, most).items()}


def call(module, params, batch):
    """The prediction for a batch at the times of its clips; the estimate is a function of the tokens."""
    cond = {name: batch[name] for name in module.conditions if name != 'estimate'}
    if module.self_condition:
        cond['estimate'] = jnp.sin(3 * batch['tokens'])
    at_BL = jnp.take_along_axis(batch['time'], jnp.maximum(batch['segment'] - 1, 0), axis=1)
    return module.apply({'params': params}, batch['tokens'], at_BL, cond)


def built(kind, random_parameters):
    """`module`, `params`, and `run`, which takes clips."""
    module = PackedDenoiser(**SIZES | LAYERS[kind])
    cond = {name: jnp.zeros((1, *shape), jnp.int32) for name, shape in module.conditions.items() if name != 'estimate'}
    if module.self_condition:
        cond['estimate'] = jnp.zeros((1, *module.latent_shape))
    params = random_parameters(module, jnp.zeros((1, *module.latent_shape)), jnp.zeros(1), cond)

    def loss(params, batch):
        """Every token of every clip with a weight of its own, which knows nothing of the row."""
        y_BLC = call(module, params, batch)
        place, size = (batch['place'] + 1).astype(jnp.float32), y_BLC.shape[-1]
        weight = jnp.sin(place @ jnp.array([1.0, 2.0, 3.0]))[..., None] + jnp.arange(size)
        return (y_BLC * weight * (batch['segment'] > 0)[..., None]).sum(), y_BLC

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True))

    def run(some, params=params):
        """Predictions clip by clip, gradients of the parameters, gradients of the tokens clip by clip."""
        batch = packed(some, module.length)
        (_, y_BLC), (of_params, of_batch) = value_and_grad(params, batch)
        rows = [
            {**{k: np.asarray(v)[0] for k, v in batch.items()}, 'tokens': np.asarray(x)[0]}
            for x in (y_BLC, of_batch['tokens'])
        ]
        predictions, gradients = ([clip['tokens'] for clip in tokens.unpack(row)] for row in rows)
        return SimpleNamespace(predictions=predictions, of_params=of_params, of_tokens=gradients)

    return SimpleNamespace(module=module, params=params, run=run)


# Fractional positions are a function of place and size, which the tests of positions have.
KINDS = pytest.mark.parametrize('kind', ['walt', 'dit', pytest.param('fractional', marks=pytest.mark.slow)])


@pytest.fixture(scope='module')
def network(random_parameters):
    """kind -> what `built` returns."""
    return functools.cache(lambda kind: built(kind, random_parameters))


@KINDS
def test_a_clip_in_a_row_is_the_clip_alone_in_values_and_gradients(kind, network):
    """Neighbours have other times and labels. Gradients of the parameters add up."""
    net, some = network(kind), clips()
    together, alone = net.run(some), [net.run([clip]) for clip in some]
    assert np.abs(together.predictions[0]).max() > 0.1
    for i, single in enumerate(alone):
        np.testing.assert_allclose(together.predictions[i], single.predictions[0], rtol=1e-5, atol=1e-5)
        scale = np.abs(single.of_tokens[0]).max()
        np.testing.assert_allclose(together.of_tokens[i], single.of_tokens[0], rtol=1e-5, atol=1e-5 * scale)
    total = jax.tree.map(lambda *leaves: sum(leaves), *(single.of_params for single in alone))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, float(jnp.abs(b).max()))),
        together.of_params,
        total,
    )


def test_a_clip_is_independent_of_its_neighbours_and_of_the_order_in_the_row(network):
    net, some = network('walt'), clips()
    before = net.run(some).predictions
    turned = net.run(some[::-1]).predictions[::-1]
    for a, b in zip(before, turned, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    others = [some[1] | {'tokens': some[1]['tokens'] + 100, 'label': np.int32(4), 'time': np.float32(0.05)}]
    np.testing.assert_allclose(net.run([others[0], some[0]]).predictions[1], before[0], rtol=1e-5, atol=1e-5)


def test_a_clip_has_its_own_time_and_its_own_label(network):
    """Or the invariants would hold of a network that looks at neither."""
    net, some = network('walt'), clips()
    before = net.run(some).predictions
    for change in ({'time': np.float32(0.5)}, {'label': np.int32(0)}):
        after = net.run([some[0], some[1] | change, some[2]]).predictions
        changed = [float(np.abs(a - b).max()) for a, b in zip(before, after)]
        assert changed[1] > 1e-2 and max(changed[0], changed[2]) < 1e-5, changed


@KINDS
def test_what_stands_in_padding_changes_nothing(kind, network):
    net, batch = network(kind), packed(clips())
    padding = batch['segment'] == 0
    filled = batch | {
        'tokens': jnp.where(padding[..., None], 1e3, batch['tokens']),
        'place': jnp.where(padding[..., None], 3, batch['place']),
        'label': jnp.where(batch['size'][..., 0] == 0, 2, batch['label']),
    }
    predict = jax.jit(functools.partial(call, net.module))
    a, b = (np.asarray(predict(net.params, some))[~np.asarray(padding)] for some in (batch, filled))
    np.testing.assert_array_equal(a, b)


def test_tokens_that_were_dropped_leave_the_others_in_their_windows(network):
    """Places and sizes are those of the whole clip: what stays is told apart from a smaller clip."""
    net, (clip, *_) = network('walt'), clips()
    stay = np.array([0, 1, 5, 6, 7, 14, 15, 20, 29])
    thinned = clip | {name: clip[name][stay] for name in ('tokens', 'place')}
    alone, beside = net.run([thinned]).predictions[0], net.run([*clips()[1:], thinned]).predictions[2]
    np.testing.assert_allclose(alone, beside, rtol=1e-5, atol=1e-5)


def test_windows_number_the_tiles_of_every_clip_and_those_at_the_border_are_smaller():
    row = packed(clips())
    ids = np.asarray(window_ids(row['segment'], row['place'], row['size'], (0, 2, 2)))[0]
    assert (ids[64:] == 0).all() and ids[:64].min() == 1
    first = ids[:15].reshape(3, 5)
    assert first.tolist() == [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]
    np.testing.assert_array_equal(ids[15:30].reshape(3, 5), first)
    assert ids[30:46].reshape(4, 4).tolist() == [[7, 7, 8, 8]] * 2 + [[9, 9, 10, 10]] * 2
    frames = np.asarray(window_ids(row['segment'], row['place'], row['size'], (1, 0, 0)))[0]
    assert frames[:64].tolist() == np.repeat([1, 2, 3, 4, 5, 6], [15, 15, 16, 6, 6, 6]).tolist()
    whole = np.asarray(window_ids(row['segment'], row['place'], row['size'], (0, 0, 0)))
    np.testing.assert_array_equal(whole, row['segment'])


@pytest.mark.parametrize('window', [(1, 2, 2), (2, 0, 3), (2, 2, 1)])
def test_two_tokens_have_one_number_where_clip_and_window_are_the_same(window):
    row = packed(clips())
    ids, segment, place = (
        np.asarray(x)[0, :64]
        for x in (window_ids(row['segment'], row['place'], row['size'], window), row['segment'], row['place'])
    )
    box = place // np.array([extent or 99 for extent in window])
    same = (segment[:, None] == segment) & (box[:, None] == box).all(-1)
    np.testing.assert_array_equal(ids[:, None] == ids, same)


@pytest.mark.parametrize('patch', [1, 2])
def test_a_row_that_one_clip_fills_is_walt(patch, random_inputs, random_parameters):
    """With the same parameters, rotary positions, and a table of places that is a sum of those of rows and columns."""
    dense = Walt((2, 8, 8, 3), classes=5, width=16, depth=4, heads=2, patch=patch, rope=True,
                 spatiotemporal_window=(2, 2))  # fmt: skip
    z, t_B, cond = random_inputs(dense)
    params = random_parameters(dense, z, t_B, cond)
    _, height, width = dense.grid
    curves = {name: np.random.default_rng(1).normal(size=(count, 16)).astype(np.float32)
              for name, count in zip('thw', dense.grid)}  # fmt: skip
    params['position'] = {'space': jnp.asarray(curves['h'][:, None] + curves['w']), 'time': jnp.asarray(curves['t'])}
    module = PackedDenoiser(2 * height * width, 1, 3, dense.grid, classes=5, layers=((1, 0, 0), (0, 2, 2)), width=16,
                            depth=4, heads=2, patch=patch)  # fmt: skip
    check_dense(module, params | {'position': {'curves': curves}}, dense, params, z, t_B, cond)


@pytest.mark.parametrize('learn_variance', [True, False])
def test_a_row_that_one_picture_fills_is_dit(learn_variance, random_inputs, random_parameters):
    dense = Dit((1, 8, 12, 3), classes=5, learn_variance=learn_variance, width=16, depth=2, heads=2, patch=2)
    z, t_B, cond = random_inputs(dense)
    params = random_parameters(dense, z, t_B, cond)
    fields = (
        SIZES
        | LAYERS['dit']
        | dict(length=24, most=1, extent=dense.grid, depth=2, patch=2, learn_variance=learn_variance)
    )
    check_dense(PackedDenoiser(**fields), params, dense, params, z, t_B, cond)


def check_dense(module, params, dense, dense_params, z, t_B, cond):
    """Both networks on the same clips; the packed one on a row for each."""
    entries = {'z': z} | ({'estimate': cond['estimate']} if 'estimate' in cond else {})
    rows = {
        name: [tokens.from_clip(np.asarray(clip), module.tile) for clip in value] for name, value in entries.items()
    }
    packed = {name: np.stack([clip[name] for clip in rows['z']]) for name in ('tokens', 'place', 'size')}
    given = {'place': jnp.asarray(packed['place']), 'size': jnp.asarray(packed['size'])[:, None]}
    given |= {'segment': jnp.ones((len(z), module.length), jnp.int32), 'label': cond['label'][:, None]}
    if 'estimate' in rows:
        given['estimate'] = jnp.asarray(np.stack([clip['tokens'] for clip in rows['estimate']]))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(packed['tokens']), t_B, given))
    assert jax.tree.structure(jax.tree.map(lambda x: 0, params)) == jax.tree.structure(
        jax.tree.map(lambda x: 0, shapes['params'], is_leaf=lambda x: hasattr(x, 'value'))
    )
    expected = jax.jit(dense.apply)({'params': dense_params}, z, t_B, cond)
    got_BLC = jax.jit(module.apply)({'params': params}, jnp.asarray(packed['tokens']), t_B, given)
    got = [
        np.concatenate([tokens.to_clip(clip | {'tokens': part}, module.tile) for part in parts], axis=-1)
        for clip, y in zip(rows['z'], np.asarray(got_BLC))
        for parts in [np.split(y, y.shape[-1] // module.latent_shape[-1], axis=-1)]
    ]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(np.stack(got), expected, rtol=1e-5, atol=1e-5)


def test_the_time_of_a_clip_is_that_of_its_tokens():
    segment = jnp.array([[1, 1, 2, 0], [1, 2, 3, 3]])
    t_BL = jnp.array([[0.25, 0.25, 0.5, 9.0], [1.0, 0.0, 0.75, 0.75]])
    assert time_of_clips(t_BL, segment, 3).tolist() == [[0.25, 0.5, 0], [1, 0, 0.75]]
    assert time_of_clips(jnp.array([0.5, 0.125]), segment, 3).tolist() == [[0.5, 0.5, 0], [0.125] * 3]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='depth 3 is not divisible by the 2 layers'):
        PackedDenoiser(**SIZES | {'depth': 3})
    with pytest.raises(ValueError, match=r'one or two layers, each with a window .* \(\(1, 0\),\)'):
        PackedDenoiser(**SIZES | {'layers': ((1, 0),)})
    with pytest.raises(ValueError, match=r"among .* not 'polar'"):
        PackedDenoiser(**SIZES | {'position': 'polar'})
    with pytest.raises(ValueError, match='2 devices cannot share the tokens'):
        PackedDenoiser(**SIZES).check_shards(2)
    with pytest.raises(ValueError, match=r'a clip of \(2, 6, 7\), 84 tokens, does not fit a row of 1 to 72'):
        PackedDenoiser(**SIZES).check_sizes([(1, 2, 2), (2, 6, 7)])
    with pytest.raises(ValueError, match=r'up to \(1, 2, 9\) tokens, but positions are learned as far as \(4, 8, 8\)'):
        PackedDenoiser(**SIZES).check_sizes([(1, 2, 9)])
    PackedDenoiser(**SIZES | {'fractional': True}).check_sizes([(1, 2, 9)])
