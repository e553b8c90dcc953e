"""The cost of a configuration from shapes: parameters, tokens, FLOPs, and memory by phase on one device.

`walt.plan` prints what `costs` returns, with the keys of its docstring.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from walt.parallel.mesh import abstract_mesh, batch_shards, check_batch
from walt.planning.flops import flops
from walt.planning.memory import peak_bytes, tree_bytes
from walt.planning.program import Program, program
from walt.planning.report import parts
from walt.tasks import Task, task


@dataclasses.dataclass(frozen=True)
class Traced:
    """A task with the programs of its training step, of one device's rows, and of its phases."""

    task: Task
    rows: int
    training: Program
    phases: dict[str, Program]


def trace(
    config: Mapping[str, Any], devices: int | None = None, tokenizer_config: Mapping[str, Any] | None = None
) -> Traced:
    """The arguments and errors are those of `costs`."""
    mesh = abstract_mesh(devices, **config['mesh'])
    rows = device_rows(config, mesh)
    planned = task(config, mesh, rows, tokenizer_config=tokenizer_config)
    training = program(planned.step, *planned.args)
    phases = {name: program(phase.function, *phase.args) for name, phase in planned.phases.items()}
    return Traced(planned, rows, training, phases)


def costs(
    config: Mapping[str, Any], devices: int | None = None, tokenizer_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The plan of a configuration, with the keys of `walt.plan`.

    Args:
        devices: of the mesh; None takes the fewest, one along an axis of -1.
        tokenizer_config: as `tasks.task`.

    Raises:
        ValueError: as training would, on what does not fit together.
    """
    return costs_of(config, trace(config, devices, tokenizer_config), tokenizer_config)


def costs_of(
    config: Mapping[str, Any], traced: Traced, tokenizer_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`costs` of what is traced already."""
    planned, rows = traced.task, traced.rows
    mesh = planned.layout.step.mesh
    of_clip = flops(traced.training) / rows
    return {
        'task': planned.kind,
        **planned.sizes,
        'steps': config['steps'],
        'batch_size': config['batch_size'],
        'devices': mesh.size,
        'mesh': dict(mesh.shape),
        'rows': rows,
        'parameters': _parameters(planned),
        'flops': {name: flops(phase) for name, phase in traced.phases.items()}
        | {
            'training': of_clip,
            'model': model_flops(config, traced, tokenizer_config),
            'run': of_clip * config['batch_size'] * config['steps'],
        },
        'memory': _memory(traced),
        'notes': planned.notes,
    }


def device_rows(config: Mapping[str, Any], mesh) -> int:
    """Clips of a step on each device. Raises `ValueError` if the batch does not divide."""
    check_batch(mesh, config['batch_size'], config['accumulation'])
    return config['batch_size'] // batch_shards(mesh)


def model_flops(
    config: Mapping[str, Any], traced: Traced | None = None, tokenizer_config: Mapping[str, Any] | None = None
) -> float:
    """A clip's share of a training step that computes nothing twice: what counts for MFU."""
    section = next(name for name in ('tokenizer', 'denoiser', 'classifier') if name in config)
    if traced is not None and config[section].get('remat', 'none') == 'none':
        return flops(traced.training) / traced.rows
    # A clip's share is the same in whatever parts a step takes its batch.
    kept = dict(config) | {section: config[section] | {'remat': 'none'}, 'accumulation': 1}
    planned = task(kept, abstract_mesh(1), rows=1, tokenizer_config=tokenizer_config)
    return flops(program(planned.step, *planned.args))


def state_bytes(planned: Task) -> int:
    """Of the training state on one device."""
    return bytes_on_device(planned.state, planned.layout)


def bytes_on_device(tree: Any, layout: Any) -> int:
    """Of a tree in shapes, each leaf split as its sharding says."""

    def shard(leaf, sharding):
        return jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype)

    return tree_bytes(jax.tree.map(shard, tree, layout))


def _parameters(planned: Task) -> dict[str, int]:
    state = planned.state
    depth = 2 if planned.kind == 'tokenizer' else 3  # A level of the network; a part of a layer.
    counts = {'total': sum(leaf.size for leaf in jax.tree.leaves(state.params)), **parts(state.params, depth)}
    return counts | (parts({'discriminator': state.adversary.params}, depth) if state.adversary else {})


def _memory(traced: Traced) -> dict[str, dict[str, int]]:
    planned = traced.task
    state, layout = planned.state, planned.layout
    memory = {
        'training': {
            'parameters': bytes_on_device(state.params, layout.params),
            'average': bytes_on_device((state.ema, state.more_ema), (layout.ema, layout.more_ema)),
            'optimizer': bytes_on_device(state.opt_state, layout.opt_state),
            'adversary': bytes_on_device(state.adversary, layout.adversary),
            'frozen': bytes_on_device(planned.frozen, planned.frozen_layout),
            'measured': tree_bytes(state.measured),
            'batch': tree_bytes(planned.batch),
            'working': peak_bytes(traced.training),
        },
        # The state that is restored, and the new one whose layout and shapes it takes over.
        'restore': {'restored': state_bytes(planned), 'new': state_bytes(planned)},
    }
    for name, phase in planned.phases.items():
        params, *inputs = phase.args
        working = peak_bytes(traced.phases[name])
        memory[name] = {'parameters': tree_bytes(params), 'batch': tree_bytes(inputs), 'working': working}
    return {name: {'total': sum(uses.values()), **uses} for name, uses in memory.items()}
