"""The loss on packed rows: that of every clip alone, by its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt import tokens
from walt.diffusion.packed_loss import PackedLoss, to_tokens, token_keys, token_noise
from walt.diffusion.schedules import DiscreteLinear
from walt.randomness import stream

SHAPES = [(2, 3, 2), (1, 2, 2), (1, 4, 2)]
MOST = 4


def clips(channels=3):
    rng = np.random.default_rng(0)
    made = [tokens.from_clip(rng.normal(size=(*shape, channels)).astype(np.float32), (1, 1, 1)) for shape in SHAPES]
    return [clip | {'index': np.int32(10 + i)} for i, clip in enumerate(made)]


def rows(*of_rows, length=26):
    packed = [tokens.pack(some, length, MOST) for some in of_rows]
    return {name: jnp.asarray(np.stack([row[name] for row in packed])) for name in packed[0]}


def denoise(z, t_BL, cond):
    """Something that knows the token, its place, its time and the estimate, and looks at no other token."""
    place = jnp.sin(cond['place'].astype(jnp.float32).sum(-1, keepdims=True) + 10 * t_BL[..., None])
    return z * place + 0.3 * cond['estimate'] + t_BL[..., None]


def loss_of(batch, loss=None, seed=0):
    loss = loss or PackedLoss(DiscreteLinear(), self_conditioning=0.5)

    @jax.jit
    def run(batch):
        key_BE = stream(jax.random.key(seed), 'clip', batch['index'])
        return loss(denoise, batch['tokens'], {name: batch[name] for name in ('segment', 'place', 'size')}, key_BE)

    return run(batch)


@pytest.mark.parametrize('gamma', [None, 5.0])
def test_the_loss_of_a_clip_is_that_of_the_clip_alone(gamma):
    """Beside other neighbours and in another order too; the mean over a batch is the mean over clips."""
    loss = PackedLoss(DiscreteLinear(), self_conditioning=0.5, min_snr_gamma=gamma)
    a, b, c = clips()
    alone = [loss_of(rows([clip]), loss)[0][0, 0] for clip in (a, b, c)]
    together, drawn = loss_of(rows([a, b, c]), loss)
    np.testing.assert_allclose(together, [[*alone, 0]], rtol=1e-6)
    assert len(set(drawn['t_B'][0, :3].tolist())) == 3
    batch = rows([c], [b, a])
    apart, _ = loss_of(batch, loss)
    np.testing.assert_allclose(apart, [[alone[2], 0, 0, 0], [alone[1], alone[0], 0, 0]], rtol=1e-6)
    weight = loss.weights(batch)
    np.testing.assert_allclose((apart * weight).sum() / weight.sum(), np.mean(alone), rtol=1e-6)


def test_over_tokens_each_clip_counts_as_many_times_as_it_has_tokens():
    batch, counts = rows(clips()), [12, 4, 8, 0]
    assert PackedLoss(DiscreteLinear(), average='tokens').weights(batch).tolist() == [counts]
    assert PackedLoss(DiscreteLinear()).weights(batch).tolist() == [[1, 1, 1, 0]]


def test_another_key_or_another_clip_has_another_time_and_noise():
    batch = rows(clips())
    (_, one), (_, other) = loss_of(batch), loss_of(batch, seed=1)
    assert not np.array_equal(one['t_B'], other['t_B'])
    key_BE = stream(jax.random.key(0), 'clip', batch['index'])
    key_BL = token_keys(key_BE, *(batch[name] for name in ('segment', 'place', 'size')))
    eps = np.asarray(token_noise(key_BL, batch['segment'], 3))[0]
    assert len(np.unique(eps[:24], axis=0)) == 24 and not eps[24:].any()
    assert abs(eps[:24].mean()) < 0.3 and 0.7 < eps[:24].std() < 1.3


def test_what_is_predicted_at_padding_is_in_no_loss():
    batch = rows(clips())
    padding = batch['segment'] == 0
    changed = batch | {'tokens': jnp.where(padding[..., None], 50.0, batch['tokens'])}
    np.testing.assert_array_equal(loss_of(batch)[0], loss_of(changed)[0])


def test_what_is_known_of_clips_is_given_to_their_tokens():
    segment = jnp.array([[1, 1, 2, 0], [1, 2, 2, 3]])
    of_clips = jnp.array([[5, 6, 7], [8, 9, 10]])
    assert to_tokens(of_clips, segment)[:, :3].tolist() == [[5, 5, 6], [8, 9, 9]]
    keys = jax.random.split(jax.random.key(0), (2, 3))
    assert to_tokens(keys, segment)[1, 3] == keys[1, 2]


def test_an_average_over_something_else_is_refused():
    with pytest.raises(ValueError, match="'clips' or 'tokens', not 'rows'"):
        PackedLoss(DiscreteLinear(), average='rows')
