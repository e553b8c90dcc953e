"""The fused attention kernel on eight devices, of which two share the batch, the windows or queries, and the heads."""

import pytest
from test_many_devices import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def figures():
    return run('fused_attention.py')


def test_it_is_what_one_device_computes_forward_and_backward(figures):
    assert set(figures) == {'windows', 'queries', 'text'}
    for split, of in figures.items():
        assert of['error'] < 1e-6 * of['scale'], (split, of)


def test_only_what_leaves_the_heads_is_sent(figures):
    """Keys and values are whole where they come from here, and each device has the kernel's inputs already."""
    for split, of in figures.items():
        assert set(of['forward']) == {'all-reduce tensor'}, (split, of)
