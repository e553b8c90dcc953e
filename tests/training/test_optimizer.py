"""The optimizers: learning rate by step, clip, what decays, which way a step goes, what is kept between steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from walt.build import init_denoiser
from walt.denoiser.walt import Walt
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import DiscreteLinear
from walt.training.conditions import Conditioning
from walt.training.denoiser_step import make_denoiser_step
from walt.training.optimizer import adafactor, adamw, muon
from walt.training.parameters import in_out_axes, names
from walt.training.state import State

EVERY = pytest.mark.parametrize('optimizer', [adamw, adafactor, muon], ids=lambda optimizer: optimizer.__name__)


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


@EVERY
@pytest.mark.parametrize('warmup_steps', [-1, 4, 5])
def test_a_warm_up_that_does_not_fit_the_run_is_refused_with_both(warmup_steps, optimizer):
    with pytest.raises(ValueError, match=f'warmup_steps {warmup_steps} .* 4 steps'):
        optimizer(steps=4, learning_rate=1e-3, warmup_steps=warmup_steps)


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


@EVERY
def test_weight_decay_shrinks_kernels_and_spares_biases_and_scales(optimizer, small_denoiser, small_tokenizer):
    """Also where the biases of scanned layers are stacked, or a bias has an axis of heads."""
    optimizer = optimizer(steps=4, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    spatial, level = small_denoiser.params['blocks']['spatial'], small_tokenizer.params['decoder']
    params = {'blocks': {'spatial': {name: spatial[name] for name in ('attention', 'lora')}}}
    params |= {name: level[name] for name in ('stem', 'head_norm', 'level0_adaptive')}
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(still, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(moved)):
        decayed = 0.95 if path[-1].key == 'kernel' else 1
        np.testing.assert_allclose(after, decayed * before, rtol=1e-5, err_msg=jax.tree_util.keystr(path))


# The programs' runs train by AdamW; what Adafactor does to a gradient is tested above.
@pytest.mark.parametrize(
    'optimizer', [muon, *(pytest.param(each, marks=pytest.mark.slow) for each in (adamw, adafactor))]
)
def test_every_optimizer_trains_a_denoiser(optimizer, small_denoiser):
    """The loss of one batch at fixed times and noise falls below two thirds within forty steps."""
    denoiser, loss = small_denoiser.module, DenoisingLoss(DiscreteLinear(), self_conditioning=0.0)
    optimizer = optimizer(steps=41, learning_rate=0.02, warmup_steps=1, final_fraction=1.0)
    params = small_denoiser.params
    state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params), params)
    step = make_denoiser_step(denoiser, loss, optimizer, 0.9, Conditioning(DiscreteLinear(), dropout=0.0))
    z = np.random.default_rng(0).normal(size=(1, *denoiser.latent_shape)).astype(np.float32)
    batch = {'z': jnp.asarray(np.repeat(z, 8, axis=0)), 'label': jnp.full(8, 3)}

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda state, _: step(state, None, batch, jax.random.key(0)), state, None, 40)

    _, metrics = train(state)
    losses = metrics['loss']
    assert np.isfinite(losses).all() and losses[-1] < 0.66 * losses[0], losses[[0, 10, 20, 30, 39]]


def boxed_names(opt_state):
    boxes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return [box.names for box in boxes if isinstance(box, nn.LogicallyPartitioned) and jax.tree.leaves(box)]


def test_moments_are_laid_out_as_their_parameters():
    """So that the optimizer is split over the devices as the parameters are."""
    boxed = {'w': nn.LogicallyPartitioned(jnp.zeros((2, 3)), ('embed', 'mlp'))}
    opt_state = adamw(steps=4, learning_rate=1e-3, warmup_steps=1).init(boxed)
    assert boxed_names(opt_state) == [('embed', 'mlp')] * 2


def test_factored_moments_are_laid_out_as_the_axes_that_they_keep():
    box = nn.LogicallyPartitioned(jnp.zeros((2, 12, 3, 2, 2)), ('layers', 'embed', None, 'heads', 'head'))
    opt_state = adafactor(steps=4, learning_rate=1e-3, warmup_steps=1, min_side=2).init(
        {'blocks': {'kernel': box, 'bias': box}}
    )
    # In alphabetical order: each of the bias; columns and rows of the kernel.
    assert boxed_names(opt_state) == [box.names, ('layers', None, 'heads', 'head'), ('layers', 'embed')]


def test_muons_momentum_is_laid_out_as_the_matrices_and_adams_as_the_rest():
    def box(shape, names):
        return nn.LogicallyPartitioned(jnp.zeros(shape), names)

    mlp = {'up': {'kernel': box((2, 3, 4), ('layers', 'embed', 'mlp')), 'bias': box((2, 4), ('layers', 'mlp'))}}
    opt_state = muon(steps=4, learning_rate=1e-3, warmup_steps=1).init({'blocks': {'mlp': mlp}})
    assert boxed_names(opt_state) == [('layers', 'embed', 'mlp')] + [('layers', 'mlp')] * 2


@pytest.mark.parametrize(('parameter_scale', 'threshold'), [(False, 0.9), (True, 0.9), (False, 100.0)])
def test_adafactor_is_that_of_optax_on_plain_matrices(parameter_scale, threshold, rng):
    """Two steps, clipped by their RMS or not, of parameters of which one is zero."""
    params = {'kernel': rng.normal(size=(6, 5)), 'zero': np.zeros((4, 4)), 'bias': rng.normal(size=5)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    options = {
        'clipping_threshold': threshold,
        'multiply_by_parameter_scale': parameter_scale,
        'min_dim_size_to_factor': 5,
    }
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adafactor(0.1, **options))
    ours = adafactor(
        steps=9,
        learning_rate=0.1,
        warmup_steps=0,
        final_fraction=1.0,
        clip_threshold=threshold,
        parameter_scale=parameter_scale,
        min_side=5,
    )
    states = [optimizer.init(params) for optimizer in (theirs, ours)]
    for size in (1.0, 30.0):
        gradients = {key: jnp.asarray(rng.normal(0.0, size, x.shape), jnp.float32) for key, x in params.items()}
        updates = []
        for i, optimizer in enumerate((theirs, ours)):
            update, states[i] = optimizer.update(gradients, states[i], params)
            updates.append(update)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), *updates)


@pytest.mark.parametrize('optimizer', [adafactor, muon])
def test_stacked_layers_move_as_they_would_apart(optimizer, rng):
    """Of very different size, so that a mean over both would show; the clip of the whole gradient is out of the way."""
    options = {'min_side': 6, 'parameter_scale': True} if optimizer is adafactor else {}
    optimizer = optimizer(steps=4, learning_rate=0.1, warmup_steps=0, clip_norm=1e9, **options)

    def tree():
        def part(*shape):
            size = np.array([1.0, 50.0]).reshape(-1, *[1] * len(shape))
            return jnp.asarray(size * rng.normal(size=(2, *shape)), jnp.float32)

        attention = {'qkv': {'kernel': part(6, 3, 2, 3)}, 'out': {'kernel': part(2, 3, 6), 'bias': part(6)}}
        return {'blocks': {'attention': attention}}

    @jax.jit
    def update(gradients, params):
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    params, gradients = tree(), tree()
    first = update(*jax.tree.map(lambda x: x[:1], (gradients, params)))
    second = update(*jax.tree.map(lambda x: x[1:], (gradients, params)))
    apart = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), update(gradients, params), apart)


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_adafactor_keeps_less_than_a_fiftieth_of_a_full_size_model_and_adamw_twice_of_it():
    """W.A.L.T-L in shapes; heads of 64 numbers do not keep attention from being factored."""
    denoiser = Walt(latent_shape=(5, 16, 16, 8), classes=101)
    params = jax.eval_shape(init_denoiser(denoiser), jax.random.key(0))['params']
    kept = {
        optimizer: bytes_of(jax.eval_shape(optimizer(steps=4, learning_rate=1e-3, warmup_steps=1).init, params))
        for optimizer in (adamw, adafactor, muon)
    }
    assert kept[adafactor] < 0.02 * bytes_of(params)
    assert kept[adamw] == pytest.approx(2 * bytes_of(params), rel=1e-4)
    assert kept[muon] < 1.1 * bytes_of(params)


def singular_values(update, path):
    """Of every matrix in a kernel that `in_out_axes` knows, (matrices, values), and the matrix's greater side."""
    inputs, outputs = in_out_axes(path)
    batch = [axis for axis in range(-update.ndim, 0) if axis not in inputs + outputs]
    ordered = np.transpose(update, [*batch, *inputs, *outputs])
    shape = [np.prod([update.shape[axis] for axis in axes], dtype=int) for axes in (batch, inputs, outputs)]
    return np.linalg.svd(ordered.reshape(shape), compute_uv=False), max(shape[1:])


def test_a_step_of_muon_is_an_orthogonal_matrix_for_each_layer_and_each_of_q_k_and_v(small_denoiser, rng):
    """Singular values are around 1, in units of 0.2 sqrt(greater side) learning rates, but for a few that were next to
    nothing in the gradient."""
    params = small_denoiser.params
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    optimizer = muon(steps=4, learning_rate=0.1, warmup_steps=0, clip_norm=1e9)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    matrices, values = {}, []
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        if in_out_axes(path):
            of_kernel, side = singular_values(update, path)
            matrices['/'.join(names(path)[2:-1])] = len(of_kernel)
            values.extend(of_kernel.ravel() / (0.1 * 0.2 * side**0.5))
        else:  # Adam's first step is one learning rate.
            np.testing.assert_allclose(np.abs(update), 0.1, rtol=1e-3)
    assert matrices == {'attention/qkv': 6, 'attention/out': 2, 'mlp/up': 2, 'mlp/down': 2}
    assert max(values) < 1.3 and np.mean(np.array(values) < 0.6) < 0.05


def test_muon_refuses_parameters_without_a_transformer(small_tokenizer):
    with pytest.raises(ValueError, match=r"'blocks'; the parameters are \['decoder', 'encoder'"):
        muon(steps=4, learning_rate=0.1, warmup_steps=0).init(small_tokenizer.params)


def test_a_projection_of_unknown_axes_is_refused_by_its_path():
    params = {'blocks': {'attention': {'gate': {'kernel': jnp.zeros((2, 3, 3))}}}}
    with pytest.raises(ValueError, match=r'blocks/attention/gate/kernel are unknown; projections are .*qkv'):
        muon(steps=4, learning_rate=0.1, warmup_steps=0).init(params)
