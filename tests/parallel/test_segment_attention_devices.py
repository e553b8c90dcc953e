"""Attention in packed rows where devices share rows and heads."""

import pytest
from test_many_devices import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def figures():
    return run('segment_attention.py')


def test_it_is_what_one_device_computes_forward_and_backward(figures):
    assert set(figures) == {'mask', 'splash'}
    for way, of in figures.items():
        assert of['error'] < 1e-6 * of['scale'], (way, of)


def test_only_what_leaves_the_heads_is_sent(figures):
    for way, of in figures.items():
        assert set(of['forward']) == {'all-reduce tensor'}, (way, of)
