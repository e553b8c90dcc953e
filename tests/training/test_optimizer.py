"""The optimizer: its learning rate by step, its clip, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from walt.training.optimizer import adamw


def steps_taken(optimizer, count):
    """How far each of `count` steps goes under a constant gradient, which is Adam's learning rate."""

    def one(opt_state, _):
        updates, opt_state = optimizer.update({'w': jnp.full(1, 0.5)}, opt_state, {'w': jnp.zeros(1)})
        return opt_state, -updates['w'][0]

    return jax.lax.scan(one, optimizer.init({'w': jnp.zeros(1)}), None, count)[1]


def test_learning_rate_rises_linearly_to_its_peak_and_falls_as_a_cosine():
    taken = steps_taken(adamw(steps=12, learning_rate=0.4, warmup_steps=4), 13)
    np.testing.assert_allclose(taken[:5], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-5)
    np.testing.assert_allclose(taken[4:], 0.2 * (1 + np.cos(np.pi * np.arange(9) / 8)), atol=1e-5)


def test_without_warm_up_the_first_step_is_at_the_peak():
    np.testing.assert_allclose(steps_taken(adamw(steps=4, learning_rate=0.4, warmup_steps=0), 1), 0.4, atol=1e-5)


@pytest.mark.parametrize('fraction', [0.1, 1.0])
def test_final_fraction_is_where_the_cosine_ends(fraction):
    optimizer = adamw(steps=6, learning_rate=0.4, warmup_steps=2, final_fraction=fraction)
    np.testing.assert_allclose(steps_taken(optimizer, 7)[-1], fraction * 0.4, atol=1e-5)


@pytest.mark.parametrize('warmup_steps', [-1, 4, 5])
def test_a_warm_up_that_does_not_fit_the_run_is_refused_with_both(warmup_steps):
    with pytest.raises(ValueError, match=f'warmup_steps {warmup_steps} .* 4 steps'):
        adamw(steps=4, learning_rate=1e-3, warmup_steps=warmup_steps)


def test_gradients_are_clipped_by_their_norm_together():
    """Two steps whose gradients differ in length only by what the clip takes off are the same."""
    optimizer = adamw(steps=2, learning_rate=0.1, warmup_steps=0, clip_norm=1.0, b2=0.9)
    params = {'a': jnp.zeros(2), 'b': jnp.zeros(2)}

    def after(scale):
        first = {'a': jnp.array([3.0, 0.0]) * scale, 'b': jnp.array([0.0, 4.0]) * scale}
        _, opt_state = optimizer.update(first, optimizer.init(params), params)
        updates, _ = optimizer.update({'a': jnp.full(2, 0.1), 'b': jnp.full(2, 0.1)}, opt_state, params)
        return np.concatenate([updates['a'], updates['b']])

    np.testing.assert_allclose(after(100.0), after(0.2), atol=1e-6)  # 0.2 * (3, 4) has length 1
    assert np.abs(after(100.0) - after(0.1)).max() > 1e-3


def test_weight_decay_shrinks_kernels_and_spares_biases_and_scales(small_denoiser, small_tokenizer):
    """Also where the biases of scanned layers are stacked, or a bias has an axis of heads."""
    optimizer = adamw(steps=4, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    attention, level = small_denoiser.params['blocks']['spatial']['attention'], small_tokenizer.params['decoder']
    params = attention | {name: level[name] for name in ('stem', 'head_norm', 'level0_adaptive')}
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(still, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(moved)):
        decayed = 0.95 if path[-1].key == 'kernel' else 1
        np.testing.assert_allclose(after, decayed * before, rtol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_moments_are_laid_out_as_their_parameters():
    """So that the optimizer is split over the devices as the parameters are."""
    boxed = {'w': nn.LogicallyPartitioned(jnp.zeros((2, 3)), ('embed', 'mlp'))}
    opt_state = adamw(steps=4, learning_rate=1e-3, warmup_steps=1).init(boxed)
    boxes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert [box.names for box in boxes if isinstance(box, nn.LogicallyPartitioned)] == [('embed', 'mlp')] * 2
