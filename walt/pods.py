"""A configuration on a machine that is not there: does it fit, how fast is it, and what would make it fit.

Every phase is compiled for the slice as the programs would compile it there, with the mesh's shardings and the state
donated, and the compiler says what it takes of each device's memory. Phases:

    train      the step, a tokenizer's with its discriminator
    restore    what is held while a checkpoint is read: the new state, which says where everything lies, and the
               restored one; not compiled, it follows from the shapes
    sample, decode, encode, discriminate     of one clip on each device that shares the batch

Time and MFU are the roofline's (`planning.roofline`). GPUs are not compiled for: their bytes are estimates from shapes
(`planning.memory`), and their time is a bound from below, that of the products at the published peak or bandwidth and
then of the collectives that data parallelism and split parameters need, so their MFU is one from above.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from walt.costs import costs_of, device_rows, model_flops, state_bytes, trace
from walt.parallel.mesh import abstract_mesh, batch_shards, make_mesh
from walt.parallel.rules import activate
from walt.planning import hlo
from walt.planning.chips import Chip
from walt.planning.collectives import Collective, collectives
from walt.planning.fitting import changes, smallest
from walt.planning.flops import operation_flops
from walt.planning.memory import array_bytes
from walt.planning.program import Program
from walt.planning.roofline import Roofline, roofline, work
from walt.planning.topology import Compiled, Topology, compile_for_tpu
from walt.tasks import Task, task

PHASES = ('train', 'restore', 'sample', 'decode', 'encode', 'discriminate')
# Policies of recomputation from the cheapest to the strongest; those that need a host's memory are not tried.
REMAT = ('none', 'products', 'attention', 'blocks')


def on_topology(
    config: Mapping[str, Any],
    topology: Topology,
    tokenizer_config: Mapping[str, Any] | None = None,
    phases: Sequence[str] = PHASES,
    find_change: bool = True,
) -> dict[str, Any]:
    """What `walt.plan` prints for a topology; the keys are in its docstring.

    Args:
        phases: which to plan; those that the configuration does not have are passed over.
        find_change: looks for the smallest change that fits, where it does not.

    Raises:
        ValueError: on a mesh or batch that does not divide.
        ModuleNotFoundError: for a TPU, without libtpu.
    """
    shape = dict(abstract_mesh(topology.count, **config['mesh']).shape)
    result = {
        'topology': topology.text,
        'chips': topology.count,
        'mesh': shape,
        'batch_size': config['batch_size'],
        'compiled': topology.chip.vendor == 'tpu',
        'hbm': int(topology.chip.hbm_bytes),
    }
    plan = _compiled if result['compiled'] else _from_shapes
    result |= plan(config, topology, tokenizer_config, phases)
    result['fits'] = all(phase['fits'] for phase in result['phases'].values())
    if 'seconds' in result:
        days = result['seconds'] * config['steps'] / 86400
        result |= {'days': days, 'chip_hours': days * 24 * topology.count}
    if not result['fits'] and find_change:
        result['change'], result['tried'] = _change(config, topology, tokenizer_config, phases)
    return result


def _compiled(config, topology: Topology, tokenizer_config, phases: Sequence[str]) -> dict[str, Any]:
    mesh = make_mesh(devices=topology.devices(), **config['mesh'])
    device_rows(config, mesh)
    planned = task(config, mesh, config['batch_size'], batch_shards(mesh), tokenizer_config)
    made = {}
    with activate(mesh):
        for name in phases:
            if name == 'train':
                made[name] = compile_for_tpu(planned.step, *planned.args, **planned.jit)
            elif name in planned.phases:
                phase = planned.phases[name]
                made[name] = compile_for_tpu(phase.function, *phase.args, in_shardings=phase.layouts)
    hbm = topology.chip.hbm_bytes
    result = {'phases': {name: _memory(compiled) for name, compiled in made.items()}}
    if 'restore' in phases:
        result['phases']['restore'] = _held(2 * state_bytes(planned), hbm)
    notes = list(planned.notes)
    if 'train' in made and made['train'].text:
        result |= _speed(config, topology, tokenizer_config, mesh, made['train'])
    if 'train' in made:
        notes += _untimed(made['train'])
    return result | {'notes': notes}


def _untimed(compiled: Compiled) -> list[str]:
    """What the roofline does not know of a program."""
    if not compiled.text:
        return [f'no time is told: {compiled.unprinted}'] if compiled.unprinted else []
    notes = []
    if not compiled.bundles:
        notes.append('libtpu gave no schedule: cycles are the early estimates of its compiler, of products only')
    kernels = [one for one in work(hlo.parse(compiled.text)) if one.operation.endswith('/pallas_call')]
    silent = sorted({one.operation.split('/')[-2] for one in kernels if not one.flops})
    if silent:
        notes.append(f'only the memory traffic is counted of kernels that do not say what they do: {", ".join(silent)}')
    return notes


def _memory(compiled: Compiled) -> dict[str, Any]:
    sizes = {name: getattr(compiled, name) for name in ('arguments', 'temporaries', 'outputs', 'code')}
    of_compiler = {'total': compiled.peak, 'fits': compiled.fits, 'compile_seconds': round(compiled.compile_seconds, 1)}
    return of_compiler | (sizes if compiled.fits else {'capacity': compiled.capacity})


def _held(total: int, hbm: float) -> dict[str, Any]:
    return {'total': total, 'fits': total <= hbm}


def _speed(config, topology: Topology, tokenizer_config, mesh, compiled: Compiled) -> dict[str, Any]:
    module = hlo.parse(compiled.text)
    found = collectives(module, mesh.shape)
    timed = [(one, seconds_of(one, topology.bandwidth(mesh, one.members))) for one in found]
    hidden, exposed = (sum(s * c.times for c, s in timed if c.asynchronous == asynchronous) for asynchronous in (1, 0))
    estimate = roofline(module, topology.chip, compiled.bundles, hidden=hidden, exposed=exposed)
    per_device = model_flops(config, tokenizer_config=tokenizer_config) * config['batch_size'] / topology.count
    return {
        'flops': {
            'model': per_device * topology.count,
            'compiled': estimate.flops * topology.count,
            'compiler_once': compiled.flops * topology.count,
        },
        'collectives': _summed(timed),
        'seconds': estimate.seconds,
        'mfu': per_device / topology.chip.peak_flops / estimate.seconds,
        'mfu_at_best': per_device / topology.chip.peak_flops / estimate.at_best,
        'spent': spent(estimate, per_device, topology.chip),
    }


def spent(estimate: Roofline, model: float, chip: Chip) -> dict[str, float]:
    """Seconds of a step by what they go to; they sum to all of them.

    `model` is MFU's numerator; `recomputed` what the program does beyond; `products` is what products take beyond their
    FLOPs at the peak; `memory` and `interconnect` are what nothing else hides.
    """
    at_peak, of_model = estimate.flops / chip.peak_flops, model / chip.peak_flops
    return {
        'model': of_model,
        'recomputed': at_peak - of_model,
        'products': estimate.products - at_peak,
        'memory': estimate.memory,
        'interconnect': estimate.exposed,
    }


def seconds_of(collective: Collective, bandwidth: float) -> float:
    """Of one run: what each device sends in a ring, by what it can send in a second.

    With n devices and arrays of b bytes, b (n - 1) / n for gathering, scattering and exchanging, twice that to reduce
    and give back, b for a permutation.
    """
    n = collective.group
    share = {'all-reduce': 2 * (n - 1) / n, 'collective-permute': 1.0, 'collective-broadcast': 1.0}
    return collective.bytes * share.get(collective.kind, (n - 1) / n) / bandwidth


def _summed(timed) -> list[dict[str, Any]]:
    sums = {}
    for one, seconds in timed:
        key = one.kind, one.axes
        entry = sums.setdefault(key, {'kind': one.kind, 'axes': list(one.axes), 'times': 0, 'bytes': 0, 'seconds': 0.0})
        entry['times'] += one.times
        entry['bytes'] += one.times * one.bytes
        entry['seconds'] += one.times * seconds
    return sorted(sums.values(), key=lambda entry: -entry['bytes'])


def _from_shapes(config, topology: Topology, tokenizer_config, phases: Sequence[str]) -> dict[str, Any]:
    traced, hbm = trace(config, topology.count, tokenizer_config), topology.chip.hbm_bytes
    result = costs_of(config, traced, tokenizer_config)
    memory = {name: _held(uses['total'], hbm) for name, uses in result['memory'].items()}
    memory = {'train': memory.pop('training'), **memory}
    mesh = traced.task.layout.step.mesh
    # What `tensor` and `context` split, each device does a part of.
    split = mesh.size // batch_shards(mesh)
    products = products_seconds(traced.training, topology.chip) / split
    network = _parameter_seconds(traced.task, mesh, topology)
    seconds = products + network
    model = result['flops']['model'] * config['batch_size']
    return {
        'phases': {name: memory[name] for name in phases if name in memory},
        'flops': {'model': model},
        'seconds': seconds,
        'mfu': model / topology.count / topology.chip.peak_flops / seconds,
        'spent': {'products': products, 'interconnect': network},
        'notes': [*result['notes'], 'not compiled: bytes are estimated, time is a bound from below, MFU from above'],
    }


def products_seconds(step: Program, chip: Chip) -> float:
    """The least that the products of a program take, each by its arithmetic or by its operands and result."""
    total = 0.0
    for operation in step.operations:
        if operation.bodies:
            inner = max(products_seconds(body, chip) for body in operation.bodies)
            total += inner * (operation.times or 1)
        elif flops := operation_flops(operation):
            moved = sum(map(array_bytes, (*operation.inputs, *operation.outputs)))
            total += max(flops / chip.peak_flops, moved / chip.hbm_bandwidth)
    return total


def _parameter_seconds(planned: Task, mesh, topology: Topology) -> float:
    """Gradients are summed over all that share the batch; parameters split along `fsdp` are gathered twice."""
    shards, fsdp = batch_shards(mesh), mesh.shape['fsdp']
    params = 4 * sum(leaf.size for leaf in jax.tree.leaves(planned.state.params)) / mesh.shape['tensor']
    sent = 2 * params * (shards - 1) / shards + 2 * params * (fsdp - 1) / fsdp
    return sent / topology.bandwidth(None, ())


def _change(config, topology: Topology, tokenizer_config, phases: Sequence[str]) -> tuple[list[str] | None, int]:
    """(the smallest change that fits, as settings of the configuration; how many were compiled or counted)."""
    mesh = abstract_mesh(topology.count, **config['mesh'])

    def changed(change: Mapping[str, Any]) -> dict[str, Any]:
        new = dict(config)
        for key, value in change.items():
            *section, name = key.split('.')
            if section:
                new[section[0]] = new[section[0]] | {name: value}
            else:
                new[name] = value
        return new

    def state_fits(change) -> bool:
        other = changed(change)
        of_change = abstract_mesh(topology.count, **other['mesh'])
        if other['batch_size'] % (batch_shards(of_change) * other['accumulation']):
            return False
        held = 2 if 'restore' in phases else 1
        return held * state_bytes(task(other, of_change, 1)) <= topology.chip.hbm_bytes

    def fits(change) -> bool:
        return on_topology(changed(change), topology, tokenizer_config, phases, find_change=False)['fits']

    rows = device_rows(config, mesh) // config['accumulation']
    tries = changes(rows, mesh.shape, _stronger(config), config['accumulation'])
    change, tried = smallest(tries, state_fits, fits)
    return change and [f'{key}={value!r}' for key, value in change.items()], tried


def _stronger(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """Policies of recomputation beyond the configuration's own, as changes of it."""
    sections = {'tokenizer': ('none', 'blocks'), 'denoiser': REMAT, 'classifier': REMAT}
    section, policies = next((name, policies) for name, policies in sections.items() if name in config)
    now = config[section].get('remat', 'none')
    return [{f'{section}.remat': name} for name in policies[policies.index(now) + 1 :]] if now in policies else []
