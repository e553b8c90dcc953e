"""Figures for people, and parameters by part."""

import jax
import numpy as np

from walt.planning.report import byte_text, flop_text, million_text, parts, table


def test_parts_of_a_tree_sum_to_the_group_that_holds_them():
    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    tree = {
        'encoder': {
            'level0_block0': {'Conv_0': {'kernel': leaf(5)}, 'Conv_1': {'kernel': leaf(7)}},
            'level0_block1': {'Conv_0': {'kernel': leaf(11)}},
            'level1_block0': {'Conv_0': {'kernel': leaf(13)}},
            'norm': {'scale': leaf(2, 3)},
        },
        'label': {'table': leaf(3, 3)},
    }
    assert parts(tree, 1) == {'encoder': 42, 'label': 9}
    assert list(parts(tree, 2).items()) == [
        ('encoder', 42),
        ('encoder/level0_block', 23),
        ('encoder/level1_block', 13),
        ('encoder/norm', 6),
        ('label', 9),
    ]
    assert parts(tree, 3)['encoder/level0_block/Conv'] == 23


def test_figures_have_the_units_that_people_use():
    assert million_text(370_373_259) == '370.37M' and million_text(1_234) == '1,234'
    assert flop_text(2.5e9) == '2.50 G' and flop_text(37.84e12) == '37.84 T' and flop_text(5.66e18) == '5.66 E'
    assert byte_text(3 * 2**29) == '1.50 GiB' and byte_text(2**20) == '1.00 MiB'


def test_a_table_is_aligned_and_ends_with_its_notes():
    text = table({'tokenizer': {'a': '1', 'a/long name': '1,234'}, 'memory': {'b': '5'}}, ['the data is not counted'])
    assert text.splitlines() == [
        'tokenizer',
        '  a                1',
        '    long name  1,234',
        '',
        'memory',
        '  b                5',
        '',
        'Note: the data is not counted',
    ]
