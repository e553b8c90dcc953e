"""Collectives of programs: those of texts written by hand, and of programs that are compiled here for eight devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from walt.planning.collectives import collectives, replica_groups, summed
from walt.planning.hlo import parse

ROOT = Path(__file__).parents[2]
MESH = {'data': 4, 'fsdp': 2}
DATA, FSDP = [(0, 2, 4, 6), (1, 3, 5, 7)], [(0, 1), (2, 3), (4, 5), (6, 7)]


def program_of(line: str, more: str = '') -> str:
    return f"""HloModule m
{more}
%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {{
  %x = f32[8,16]{{1,0}} parameter(0)
  {line}
}}
"""


@pytest.mark.parametrize(
    ('groups', 'expected'),
    [
        ('{{0,2,4,6},{1,3,5,7}}', DATA),
        ('[2,4]<=[4,2]T(1,0)', DATA),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", DATA),
        ('[4,2]<=[8]', FSDP),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", FSDP),
        ("mesh['a'=8] {'a':(4)2}", FSDP),
        ("mesh['a'=8] {'a':(1)4}", DATA),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", DATA),
        ('{}', [tuple(range(8))]),
        ("mesh['a'=4,'b'=2] {'a','b'}", [tuple(range(8))]),
    ],
)
def test_groups_are_the_same_however_they_are_written(groups, expected):
    text = program_of(f'ROOT %r = f32[8,16]{{1,0}} all-reduce(%x), replica_groups={groups}, to_apply=%add')
    instruction = parse(text).computations['main']['r']
    assert sorted(tuple(sorted(group)) for group in replica_groups(instruction, 8)) == expected
    (one,) = collectives(text, MESH)
    axes = {4: ('data',), 2: ('fsdp',), 8: ('data', 'fsdp')}[len(expected[0])]
    assert (one.axes, one.group) == (axes, len(expected[0])) and tuple(sorted(one.members)) in expected


@pytest.mark.parametrize(
    ('line', 'kind', 'size', 'axes', 'asynchronous'),
    [
        (
            'ROOT %r = f32[16,16]{1,0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}',
            'all-gather',
            4 * 16 * 16,
            ('fsdp',),
            False,
        ),
        (
            'ROOT %r = f32[2,16]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, '
            'to_apply=%add',
            'reduce-scatter',
            4 * 8 * 16,
            ('data',),
            False,
        ),
        (
            'ROOT %s = (f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[4,2]T(1,0)',
            'all-gather',
            4 * 32 * 16,
            ('data',),
            True,
        ),
        (
            'ROOT %s = f32[8,16]{1,0} all-reduce-start(%x), replica_groups=[1,8]<=[8], to_apply=%add',
            'all-reduce',
            4 * 8 * 16,
            ('data', 'fsdp'),
            True,
        ),
        (
            'ROOT %s = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), '
            'source_target_pairs={{0,1},{1,0},{2,3},{3,2}}',
            'collective-permute',
            4 * 8 * 16,
            ('fsdp',),
            True,
        ),
        ('ROOT %r = f32[8,16]{1,0} all-to-all(%x), replica_groups={{0,1},{2,3}}', 'all-to-all', 512, ('fsdp',), False),
    ],
)
def test_a_collective_counts_the_larger_of_what_it_takes_and_gives(line, kind, size, axes, asynchronous):
    (one,) = collectives(program_of(line), MESH)
    assert (one.kind, one.bytes, one.axes, one.asynchronous) == (kind, size, axes, asynchronous)


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    inside = """
%all-reduce-scatter (p: f32[8,16]) -> f32[4,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %ar = f32[8,16]{1,0} all-reduce(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %slice = f32[4,16]{1,0} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={4,16}
}
"""
    (one,) = collectives(
        program_of('ROOT %f = f32[4,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter', inside), MESH
    )
    assert (one.kind, one.bytes, one.axes) == ('reduce-scatter', 512, ('fsdp',))


def test_the_two_halves_of_an_asynchronous_collective_are_one():
    text = program_of(
        '%s = (f32[8,16]{1,0}, f32[16,16]{1,0}) all-gather-start(%x), replica_groups=[4,2]<=[8], dimensions={0}\n'
        '  ROOT %d = f32[16,16]{1,0} all-gather-done(%s)'
    )
    assert len(collectives(text, MESH)) == 1


def test_a_device_that_the_mesh_does_not_have_is_refused():
    text = program_of('ROOT %r = f32[8,16]{1,0} all-reduce(%x), replica_groups=[1,16]<=[16], to_apply=%add')
    with pytest.raises(ValueError, match='on a mesh of 8'):
        collectives(text, MESH)


# A gradient step of scanned layers on 2 x 2 x 2 devices; prints its collectives and the sum of those of a permutation.
COMPILED = """
import json, sys
import jax, jax.numpy as jnp
jax.config.update('jax_num_cpu_devices', 8)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from walt.planning.collectives import collectives
mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
def of(f, *structs):
    placed = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape, spec in structs]
    with jax.set_mesh(mesh):
        text = jax.jit(f, out_shardings=NamedSharding(mesh, P())).lower(*placed).compile().as_text()
    return [[c.kind, c.axes, c.bytes, c.times] for c in collectives(text, mesh.shape)]
def layers(x, w):
    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.tanh(x @ w), None
    return jax.lax.scan(layer, x, w)[0].sum()
print(json.dumps({
    'sum': of(lambda x: x.sum(0), ((64, 32), P('data'))),
    'gather': of(lambda x: x * 2, ((64, 32), P(None, 'tensor'))),
    'layers': of(layers, ((64, 32), P('data')), ((5, 32, 32), P(None, 'fsdp'))),
}))
"""


@pytest.fixture(scope='module')
def compiled():
    done = subprocess.run(
        [sys.executable, '-c', COMPILED],
        env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_xla_compiles_for_eight_devices_has_the_collectives_that_the_shardings_ask_for(compiled):
    assert compiled['sum'] == [['all-reduce', ['data'], 4 * 32, 1]]
    assert compiled['gather'] == [['all-gather', ['tensor'], 4 * 64 * 32, 1]]


def test_what_a_scan_gathers_in_every_turn_is_counted_in_every_turn(compiled):
    gathers = [tuple(one[1:]) for one in compiled['layers'] if one[0] == 'all-gather']
    assert gathers == [(['fsdp'], 4 * 32 * 32, 5)]
    assert [one[0] for one in compiled['layers'] if one[1] == ['data']] == ['all-reduce']


def test_sums_are_by_kind_and_axes_with_the_largest_first():
    line = '%{0} = f32[8,16]{{1,0}} all-reduce(%x), replica_groups={1}, to_apply=%add'
    lines = [line.format('a', '[4,2]<=[8]'), line.format('b', '[4,2]<=[8]'), line.format('c', '[1,8]<=[8]')]
    found = summed(collectives(program_of('\n  '.join(lines)), MESH))
    assert list(found.items()) == [
        (('all-reduce', ('fsdp',)), (2, 1024)),
        (('all-reduce', ('data', 'fsdp')), (1, 512)),
    ]
