"""The table of chips: figures that hang together."""

import pytest

from walt.planning.chips import CHIPS, chip_of

# FLOPs that the matrix units do in a cycle: units x rows x columns x products a cycle x 2.
A_CYCLE = {'v5e': 4 * 128**2 * 2, 'v5p': 8 * 128**2 * 2, 'v6e': 2 * 256**2 * 2 * 2}


@pytest.mark.parametrize('name', A_CYCLE)
def test_a_tpus_clock_is_its_peak_over_what_it_does_in_a_cycle(name):
    chip = CHIPS[name]
    assert chip.vendor == 'tpu' and chip.torus and chip.wraps
    assert chip.clock * A_CYCLE[name] == pytest.approx(chip.peak_flops, rel=0.005)


@pytest.mark.parametrize('chip', CHIPS.values(), ids=CHIPS)
def test_figures_are_in_flops_bytes_and_seconds(chip):
    assert 1e14 < chip.peak_flops < 1e16
    assert 1e10 < chip.hbm_bytes < 1e12
    assert 1e11 < chip.hbm_bandwidth < 1e13
    # Matrices of a few hundred to a few thousand keep every one of them busy.
    assert 100 < chip.peak_flops / chip.hbm_bandwidth < 1000
    assert (chip.clock > 0) == (chip.vendor == 'tpu')


@pytest.mark.parametrize(
    ('device_kind', 'name'),
    [
        ('TPU v5', 'v5p'),
        ('TPU v5p', 'v5p'),
        ('TPU v5 lite', 'v5e'),
        ('TPU v5e', 'v5e'),
        ('TPU v6 lite', 'v6e'),
        ('TPU v6e', 'v6e'),
        ('NVIDIA A100-SXM4-80GB', 'a100'),
        ('NVIDIA H100 80GB HBM3', 'h100'),
        ('NVIDIA H200', 'h200'),
    ],
)
def test_a_chip_is_found_by_the_name_that_jax_has_for_it(device_kind, name):
    assert chip_of(device_kind) is CHIPS[name]


@pytest.mark.parametrize('device_kind', ['cpu', 'TPU v4', 'NVIDIA H100 PCIe', 'NVIDIA H200 NVL', 'v5p', ''])
def test_a_chip_that_is_not_in_the_table_is_none_however_like_its_name_is(device_kind):
    assert chip_of(device_kind) is None


def test_the_interconnect_of_a_chip_is_the_published_sum_of_its_links():
    """Both directions of all links, in GB/s."""
    published = {'v5e': 400, 'v5p': 1200, 'v6e': 800, 'a100': 600, 'h100': 900, 'h200': 900}
    for name, total in published.items():
        chip = CHIPS[name]
        links = 2 * chip.torus or 1
        assert 2 * links * chip.link_bandwidth == total * 1e9
