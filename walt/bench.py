"""Times a configuration on the devices that there are: training, sampling, encoding, decoding, reading data.

python -m walt.bench --config=configs/quickstart_denoiser.py [--phase=sample] [--steps=10] [--json]

A step of a phase is what the other programs compile, on a batch of `config.batch_size` clips and the configuration's
mesh. Parameters and inputs are random, so no data and no trained weights are needed; only `data` opens the data.

    train           one optimizer update, with the state donated; of a denoiser, from latents, or from pixels where it
                    keeps no latents and `--tokenizer_config=FILE` says what encodes them
    encode          pixels -> latents; of a tokenizer
    decode          latents -> pixels; of a tokenizer, or of a denoiser with `--tokenizer_config=FILE`
    discriminate    pixels -> logits; of a tokenizer that has a discriminator
    forward         one pass; of a denoiser
    sample          noise -> latents, all steps of the sampler; of a denoiser
    data            the source of the configuration, read and put into batches as in training

Every step is waited for before the next one is dispatched; the first ones are not counted. `--json` prints one object:

    task, phase             'tokenizer' or 'denoiser', and one of those above
    device, devices         kind of device, and how many of them, in all processes
    mesh, dtype             devices by axis; what the layers compute in
    batch_size, steps       clips of a step; how many steps were timed
    seconds                 of a step: `median`, `mean`, `least`, `most`
    samples_per_second      clips; those of `data` by the mean, since batches made ahead come in bursts, others by the
                            median
    tokens_per_second       tokens of those clips, as `walt.plan` counts them, not those of pictures beside them
    flops                   of a step: the model's, on all devices; see below
    flops_per_second        `flops` by the median
    mfu                     the share of that in the devices' peak; null where `planning.chips` does not know it
    memory                  `bytes` of the fullest device of this process, and `by`: 'device', the most since the start
                            that it says itself, or else 'compiler', what the program was said to need
    compile_seconds         to trace and compile, the cache of compiled programs being off
    notes                   what is not in these figures

Model FLOPs are those of matrix products and convolutions (`planning/flops.py`), of all micro-batches of a step, without
what is computed again for the backward pass. Peaks are those of bfloat16, also where layers compute in float32. For
`data`, what concerns programs is null.
"""

import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.sharding import Mesh

from walt import build
from walt.costs import model_flops
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate
from walt.planning.chips import chip_of
from walt.planning.flops import flops
from walt.planning.program import program
from walt.planning.report import byte_text, flop_text, table
from walt.tasks import Phase, Task, task
from walt.training.feed import process_batches

CONFIG = build.config_flag()
TOKENIZER_CONFIG = build.config_flag('tokenizer_config')  # Of the tokenizer that a denoiser is trained on.
PHASE = flags.DEFINE_string('phase', 'train', 'What is timed: train, data, or, as the configuration has them, others.')
STEPS = flags.DEFINE_integer('steps', 10, 'Steps that are timed.', lower_bound=1)
JSON = flags.DEFINE_bool('json', False, 'Prints one JSON object instead of a table.')

_WARM_UP = 3
"""Steps before those that are timed."""

_THREADS = 4
"""Of the pipeline of data, as in training; twice as many batches are made ahead, and not timed."""

_SPREAD = 0.02
"""Standard deviation of random parameters, with which deep networks stay finite."""


def bench(
    config: Mapping[str, Any],
    phase: str = 'train',
    steps: int = 10,
    tokenizer_config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The figures of a phase, with the keys of the module's docstring.

    Args:
        tokenizer_config: as `tasks.task`.

    Raises:
        ValueError: on a phase that the configuration does not have, naming its phases; else as training would.
    """
    mesh, rows = make_mesh(**config['mesh']), config['batch_size']
    check_batch(mesh, rows, config['accumulation'])
    planned = task(config, mesh, rows, clips=rows, tokenizer_config=tokenizer_config)
    phases = {'train', 'data', *planned.phases}
    if phase not in phases:
        raise ValueError(f'a {planned.kind} has no phase {phase!r}; choices: {sorted(phases)}')
    about = {
        'task': planned.kind,
        'phase': phase,
        'device': jax.devices()[0].device_kind,
        'devices': mesh.size,
        'mesh': dict(mesh.shape),
        'dtype': config['dtype'],
        'batch_size': rows,
        'steps': steps,
    }
    if phase == 'data':
        seconds = _time_data(config, mesh, steps)
        per_second = rows / statistics.mean(seconds)
        measured = dict.fromkeys(('flops', 'flops_per_second', 'mfu', 'memory', 'compile_seconds'))
        notes = []
    else:
        count = step_flops(config, planned, phase, tokenizer_config)  # Of one device, so not on this mesh.
        with activate(mesh):
            seconds, measured = _time_program(planned, phase, steps, count)
        per_second = rows / statistics.median(seconds)
        notes = planned.notes
    return about | {
        'seconds': {
            'median': statistics.median(seconds),
            'mean': statistics.mean(seconds),
            'least': min(seconds),
            'most': max(seconds),
        },
        'samples_per_second': per_second,
        'tokens_per_second': per_second * planned.sizes['tokens'],
        **measured,
        'notes': notes,
    }


def _time_program(planned: Task, phase: str, steps: int, count: int) -> tuple[list[float], dict[str, Any]]:
    """Seconds of every step, which does `count` FLOPs, and what is known of the compiled program."""
    step, arguments = _training(planned) if phase == 'train' else _inference(planned.phases[phase])
    start = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start

    seconds = []
    for number in range(_WARM_UP + steps):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - start)
        if phase == 'train':
            state, _ = out
            arguments = state, *arguments[1:]  # that of before was donated
    rate = count / statistics.median(seconds)
    chip = chip_of(jax.devices()[0].device_kind)
    return seconds, {
        'flops': count,
        'flops_per_second': rate,
        'mfu': rate / (planned.layout.step.mesh.size * chip.peak_flops) if chip else None,
        'memory': _memory(compiled),
        'compile_seconds': compile_seconds,
    }


def step_flops(
    config: Mapping[str, Any], planned: Task, phase: str, tokenizer_config: Mapping[str, Any] | None = None
) -> int:
    """The model's FLOPs of a step of a phase, on all devices, from shapes."""
    if phase == 'train':
        return config['batch_size'] * model_flops(config, tokenizer_config=tokenizer_config)
    timed = planned.phases[phase]
    return flops(program(timed.function, *timed.args))


def _training(planned: Task) -> tuple[Any, tuple]:
    """The step as training compiles it, and its arguments: a new state, all else random."""
    _, *shapes = planned.args
    _, *layouts = planned.jit['in_shardings']
    state, _ = planned.new(jax.random.key(0))
    networks, *inputs = map(random_like, shapes, layouts, (_SPREAD, 1.0, 1.0))
    return jax.jit(planned.step, **planned.jit), (state, networks, *inputs)


def _inference(phase: Phase) -> tuple[Any, tuple]:
    """The function of a phase, and random arguments."""
    spreads = _SPREAD, *[1.0] * (len(phase.args) - 1)
    return jax.jit(phase.function), tuple(map(random_like, phase.args, phase.layouts, spreads))


def _time_data(config: Mapping[str, Any], mesh: Mesh, steps: int) -> list[float]:
    """Seconds that this process waits for each batch, after all those that were made ahead."""
    source = build.source(config['data'], 'train')
    read = process_batches(
        source, mesh, config['batch_size'], keys=tuple(source[0]), seed=config['seed'], threads=_THREADS
    )
    batches, seconds = iter(read), []
    for number in range(1 + 2 * _THREADS + steps):
        start = time.perf_counter()
        next(batches)
        if number > 2 * _THREADS:
            seconds.append(time.perf_counter() - start)
    return seconds


def random_like(tree: Any, layout: Any, spread: float = 1.0) -> Any:
    """Arrays in the shapes of a tree: normal, or 0 and 1 where they are pixels, labels or masks; keys for keys.

    Args:
        layout: shardings of the leaves, or of whole branches.
        spread: standard deviation of normal ones.
    """

    def draw(leaf, key):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return spread * jax.random.normal(key, leaf.shape, leaf.dtype)
        return jax.random.bernoulli(key, 0.5, leaf.shape).astype(leaf.dtype)

    def draw_all(key):
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, map(draw, leaves, jax.random.split(key, len(leaves))))

    # Of all generators this one's draws compile fastest.
    return jax.jit(draw_all, out_shardings=layout)(jax.random.key(1, impl='unsafe_rbg'))


def _memory(compiled) -> dict[str, Any]:
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    if all('peak_bytes_in_use' in stats for stats in told):
        return {'bytes': max(stats['peak_bytes_in_use'] for stats in told), 'by': 'device'}
    sizes = compiled.memory_analysis()
    arguments = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return {'bytes': arguments + sizes.temp_size_in_bytes, 'by': 'compiler'}


def as_table(result: Mapping[str, Any]) -> str:
    """The figures for people."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in result['mesh'].items())
    milliseconds = {name: f'{1000 * value:,.2f} ms' for name, value in result['seconds'].items()}
    median = milliseconds.pop('median')
    rates = {f'step, median of {result["steps"]}': median} | {f'step/{name}': ms for name, ms in milliseconds.items()}
    rates |= {f'{name} a second': f'{result[f"{name}_per_second"]:,.1f}' for name in ('samples', 'tokens')}
    sections = {
        f'{result["task"]}: {result["phase"]}': {
            'devices': f'{result["devices"]:,} x {result["device"]}',
            'mesh': mesh,
            'dtype': result['dtype'],
            'clips a step': f'{result["batch_size"]:,}',
        },
        'time': rates,
    }
    if result['phase'] != 'data':
        memory, mfu = result['memory'], result['mfu']
        sections['time'] |= {'compilation': f'{result["compile_seconds"]:.1f} s'}
        sections['model FLOPs'] = {
            'a step': flop_text(result['flops']),
            'a second': flop_text(result['flops_per_second']),
            'MFU': 'no peak known' if mfu is None else f'{100 * mfu:.1f} %',
        }
        sections['memory of one device'] = {f'by the {memory["by"]}': byte_text(memory['bytes'])}
    return table(sections, result['notes'])


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    jax.config.update('jax_enable_compilation_cache', False)  # A look-up is no compilation.
    tokenizer_config = TOKENIZER_CONFIG.value.to_dict() if TOKENIZER_CONFIG.value else None
    result = bench(CONFIG.value.to_dict(), PHASE.value, STEPS.value, tokenizer_config)
    if jax.process_index() == 0:
        print(json.dumps(result) if JSON.value else as_table(result))


if __name__ == '__main__':
    app.run(main)
