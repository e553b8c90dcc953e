"""The cycles of `walt.planning.roofline` against what the TPU's compiler simulates of its final schedule.

python -m tests.benchmarks.schedule [v6e:2x2] [v5p:2x2x1]

libtpu simulates an instruction's schedule with the copies in it, if told so when it is loaded, and aborts where it
meets a copy of some kinds: so this compiles small programs, each in a process of its own. Printed are, of every product
and kernel, the simulation's cycles, and how far above them the roofline's and the compiler's early estimate are. It
takes two minutes for a v6e, and five for a v5p.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from walt.nn.norm import EPSILON
from walt.nn.window_attention import window_attention
from walt.planning import hlo
from walt.planning.roofline import work
from walt.planning.topology import compile_for_tpu, topology

ROWS, WIDTH, HIDDEN = 20480, 1152, 4608
WINDOWS, HEADS, TOKENS = 64, 16, 256


def mlp(x, up, down, scale):
    y = x.astype(jnp.float32)
    y = (y - y.mean(-1, keepdims=True)) * jax.lax.rsqrt(y.var(-1, keepdims=True) + EPSILON) * scale
    return x + jax.nn.gelu(y.astype(x.dtype) @ up) @ down


def mlp_with_gradients(x, up, down, scale, dy):
    y, pull_back = jax.vjp(mlp, x, up, down, scale)
    return y, pull_back(dy)


def attention(q, k, v, norms, bias):
    return window_attention(q, k, v, HEADS, norms, bias)


def attention_with_gradients(q, k, v, norms, bias, dy):
    y, pull_back = jax.vjp(attention, q, k, v, norms, bias)
    return y, pull_back(dy)


_MLP = [
    ((ROWS, WIDTH), 'bfloat16'),
    ((WIDTH, HIDDEN), 'bfloat16'),
    ((HIDDEN, WIDTH), 'bfloat16'),
    ((WIDTH,), 'float32'),
]
_TOKENS = ((WINDOWS, WIDTH, TOKENS), 'bfloat16')
_ATTENTION = [*[_TOKENS] * 3, ((WIDTH // HEADS, 4), 'float32'), ((HEADS, TOKENS, TOKENS), 'float32')]
PROGRAMS = {
    'mlp': (mlp_with_gradients, [*_MLP, _MLP[0]]),
    'attention': (attention, _ATTENTION),
    'attention and gradients': (attention_with_gradients, [*_ATTENTION, _TOKENS]),
}


def compare(machine: str, name: str, folder: Path) -> None:
    """Prints the rows of a program; libtpu was told to put its simulations into `folder`."""
    pod = topology(machine)
    sharding = SingleDeviceSharding(pod.devices()[0])
    function, arrays = PROGRAMS[name]
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in arrays]
    compiled = compile_for_tpu(function, *args)
    simulated = {
        re.search(r'hlo_op_name: "(.*)"', text)[1]: int(re.search(r'estimated_cycles: (\d+)', text)[1])
        for text in (path.read_text() for path in folder.iterdir())
    }
    for one in work(hlo.parse(compiled.text), compiled.bundles):
        kernel = one.operation.endswith('pallas_call')
        if one.name in simulated and (one.flops or kernel):
            cycles = simulated[one.name]
            early = '' if kernel else f'{one.cycles / cycles - 1:+.1%}'
            print(f'{machine:12}{name:26}{cycles:12,}{one.chip_cycles(pod.chip) / cycles - 1:+12.1%}{early:>12}')


def main(machines: list[str]) -> None:
    print(f'{"machine":12}{"program":26}{"simulated":>12}{"roofline":>12}{"early":>12}')
    for machine in machines:
        for name in PROGRAMS:
            with tempfile.TemporaryDirectory() as folder:
                flags = f'--xla_jf_dump_static_llo_profile_to={folder}'
                command = [sys.executable, '-m', 'tests.benchmarks.schedule', machine, name, folder]
                done = subprocess.run(
                    command, env={**os.environ, 'LIBTPU_INIT_ARGS': flags}, capture_output=True, text=True
                )
                print(
                    done.stdout.rstrip() if done.returncode == 0 else f'{machine:12}{name:26}   the simulation aborts'
                )


if __name__ == '__main__':
    if len(sys.argv) == 4 and sys.argv[2] in PROGRAMS:
        compare(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:] or ['v6e:2x2', 'v5p:2x2x1'])
