"""BERT's encoder at a tiny size, with random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.text.bert import Bert, bert_params

MODULE = Bert(tokens=20, positions=8, width=12, depth=2, heads=3, hidden=16)


@pytest.fixture(scope='module')
def ids_BS():
    return np.random.default_rng(0).integers(0, 20, (2, 6))


@pytest.fixture(scope='module')
def params(random_parameters, ids_BS):
    return random_parameters(MODULE, ids_BS, jnp.ones((2, 6), bool))


@pytest.fixture(scope='module')
def states(params):
    apply = jax.jit(MODULE.apply)
    return lambda ids, mask: np.asarray(apply({'params': params}, ids, mask))


def state_dict(params):
    """The parameters as BertModel has them: matrices (out, in), queries, keys and values apart, a segment's vector."""
    arrays = {}

    def put(name, weight, bias=None):
        arrays[f'{name}.weight'] = np.asarray(weight)
        if bias is not None:
            arrays[f'{name}.bias'] = np.asarray(bias)

    segments = np.arange(2 * 12, dtype=np.float32).reshape(2, 12)
    put('embeddings.word_embeddings', params['tokens'])
    put('embeddings.position_embeddings', params['positions'] - segments[0])
    put('embeddings.token_type_embeddings', segments)
    put('embeddings.LayerNorm', params['norm']['scale'], params['norm']['bias'])
    for number in range(2):
        prefix, layer = f'encoder.layer.{number}', params[f'layer_{number}']
        for place, part in enumerate(('query', 'key', 'value')):
            kernel, bias = layer['qkv']['kernel'][:, place], layer['qkv']['bias'][place]
            put(f'{prefix}.attention.self.{part}', kernel.reshape(12, 12).T, bias.reshape(12))
        put(f'{prefix}.attention.output.dense', layer['out']['kernel'].reshape(12, 12).T, layer['out']['bias'])
        put(f'{prefix}.intermediate.dense', layer['up']['kernel'].T, layer['up']['bias'])
        put(f'{prefix}.output.dense', layer['down']['kernel'].T, layer['down']['bias'])
        for theirs, ours in (('attention.output.LayerNorm', 'attention_norm'), ('output.LayerNorm', 'mlp_norm')):
            put(f'{prefix}.{theirs}', layer[ours]['scale'], layer[ours]['bias'])
    return arrays


def test_a_state_ignores_tokens_that_are_masked_out_and_sees_all_others(states, ids_BS):
    mask_BS = np.arange(6) < np.array([[4], [6]])
    changed = ids_BS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 20
    before, after = states(ids_BS, mask_BS), states(changed, mask_BS)
    np.testing.assert_array_equal(after[0, :4], before[0, :4])
    assert (np.abs(after[1] - before[1]).max(axis=-1) > 1e-4).all()


def test_the_order_of_tokens_matters(states, ids_BS):
    mask_BS = np.ones((2, 6), bool)
    turned = states(ids_BS[:, ::-1], mask_BS)[:, ::-1]
    assert np.abs(turned - states(ids_BS, mask_BS)).max() > 1e-2


def test_the_layout_of_transformers_becomes_ours(params):
    found = bert_params(state_dict(params), MODULE, 'file')
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, dict(params))


def test_another_network_is_refused_with_both_shapes(params):
    arrays = state_dict(params)
    arrays['encoder.layer.1.intermediate.dense.weight'] = np.zeros((17, 12))
    with pytest.raises(ValueError, match=r'dense\.weight of file has shape \(17, 12\), expected \(16, 12\)'):
        bert_params(arrays, MODULE, 'file')
