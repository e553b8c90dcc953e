"""DiT's weights, imported: the values of diffusers' network, in the published names and in diffusers', both ways."""

import re

import foreign
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from walt import build
from walt.denoiser.dit import Dit
from walt.interop import dit
from walt.interop.table import flat

MODULE = Dit(latent_shape=(1, 8, 8, 4), classes=10, width=32, depth=2, heads=2, patch=2)
TABLES = {'original': dit.original, 'diffusers': dit.diffusers}


def abstract(module):
    return nn.unbox(jax.eval_shape(build.init_denoiser(module), jax.random.key(0)))['params']


def published(theirs, positions):
    """A state dict of diffusers in the names of the published code, as they say that theirs were made from it."""
    names = {
        'pos_embed.proj': 'x_embedder.proj',
        'transformer_blocks.0.norm1.emb.timestep_embedder.linear_1': 't_embedder.mlp.0',
        'transformer_blocks.0.norm1.emb.timestep_embedder.linear_2': 't_embedder.mlp.2',
        'transformer_blocks.0.norm1.emb.class_embedder.embedding_table': 'y_embedder.embedding_table',
        'proj_out_1': 'final_layer.adaLN_modulation.1',
        'proj_out_2': 'final_layer.linear',
    }
    joined = {}
    for block in range(2):
        there, here = f'transformer_blocks.{block}', f'blocks.{block}'
        names |= {
            f'{there}.norm1.linear': f'{here}.adaLN_modulation.1',
            f'{there}.attn1.to_out.0': f'{here}.attn.proj',
            f'{there}.ff.net.0.proj': f'{here}.mlp.fc1',
            f'{there}.ff.net.2': f'{here}.mlp.fc2',
        }
        joined[f'{here}.attn.qkv'] = [f'{there}.attn1.to_{part}' for part in 'qkv']
    state = {'pos_embed': positions}
    for kind in ('weight', 'bias'):
        found = {new: f'{old}.{kind}' for old, new in names.items() if f'{old}.{kind}' in theirs}
        state |= {f'{new}.{kind}': theirs[old] for new, old in found.items()}
        state |= {
            f'{new}.{kind}': np.concatenate([theirs[f'{old}.{kind}'] for old in parts]) for new, parts in joined.items()
        }
    return state


@pytest.fixture(scope='module')
def golden():
    return foreign.golden('dit')


@pytest.fixture(scope='module')
def states(golden):
    """The same weights under both kinds of names."""
    theirs = foreign.dit_weights(foreign.shapes('dit'))
    return {'diffusers': theirs, 'original': published(theirs, golden['positions'])}


def load(names, states, **options):
    return TABLES[names](MODULE).load(states[names], abstract(MODULE), 'file', **options)


def prediction(params, z_BCHW, index_B, label_B):
    """In diffusers' layout, of the steps `index_B` of 0 .. 999."""
    z_BTHWC = np.moveaxis(z_BCHW, 1, -1)[:, None]
    t_B = jnp.asarray((index_B + 1) / 1000, jnp.float32)
    apply = jax.jit(lambda params, z, t, label: MODULE.apply({'params': params}, z, t, {'label': label}))
    return np.moveaxis(apply(params, z_BTHWC, t_B, label_B)[:, 0], -1, 1)


@pytest.mark.parametrize('names', TABLES)
def test_predictions_are_those_of_diffusers(names, states, golden):
    """The null class among the labels, and the first and the last step."""
    made = prediction(load(names, states), golden['z'], golden['index'], golden['label'])
    np.testing.assert_allclose(made, golden['prediction'], atol=1e-4)


def test_both_kinds_of_names_give_the_same_parameters(states):
    one, other = (flat(load(names, states)) for names in TABLES)
    assert set(one) == set(other)
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], strict=True)


@pytest.mark.parametrize('names', TABLES)
def test_import_export_import_is_the_identity(names, states):
    params = load(names, states)
    exported = TABLES[names](MODULE).export(params)
    assert set(exported) == set(states[names])
    for name, array in states[names].items():
        tolerance = 1e-6 if name == 'pos_embed' else 0
        np.testing.assert_allclose(exported[name], array, rtol=0, atol=tolerance)
        assert exported[name].shape == array.shape
    again = flat(load(names, {names: exported}))
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(again[path], leaf, strict=True)


def test_names_and_shapes_of_dit_xl_2_are_those_of_diffusers():
    module = Dit(latent_shape=(1, 32, 32, 4))
    exported = jax.eval_shape(dit.diffusers(module).export, abstract(module))
    assert {name: leaf.shape for name, leaf in exported.items()} == foreign.shapes('dit_xl_2')


def test_the_parameters_of_dit_xl_2_in_the_published_names_are_as_many_as_published():
    module = Dit(latent_shape=(1, 32, 32, 4))
    exported = jax.eval_shape(dit.original(module).export, abstract(module))
    assert sum(leaf.size for leaf in exported.values()) == 675_129_632
    assert exported['pos_embed'].shape == (1, 256, 1152)


def test_embedders_that_are_not_copies_of_one_are_refused_by_name(states):
    name = 'transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias'
    state = states['diffusers'] | {name: states['diffusers'][name] + 1}
    with pytest.raises(ValueError, match=re.escape(f'{name} differs from {name.replace(".1.", ".0.", 1)}, of which')):
        load('diffusers', {'diffusers': state})


def test_a_table_of_positions_may_be_that_of_a_moving_average_or_of_half_precision_but_no_other(states):
    state = states['original']
    for table in (state['pos_embed'] + 2e-4, *(state['pos_embed'].astype(d) for d in (np.float16, ml_dtypes.bfloat16))):
        load('original', {'original': state | {'pos_embed': table}})
    with pytest.raises(ValueError, match='pos_embed is 2 from what is computed here'):
        load('original', {'original': state | {'pos_embed': state['pos_embed'][:, ::-1]}})


def test_what_is_missing_on_purpose_starts_as_a_new_network_does(states):
    missing = ('final_layer.linear.weight', 'blocks.1.attn.qkv.weight')
    state = {name: array for name, array in states['original'].items() if name not in missing}
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, np.float32), abstract(MODULE))
    params = load('original', {'original': state}, allow_missing=missing, initial=lambda: initial)
    whole = load('original', states)
    np.testing.assert_array_equal(params['head']['linear']['kernel'], 7)
    kernel, bias = (params['blocks']['global']['attention']['qkv'][part] for part in ('kernel', 'bias'))
    np.testing.assert_array_equal(kernel[0], whole['blocks']['global']['attention']['qkv']['kernel'][0])
    np.testing.assert_array_equal(kernel[1], 7)
    np.testing.assert_array_equal(bias, whole['blocks']['global']['attention']['qkv']['bias'])


def test_values_are_those_of_the_installed_diffusers_both_ways(states, rng):
    """Ours, exported, in their network; and new inputs."""
    pytest.importorskip('torch', reason="optional: pip install -e '.[interop]'")
    pytest.importorskip('diffusers', reason="optional: pip install -e '.[interop]'")
    import make_goldens

    params = jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.05 * rng.normal(size=leaf.shape), np.float32), load('original', states)
    )
    z_BCHW = rng.normal(size=(2, 4, 8, 8)).astype(np.float32)
    index_B, label_B = np.array([1, 777]), np.array([0, 10])
    theirs = make_goldens.dit(dit.diffusers(MODULE).export(params), z_BCHW, index_B, label_B)
    np.testing.assert_allclose(prediction(params, z_BCHW, index_B, label_B), theirs, atol=1e-4)
