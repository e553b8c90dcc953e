"""Roofline arithmetic on small programs, where every figure can be told by hand."""

import dataclasses

import pytest

from walt.planning.chips import Chip
from walt.planning.hlo import parse
from walt.planning.roofline import roofline, work

CHIP = Chip('round', 'tpu', peak_flops=1e6, hbm_bytes=1e9, hbm_bandwidth=1e3, link_bandwidth=1.0, clock=1e3)


def module(entry: str, computations: str = ''):
    return parse(f'HloModule m\n\n{computations}\nENTRY %main (x: f32[100]) -> f32[100] {{\n{entry}\n}}\n')


def one(entry: str, computations: str = '', **bundles: int):
    return next(w for w in work(module(entry, computations), bundles) if w.name == 'r')


MATRICES = """  %a = f32[10,20]{1,0} parameter(0)
  %b = f32[20,30]{1,0} parameter(1)
"""


def test_a_product_takes_two_flops_a_multiplication_and_its_three_arrays():
    dot = '  ROOT %r = f32[10,30]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}'
    as_convolution = '  ROOT %r = f32[10,30]{1,0} convolution(%a, %b), dim_labels=bf_io->bf'
    for text in (dot, as_convolution):
        found = one(MATRICES + text)
        assert found.flops == 2 * 10 * 20 * 30
        assert found.bytes == 4 * (200 + 600 + 300)


def test_taps_on_padding_are_no_flops():
    text = """  %a = f32[1,5,2]{2,1,0} parameter(0)
  %b = f32[3,2,4]{2,1,0} parameter(1)
  ROOT %r = f32[1,5,4]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"""
    assert one(text).flops == 2 * (5 * 3 - 2) * 2 * 4


def test_a_product_is_as_slow_as_its_cycles_arithmetic_or_memory():
    product = MATRICES + '  ROOT %r = f32[10,30]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, CYCLES'
    seconds = one(product).seconds(CHIP)
    assert seconds == pytest.approx(4.4)  # 4400 bytes
    slow = one(product.replace('CYCLES', 'backend_config={"window_config":{"estimated_cycles":"9000"}}'))
    assert (slow.seconds(CHIP), slow.seconds(CHIP, at_best=True)) == (pytest.approx(9.0), pytest.approx(4.4))


def test_of_two_estimates_of_a_product_the_smaller_counts_and_the_cores_share_a_schedule():
    config = '"window_config":{"estimated_cycles":"9000","iteration_bounds":["4","10","2"]}'
    product = f'{MATRICES}  ROOT %r = f32[10,30]{{1,0}} dot(%a, %b), backend_config={{{config}}}'
    product = product.replace('dot(%a, %b)', 'convolution(%a, %b), dim_labels=bf_io->bf')
    two = dataclasses.replace(CHIP, cores=2)
    assert one(product, r=100).seconds(CHIP) == pytest.approx(8.0)  # 100 bundles, 80 turns
    assert one(product, r=200).seconds(CHIP) == pytest.approx(9.0)
    assert one(product, r=200).seconds(two) == pytest.approx(8.0)
    assert one(product, r=200).seconds(two, at_best=True) == pytest.approx(4.4)


def test_vector_work_takes_its_schedule_and_early_estimates_are_of_products_only():
    text = """  %a = f32[100]{0} parameter(0)
  ROOT %r = f32[100]{0} negate(%a), backend_config={"window_config":{"estimated_cycles":"9000",\
"iteration_bounds":["3"]}}"""
    assert one(text).seconds(CHIP) == pytest.approx(0.8)
    assert one(text, r=500).seconds(CHIP) == pytest.approx(1.5)
    assert roofline(module(text), CHIP, {'r': 500}).memory == pytest.approx(1.5)
    assert roofline(module(text), CHIP, {'r': 500}).at_best == pytest.approx(0.8)


SLICED = """%f (p: f32[10,100], i: s32[]) -> f32[1,100] {
  %p = f32[10,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = f32[1,100]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,100}
}
"""
UPDATED = """%f (p: f32[10,100], u: f32[1,100], i: s32[]) -> f32[10,100] {
  %p = f32[10,100]{1,0} parameter(0)
  %u = f32[1,100]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %s = f32[10,100]{1,0} dynamic-update-slice(%p, %u, %i, %z)
}
"""


def test_of_stacked_layers_only_the_slice_is_read_or_written():
    read = """  %x = f32[10,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %r = f32[1,100]{1,0} fusion(%x, %i), kind=kLoop, calls=%f"""
    assert one(read, SLICED).bytes == 400 + 4 + 400
    nested = (
        SLICED
        + """%g (p: f32[10,100], i: s32[]) -> f32[1,100] {
  %p = f32[10,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,100]{1,0} fusion(%p, %i), kind=kLoop, calls=%f
}
"""
    )
    assert one(read.replace('%f', '%g'), nested).bytes == 400 + 4 + 400
    written = """  %x = f32[10,100]{1,0} parameter(0)
  %u = f32[1,100]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = f32[10,100]{1,0} fusion(%x, %u, %i), kind=kLoop, calls=%f"""
    assert one(written, UPDATED).bytes == 400 + 400 + 4


def test_what_lies_in_the_cores_own_memory_costs_no_bandwidth_but_its_copy_does():
    text = """  %a = f32[100]{0} parameter(0)
  %c = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%a)
  %d = f32[100]{0:S(1)} copy-done(%c)
  ROOT %r = f32[100]{0} negate(%d)"""
    found = {w.name: w for w in work(module(text))}
    assert set(found) == {'c', 'r'}
    assert (found['r'].bytes, found['c'].bytes) == (400, 400)
    assert found['c'].seconds(CHIP) == 0
    # 800 bytes in all, though the one instruction that takes time moves half of them.
    assert roofline(module(text), CHIP).seconds == pytest.approx(0.8)


def test_a_kernel_says_its_flops_and_its_steps():
    """110 bundles in each of 200 steps are 22 cycles of one core; of two, 11."""
    text = """  %a = f32[100]{0} parameter(0)
  ROOT %r = f32[100]{0} custom-call(%a), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"steps":"200"
}}, metadata={op_name="jit(f)/kernel/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":\
{"flops":"900000","transcendentals":"2048","bytes_accessed":"800"}}}"""
    chips = [dataclasses.replace(CHIP, clock=1e4, cores=cores) for cores in (1, 2)]
    known, unknown = one(text, r=110), one(text)
    assert known.flops == unknown.flops == 900000
    assert [known.seconds(chip) for chip in chips] == [pytest.approx(2.2), pytest.approx(1.1)]
    assert unknown.seconds(chips[0]) == known.seconds(chips[0], at_best=True) == pytest.approx(0.9)


def test_what_is_scheduled_once_for_several_instructions_counts_for_each():
    text = """  %a = f32[100]{0} parameter(0)
  %b = f32[100]{0} negate(%a)
  %c = f32[100]{0:T(128)} negate(%b)
  ROOT %r = f32[100]{0} negate(%b)"""
    found = {w.name: w.bundles for w in work(module(text), {'b': 7})}
    assert found == {'b': 7, 'r': 7, 'c': 0}  # c lies otherwise


def test_collectives_that_nothing_waits_for_hide_behind_the_rest():
    text = """  %a = f32[100]{0} parameter(0)
  ROOT %r = f32[100]{0} negate(%a)"""
    alone = roofline(module(text), CHIP)
    assert (alone.seconds, alone.products, alone.exposed) == (pytest.approx(0.8), 0, 0)
    assert roofline(module(text), CHIP, hidden=0.5).seconds == pytest.approx(0.8)
    waited = roofline(module(text), CHIP, hidden=2.0)
    assert waited.seconds == waited.at_best == pytest.approx(2.0)
    both = roofline(module(text), CHIP, hidden=2.0, exposed=1.0)
    assert (both.seconds, both.exposed) == (pytest.approx(3.0), pytest.approx(2.2))
