"""Tables of names: what a row does in both directions, and that every array is accounted for."""

import re

import ml_dtypes
import numpy as np
import pytest

from walt.interop.table import Fixed, Row, Table, flat, nested

TABLE = Table(
    [
        Row('layer.{L}.{S}.weight', 'layers/qkv', 'L S (N K) D -> L D S N K'),
        Row('layer.{L}.mod', 'layers/modulation', 'L (V E) -> L V E', {'V': (2, 0, 1)}),
        Row('layer.{L}.embed', 'embed', 'L O I -> I O'),
        Row('head', 'head/kernel', 'O -> O'),
    ],
    slots={'L': ('0', '1', '2'), 'S': ('q', 'k')},
    sizes={'N': 2, 'E': 5},
    fixed=[Fixed('table', np.arange(6, dtype=np.float32).reshape(2, 3), 1e-6)],
)
SHAPES = {'layers/qkv': (3, 4, 2, 2, 3), 'layers/modulation': (3, 3, 5), 'embed': (7, 4), 'head/kernel': (2,)}
OURS = nested({path: np.zeros(shape, np.float32) for path, shape in SHAPES.items()})


@pytest.fixture
def theirs(rng):
    arrays = {'head': rng.normal(size=2), 'table': TABLE.fixed[0].values}
    embed = rng.normal(size=(4, 7))
    for layer in '012':
        arrays |= {f'layer.{layer}.{part}.weight': rng.normal(size=(6, 4)) for part in 'qk'}
        arrays |= {f'layer.{layer}.mod': rng.normal(size=15), f'layer.{layer}.embed': embed}
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def test_a_row_stacks_splits_and_turns(theirs):
    params = flat(TABLE.load(theirs, OURS, 'file'))
    for layer in range(3):
        for number, part in enumerate('qk'):
            heads_NKD = theirs[f'layer.{layer}.{part}.weight'].reshape(2, 3, 4)
            np.testing.assert_array_equal(params['layers/qkv'][layer, :, number], np.moveaxis(heads_NKD, -1, 0))
        one, two, three = theirs[f'layer.{layer}.mod'].reshape(3, 5)
        np.testing.assert_array_equal(params['layers/modulation'][layer], [three, one, two])
    np.testing.assert_array_equal(params['embed'], theirs['layer.0.embed'].T)


def test_the_way_out_undoes_the_way_in(theirs, rng):
    exported = TABLE.export(TABLE.load(theirs, OURS, 'file'))
    assert set(exported) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(exported[name], array, strict=True)
    ours = nested({path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()})
    again = flat(TABLE.load(TABLE.export(ours), ours, 'file'))
    for path, leaf in flat(ours).items():
        np.testing.assert_array_equal(again[path], leaf, strict=True)


def test_everything_that_does_not_fit_is_listed_at_once(theirs):
    theirs |= {'head': theirs['head'][:1], 'more': np.zeros(3), 'layer.1.mod': np.full(15, np.nan, np.float32)}
    theirs['layer.2.mod'] = np.arange(15)
    del theirs['layer.0.q.weight'], theirs['table']
    with pytest.raises(ValueError, match='file does not fit') as error:
        TABLE.load(theirs, OURS, 'file', allow_missing=['head*'])
    assert sorted(str(error.value).splitlines()[1:]) == [
        '  layer.1.mod has numbers that are not finite',
        '  layer.2.mod is of int64, expected float32',
        '  missing: layer.0.q.weight (6, 4)',
        '  missing: table (2, 3)',
        '  not expected: more (3,)',
        "  nothing that is missing fits 'head*'",
        '  shape: head (1,), expected (2,)',
    ]


def test_values_that_must_be_what_they_are_not_are_listed_at_once(theirs):
    theirs |= {
        'table': theirs['table'] + 1e-3,
        'layer.1.embed': -theirs['layer.1.embed'],
        'layer.2.embed': np.ones((4, 7)),
    }
    with pytest.raises(ValueError, match='file does not fit') as error:
        TABLE.load(theirs, OURS, 'file')
    assert str(error.value).splitlines()[1:] == [
        '  table is 0.001 from what is computed here, at most 1e-06 is allowed',
        '  layer.1.embed differs from layer.0.embed, of which it should be a copy',
        '  layer.2.embed differs from layer.0.embed, of which it should be a copy',
    ]


def test_what_may_be_missing_comes_from_the_initial_parameters(theirs):
    del theirs['layer.1.k.weight'], theirs['head']
    initial = nested({path: np.full(shape, 3, np.float32) for path, shape in SHAPES.items()})
    params = TABLE.load(theirs, OURS, 'file', ['layer.?.k.*', 'head'], lambda: initial)
    np.testing.assert_array_equal(params['head']['kernel'], 3)
    np.testing.assert_array_equal(params['layers']['qkv'][1, :, 1], 3)
    assert (params['layers']['qkv'] == 3).sum() == 24


@pytest.mark.parametrize('dtype', [np.float64, np.float16, ml_dtypes.bfloat16], ids=str)
def test_other_precisions_become_float32(theirs, dtype):
    params = flat(TABLE.load({name: array.astype(dtype) for name, array in theirs.items()}, OURS, 'file'))
    assert {leaf.dtype for leaf in params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params['head/kernel'], theirs['head'].astype(dtype).astype(np.float32))


def test_parameters_that_are_not_the_tables_are_not_exported(theirs):
    ours = flat(OURS)
    with pytest.raises(ValueError, match=re.escape("differ in ['head/kernel', 'tail']")):
        TABLE.export(nested({'tail' if path == 'head/kernel' else path: leaf for path, leaf in ours.items()}))


def test_a_table_with_a_name_twice_is_refused():
    for rows in (
        [Row('a', 'x', 'C -> C'), Row('a', 'y', 'C -> C')],
        [Row('a', 'x', 'C -> C'), Row('b', 'x', 'C -> C')],
    ):
        with pytest.raises(ValueError, match=r"has \['[ax]'\] twice"):
            Table(rows)
