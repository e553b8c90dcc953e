"""Plans for machines: what fits and what would, for GPUs by shapes, and compiled for TPUs where libtpu is there."""

import dataclasses
import importlib.util
import json

import pytest
from tiny import denoiser_config, tokenizer_config

from walt import costs, pods, tasks
from walt.parallel.mesh import abstract_mesh
from walt.planning.chips import CHIPS
from walt.planning.collectives import Collective
from walt.planning.report import as_topologies
from walt.planning.roofline import Roofline
from walt.planning.topology import Compiled, topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install -e '.[tpu]'"
)


def with_hbm(text: str, hbm: float):
    """A machine whose devices have other memory."""
    machine = topology(text)
    return dataclasses.replace(machine, chip=dataclasses.replace(machine.chip, hbm_bytes=hbm))


def test_a_gpu_is_planned_from_shapes_and_says_so():
    config = tokenizer_config() | {'steps': 1000}
    result = pods.on_topology(config, topology('h100:2'))
    assert not result['compiled'] and 'not compiled' in result['notes'][-1]
    by_shapes = costs.costs(config, 2)
    assert result['phases']['train']['total'] == by_shapes['memory']['training']['total']
    assert set(result['phases']) == {'train', 'restore', 'decode', 'encode'}
    assert result['fits'] and 'change' not in result
    assert result['flops']['model'] == by_shapes['flops']['model'] * config['batch_size']
    assert 0 < result['mfu'] < 1
    assert result['days'] * 86400 == pytest.approx(1000 * result['seconds'])
    assert result['chip_hours'] == pytest.approx(2 * 24 * result['days'])
    assert json.loads(json.dumps(result)) == result
    table = as_topologies([result])
    assert 'h100:2' in table and f'< {result["mfu"]:.1%}' in table


def test_what_does_not_fit_is_told_the_smallest_change_with_which_it_does(monkeypatch):
    """Only what is held while a checkpoint is read is planned here: the rest would be traced for each change."""

    def restore(config, machine, tokenizer_config, phases):
        mesh = abstract_mesh(machine.count, **config['mesh'])
        held = 2 * costs.state_bytes(tasks.task(config, mesh, 1))
        return {'phases': {'restore': {'total': held, 'fits': held <= machine.chip.hbm_bytes}}, 'notes': []}

    monkeypatch.setattr(pods, '_from_shapes', restore)
    config = tokenizer_config()
    needed = pods.on_topology(config, topology('h100:4'))['phases']['restore']['total']
    result = pods.on_topology(config, with_hbm('h100:4', needed - 1))
    assert not result['fits'] and result['change'] == ['mesh.data=2', 'mesh.fsdp=2']
    assert 'with this it does: mesh.data=2, mesh.fsdp=2 (1 tried)' in as_topologies([result])
    result = pods.on_topology(config, with_hbm('h100:4', needed / 10))
    assert (result['change'], result['tried']) == (None, 0)
    assert 'no change of remat, accumulation or mesh' in as_topologies([result])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match='batch_size 4 is not divisible by the 8 devices'):
        pods.on_topology(denoiser_config(), topology('h100:8'))


@pytest.mark.parametrize(
    ('kind', 'seconds'),
    [('all-gather', 0.75), ('all-reduce', 1.5), ('reduce-scatter', 0.75), ('collective-permute', 1)],
)
def test_a_ring_of_four_sends_three_quarters_and_twice_that_to_reduce(kind, seconds):
    one = Collective(kind, 100, ('data',), 4, (0, 1, 2, 3), 1, False, (), '')
    assert pods.seconds_of(one, bandwidth=100.0) == pytest.approx(seconds)


def test_what_a_step_is_spent_on_sums_to_all_of_it():
    chip = CHIPS['v5p']
    estimate = Roofline(
        seconds=10.0, at_best=8.0, products=6.0, memory=3.0, exposed=1.0, flops=int(4 * chip.peak_flops), bytes=0
    )
    assert pods.spent(estimate, 3 * chip.peak_flops, chip) == {
        'model': pytest.approx(3.0),
        'recomputed': pytest.approx(1.0),
        'products': pytest.approx(2.0),
        'memory': 3.0,
        'interconnect': 1.0,
    }


def test_kernels_that_do_not_say_what_they_do_are_named():
    text = """HloModule m

ENTRY %main (x: f32[100]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %b = f32[100]{0} custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/silent/pallas_call"}
  ROOT %r = f32[100]{0} custom-call(%b), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/known/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"9"}}}
}
"""
    compiled = Compiled(text, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, bundles={'b': 3})
    (note,) = pods._untimed(compiled)
    assert note.endswith('do not say what they do: silent')
    assert 'no schedule' in pods._untimed(dataclasses.replace(compiled, bundles={}))[0]
    unprinted = dataclasses.replace(compiled, text='', unprinted='INTERNAL: odd')
    assert unprinted.fits and pods._untimed(unprinted) == ['no time is told: INTERNAL: odd']
    too_much = dataclasses.replace(compiled, text='')
    assert not too_much.fits and pods._untimed(too_much) == []


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize('config', [denoiser_config(), tokenizer_config()], ids=['denoiser', 'tokenizer'])
def test_training_and_all_else_compile_for_a_tpu_slice(config):
    config['mesh'] = {'data': 2, 'fsdp': 2, 'tensor': 1}
    result = pods.on_topology(config, topology('v6e:2x2'))
    others = {'sample'} if 'denoiser' in config else {'encode', 'decode'}
    assert set(result['phases']) == {'train', 'restore'} | others and result['fits']
    train = result['phases']['train']
    assert train['total'] == sum(train[part] for part in ('arguments', 'temporaries', 'outputs', 'code'))
    by_shapes = costs.costs(config, 4)['memory']['training']
    state = by_shapes['total'] - by_shapes['working']
    assert train['arguments'] >= state  # arrays of a few numbers are padded to tiles
    # All the products of the trace, and none twice; those of a batch of a few numbers may be done as sums.
    assert result['flops']['compiled'] == pytest.approx(result['flops']['model'], rel=0.3)
    assert {axis for one in result['collectives'] for axis in one['axes']} == {'data', 'fsdp'}
    assert 0 < result['mfu'] <= result['mfu_at_best'] < 1
    assert result['seconds'] == pytest.approx(sum(result['spent'].values()))
    assert json.loads(json.dumps(result)) == result and 'v6e:2x2' in as_topologies([result])
