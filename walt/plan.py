"""Says what a configuration costs before any machine is rented: parameters, tokens, FLOPs, memory; and, for a slice of
a TPU pod, whether it fits and how fast it is, by the TPU's own compiler.

python -m walt.plan --config=configs/quickstart_tokenizer.py [--config.batch_size=8] [--devices=8] [--json]
python -m walt.plan --config=configs/walt_ucf101_xl.py --topology=v5p:2x2x2,v6e:4x4 [--mesh=fsdp:8] \
    [--tokenizer_config=configs/tokenizer_ucf101.py] [--phase=train --phase=restore] [--json]

Without a topology everything comes from shapes: nothing is computed, no data is opened, no accelerator is taken.
`--json` prints one object:

    task          'tokenizer' or 'denoiser'
    clip          [frames, height, width, channels] in pixels; of a tokenizer only
    latents       [frames, height, width, channels]
    tokens        of a clip: what the denoiser sees; for a tokenizer, the places of its latents
    windows       tokens in a window, by kind; of a denoiser only
    steps, batch_size, devices, mesh, rows      of the run: `mesh` is devices by axis, `rows` the clips on each device
    parameters    `total`, and every part of the tree by its path; a discriminator's come after it and are not in it
    flops         of a clip: `encode`, `decode`, `discriminate`, or `forward`, one pass of the denoiser, and `sample`,
                  all of the sampler's; `training`, its share of a step, with the pictures beside it; `model`, the same
                  without what is computed again to save memory; and of the whole run, `run`
    memory        bytes on one device by phase: `total`, and what it is the sum of. `training`: parameters, average,
                  optimizer, adversary, frozen (networks without gradient), measured, batch, working; `restore`, while a
                  checkpoint is read; and for one clip, with the names of `flops`: parameters, batch, working
    notes         what is not in these figures

FLOPs are those of products and convolutions (`planning/flops.py`), also of what is computed again for the backward
pass. `working` is what activations and gradients take at their greatest; `planning/memory.py` says how near that comes.
On a mesh, state is split as the mesh says, `working` is that of a device's rows with whole parameters.

`--topology=v5p:4x4x4` (v5e, v5p, v6e; several with commas between them) compiles training, sampling and decoding for a
slice of that many chips, without one: it needs libtpu, `pip install -e '.[tpu]'`, and about a minute a phase. For GPUs,
as `h100:8`, nothing is compiled, and bytes and time are estimates from the shapes. `--mesh=fsdp:64` takes the place of
the configuration's mesh, `data` being what is left. `--json` prints a list with an object for each topology:

    topology, chips, mesh, batch_size, compiled, hbm
    phases        by name: bytes on each device, `total` and what the compiler splits it into (arguments, temporaries,
                  outputs that take no argument's place, code), `fits`, `compile_seconds`
    fits          all phases; where they do not, `change` is the smallest change of the configuration with which they
                  do, or null, and `tried` how many were compiled to find it
    flops         of a step on all devices: `model`; `compiled`, of the program; `compiler_once`, the compiler's own
                  count, in which a loop's body counts once
    collectives   of a step: kind, axes of the mesh, how many, bytes on each device, seconds
    seconds, mfu  of a step, by the roofline (`planning/roofline.py`), and `spent`, what the seconds go to; for
                  `mfu_at_best`, a bound from above, nothing takes longer than the chip's peak and bandwidth let it
    days, chip_hours      of all steps of the configuration
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
from absl import app, flags, logging

from walt import build
from walt.costs import costs
from walt.parallel.mesh import AXES
from walt.planning.report import as_table, as_topologies
from walt.planning.topology import topology
from walt.pods import PHASES, on_topology

CONFIG = build.config_flag()
DEVICES = flags.DEFINE_integer('devices', None, 'Devices of the mesh; the fewest it takes by default.', lower_bound=1)
TOPOLOGY = flags.DEFINE_list('topology', [], 'Machines to plan for, such as v5p:4x4x4,v6e:16x16,h100:8.')
MESH = flags.DEFINE_list('mesh', [], "Axes of the mesh in place of the configuration's, such as fsdp:16,tensor:2.")
TOKENIZER_CONFIG = build.config_flag('tokenizer_config')  # To count it beside a denoiser.
PHASE = flags.DEFINE_multi_enum('phase', [], PHASES, 'What to plan for a topology; all by default.')
JSON = flags.DEFINE_bool('json', False, 'Prints JSON instead of a table.')


def with_mesh(config: Mapping[str, Any], axes: list[str]) -> dict[str, Any]:
    """The configuration on a mesh of `axes` such as 'fsdp:64'; one that is not named takes what is left.

    Raises:
        ValueError: on an unknown axis or a size that is no number.
    """
    sizes = dict(axis.partition(':')[::2] for axis in axes)
    wrong = [axis for axis, size in sizes.items() if axis not in AXES or not size.lstrip('-').isdigit()]
    if wrong:
        raise ValueError(f'--mesh={",".join(axes)}: {wrong} are no axis:size; axes: {AXES}')
    mesh = {axis: int(size) for axis, size in sizes.items()}
    return dict(config) | ({'mesh': {'data': 1 if -1 in mesh.values() else -1} | mesh} if mesh else {})


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    jax.config.update('jax_platforms', 'cpu')  # A plan leaves accelerators to those who run.
    jax.config.update('jax_enable_compilation_cache', False)  # Programs for other machines cannot be read back.
    config = with_mesh(CONFIG.value.to_dict(), MESH.value)
    tokenizer_config = TOKENIZER_CONFIG.value.to_dict() if TOKENIZER_CONFIG.value else None
    machines = [topology(text) for text in TOPOLOGY.value]
    if machines and DEVICES.value:
        raise ValueError(f'--devices={DEVICES.value} beside --topology, which says how many there are')
    if machines:
        results = [on_topology(config, machine, tokenizer_config, PHASE.value or PHASES) for machine in machines]
        print(json.dumps(results) if JSON.value else as_topologies(results))
    else:
        result = costs(config, DEVICES.value, tokenizer_config)
        print(json.dumps(result) if JSON.value else as_table(result))


if __name__ == '__main__':
    app.run(main)
