"""T5's encoder on random weights: transformers' states, and its names in both directions."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from interop import foreign

from walt.interop.table import flat
from walt.text.t5 import module_of
from walt.text.t5_network import buckets, of_encoder, table


@functools.cache
def module(kind):
    return module_of(foreign.T5_CONFIGS[kind], kind)


@functools.cache
def theirs(kind):
    return of_encoder(foreign.t5_weights(kind), kind)


@functools.cache
def params(kind):
    ids_BS = np.zeros((1, 1), int)
    shapes = jax.eval_shape(module(kind).init, jax.random.key(0), ids_BS, ids_BS == 0)['params']
    return table(module(kind)).load(theirs(kind), nn.unbox(shapes), kind)


@functools.cache
def states(kind):
    apply = jax.jit(module(kind).apply)
    return lambda ids, mask: np.asarray(apply({'params': params(kind)}, np.array([ids]), np.array([mask])))[0]


def ids_of(prompt):
    return [foreign.T5_WORDS.index(word) for word in prompt.split()] + [1]


@pytest.mark.parametrize('kind', foreign.T5_CONFIGS)
def test_states_are_those_of_transformers(kind):
    """All prompts, by one program: short ones are padded with a word."""
    golden, longest = foreign.golden(kind), max(map(len, map(ids_of, foreign.T5_PROMPTS)))
    assert np.unique(buckets(longest)).size == 31  # 0 is its own bucket on one side only
    for number, prompt in enumerate(foreign.T5_PROMPTS):
        ids, expected = ids_of(prompt), golden[f'states{number}']
        padding = longest - len(ids)
        found = states(kind)(ids + [5] * padding, [True] * len(ids) + [False] * padding)
        np.testing.assert_allclose(found[: len(ids)], expected, atol=1e-4)
        assert expected.std() > 0.3


@pytest.mark.parametrize('kind', foreign.T5_CONFIGS)
def test_import_export_import_is_the_identity(kind):
    exported = table(module(kind)).export(params(kind))
    assert set(exported) == set(theirs(kind))
    for name, array in theirs(kind).items():
        np.testing.assert_array_equal(exported[name], array, strict=True)
    again = flat(table(module(kind)).load(exported, params(kind), 'export'))
    for path, leaf in flat(params(kind)).items():
        np.testing.assert_array_equal(again[path], leaf, strict=True)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'encoder.block.1.layer.0.SelfAttention.q.weight': None}, r'missing: .*1\.layer\.0\.SelfAttention\.q\.weight'),
        ({'encoder.block.2.layer_norm.weight': np.zeros(16)}, r'not expected: encoder\.block\.2\.layer_norm\.weight'),
        ({'shared.weight': np.zeros((9, 16))}, r'shape: shared\.weight \(9, 16\), expected \(8, 16\)'),
    ],
    ids=['missing', 'unexpected', 'shape'],
)
def test_every_array_is_accounted_for(change, message):
    arrays = {name: array for name, array in (theirs('t5') | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        table(module('t5')).load(arrays, params('t5'), 'file')


def test_of_a_whole_model_the_encoder_is_taken():
    """Under either name of its table of tokens, which must not differ."""
    encoder, second = theirs('t5'), 'encoder.embed_tokens.weight'
    decoder = {'decoder.block.0.layer.0.layer_norm.weight': np.ones(16), 'lm_head.weight': np.ones((8, 16))}
    for arrays in (encoder | decoder, encoder | {second: encoder['shared.weight']}):
        assert set(of_encoder(arrays, 'file')) == set(encoder)
    only_second = {second if name == 'shared.weight' else name: array for name, array in encoder.items()}
    assert of_encoder(only_second, 'file')['shared.weight'] is encoder['shared.weight']
    with pytest.raises(ValueError, match=r'file: shared\.weight and encoder\.embed_tokens\.weight differ'):
        of_encoder(encoder | {second: encoder['shared.weight'] + 1}, 'file')


@pytest.mark.parametrize('kind', foreign.T5_CONFIGS)
def test_states_are_those_of_the_installed_transformers_both_ways(kind, rng):
    """Ours, exported, in their network; and new words."""
    torch = pytest.importorskip('torch', reason="optional: pip install -e '.[interop]'")
    for library in ('transformers', 'diffusers'):
        pytest.importorskip(library, reason="optional: pip install -e '.[interop]'")
    from interop import make_goldens

    ours = jax.tree.map(lambda leaf: np.asarray(leaf + 0.05 * rng.normal(size=leaf.shape), np.float32), params(kind))
    arrays = table(module(kind)).export(ours)
    network = make_goldens.with_weights(
        make_goldens.t5_encoder(kind), arrays | {'encoder.embed_tokens.weight': arrays['shared.weight']}
    )
    ids_BS, mask_BS = rng.integers(0, 8, (2, 40)), np.arange(40) < np.array([[40], [25]])
    with torch.no_grad():
        tensors = {'input_ids': torch.tensor(ids_BS), 'attention_mask': torch.tensor(mask_BS).long()}
        expected = network(**tensors).last_hidden_state.numpy()
    found = module(kind).apply({'params': ours}, ids_BS, mask_BS)
    np.testing.assert_allclose(np.asarray(found)[mask_BS], expected[mask_BS], atol=1e-4)
