"""HLO texts, read: arrays with their padding, attributes, and how often instructions run."""

import pytest

from walt.planning.hlo import arrays, parse

# What compilers for TPUs write: the length of a loop is the constant that its counter is compared with.
NESTED = """HloModule nested, is_scheduled=true

%fused (p.0: f32[4]) -> f32[4] {
  %p.0 = f32[4]{0} parameter(0)
  ROOT %neg.0 = f32[4]{0} negate(%p.0)
}

%inner_body (t.0: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t.0 = (s32[]{:T(128)}, f32[4]{0}) parameter(0)
  %g.0 = f32[4]{0} get-tuple-element(%t.0), index=1
  %i.0 = s32[]{:T(128)} get-tuple-element(%t.0), index=0
  %step = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i.0, %step)
  %inner = f32[4]{0} fusion(%g.0), kind=kLoop, calls=%fused, metadata={op_name="a, b=c{" id=1}
  ROOT %r.0 = (s32[], f32[4]) tuple(%next, %inner)
}

%inner_condition (t.1: (s32[], f32[4])) -> pred[] {
  %t.1 = (s32[], f32[4]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(3)
  %g.1 = s32[] get-tuple-element(%t.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%g.1, %limit), direction=LT
}

%outer_body (t.2: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t.2 = (s32[], f32[4]{0}) parameter(0)
  ROOT %while.0 = (s32[], f32[4]{0}) while(%t.2), condition=%inner_condition, body=%inner_body
}

%outer_condition (t.3: (s32[], f32[4])) -> pred[] {
  %t.3 = (s32[], f32[4]{0}) parameter(0)
  ROOT %always = pred[] constant(true)
}

ENTRY %main.1 (x: f32[4]) -> (s32[], f32[4]) {
  %x = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %t.4 = (s32[], f32[4]{0}) tuple(%zero, %x)
  ROOT %while.1 = (s32[], f32[4]{0}) while(%t.4), condition=%outer_condition, body=%outer_body, BACKEND
}
"""
KNOWN = 'backend_config={"known_trip_count":{"n":"5"}}'


@pytest.mark.parametrize(
    ('text', 'plain', 'padded'),
    [
        ('f32[3,5]{1,0}', 60, 60),
        ('bf16[72]{0}', 144, 144),
        ('bf16[16,72]{1,0:T(8,128)(2,1)}', 2304, 2 * 16 * 128),
        ('bf16[72,16]{0,1:T(8,128)(2,1)}', 2304, 2 * 16 * 128),
        ('f32[3,5,7]{2,1,0:T(8,128)}', 420, 4 * 3 * 8 * 128),
        ('pred[10]{0:T(128)}', 10, 128),
        ('f8e4m3fn[4,4]{1,0}', 16, 16),
        ('s4[8]{0}', 4, 4),
        ('f32[]', 4, 4),
    ],
)
def test_an_array_takes_its_bytes_and_the_padding_of_its_tiles(text, plain, padded):
    (array,) = arrays(text)
    assert (array.bytes, array.padded_bytes) == (plain, padded)


def test_a_tuple_is_all_its_arrays_each_in_its_memory():
    found = arrays('(f32[2]{0:T(128)S(1)}, /*index=1*/(bf16[3,4]{1,0}, token[]), u32[]{:S(2)})')
    assert [(array.dtype, array.shape, array.space) for array in found] == [
        ('f32', (2,), 1),
        ('bf16', (3, 4), 0),
        ('u32', (), 2),
    ]


def test_loops_multiply_how_often_their_bodies_run():
    module = parse(NESTED.replace('BACKEND', KNOWN))
    times = {instruction.name: count for instruction, count, _ in module.executed()}
    assert times['x'] == times['while.1'] == 1
    assert times['while.0'] == 5
    assert times['inner'] == 15
    assert 'neg.0' not in times  # the fusion runs, not what is in it


def test_a_counter_that_grows_by_two_halves_the_turns():
    text = NESTED.replace('BACKEND', KNOWN).replace('%step = s32[]{:T(128)} constant(1)', '%step = s32[] constant(2)')
    times = {instruction.name: count for instruction, count, _ in parse(text).executed()}
    assert times['inner'] == 5 * 2  # 0 and 2 are below 3


def test_a_loop_of_unknown_length_is_refused_by_name():
    with pytest.raises(ValueError, match=r'loop while.1 does not say how often'):
        list(parse(NESTED.replace('BACKEND', 'metadata={}')).executed())
    odd = NESTED.replace('BACKEND', KNOWN).replace('add(%i.0, %step)', 'multiply(%i.0, %step)')
    with pytest.raises(ValueError, match=r'loop while\.0 does not say how its counter grows'):
        list(parse(odd).executed())
    with pytest.raises(ValueError, match='no ENTRY'):
        parse('HloModule empty')


def test_attributes_end_where_they_end_whatever_is_quoted():
    module = parse(NESTED.replace('BACKEND', KNOWN))
    inner = module.computations['inner_body']['inner']
    assert inner.opcode == 'fusion' and inner.operands == ('g.0',) and inner.called == ('fused',)
    assert inner.attribute('kind') == 'kLoop'
    assert inner.attribute('metadata') == '{op_name="a, b=c{" id=1}'
    assert inner.attribute('nothing') == ''


def test_what_a_kernel_says_about_itself_in_lines_of_its_own_is_part_of_its_attributes():
    said = 'kernel_metadata={\n"block": "128", "more": "{\\"of\\": {}}"\n}'
    kernel = f'  %k.0 = f32[4]{{0}} custom-call(%g.0), frontend_attributes={{{said}}}, api=1\n'
    module = parse(NESTED.replace('  %inner = ', kernel + '  %inner = '))
    found = module.computations['inner_body']['k.0']
    assert '"block": "128"' in found.attribute('frontend_attributes') and found.attribute('api') == '1'
    assert module.computations['inner_body']['r.0'].root
