"""The compiler's report of its schedule."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from walt.planning import hlo, schedule
from walt.planning.roofline import work
from walt.planning.topology import compile_for_tpu, topology

REPORT = """HLO: <no-hlo-instruction>
 - MXU_0 matmul: (0/52) - 0
 - VECTOR_EUP: (0/206) - 0

HLO: %copy-start = (bf16[8]{0:S(1)}, bf16[8]{0}, u32[]{:S(2)}) copy-start(%a.1)
 - VECTOR_EUP: (0/24) - 0

HLO: ROOT %fusion.2 = bf16[8]{0} fusion(%copy-done, %b.1), kind=kOutput, calls=%f
 - MXU_0 matmul_packed: (1568/1610) - 0.97
 - VECTOR_EUP: (0/12880) - 0

HLO: ROOT %fusion.2 = bf16[8]{0} fusion(%copy-done, %b.1), kind=kOutput, calls=%f
 - VECTOR_EUP: (3/20) - 0.15
"""


def test_bundles_are_those_of_all_parts_of_an_instruction():
    assert schedule.bundles(REPORT) == {'copy-start': 24, 'fusion.2': 12900}


def test_what_the_environment_says_to_libtpu_stays(monkeypatch):
    monkeypatch.setenv('LIBTPU_INIT_ARGS', '--mine=1')
    schedule.ask()
    schedule.ask()
    first, *rest = schedule.os.environ['LIBTPU_INIT_ARGS'].split()
    assert first == '--mine=1' and len(rest) == 3


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_product_on_a_tpu_has_a_schedule_that_its_arithmetic_nearly_fills():
    pod = topology('v6e:2x2')
    sharding = SingleDeviceSharding(pod.devices()[0])

    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in ((8192, 2048), (2048, 2048))]
    program = compile_for_tpu(lambda a, b: a @ b, *arrays)
    (product,) = (w for w in work(hlo.parse(program.text), program.bundles) if w.flops)
    peak = product.flops / pod.chip.peak_flops
    assert peak < product.bundles / pod.chip.clock < 1.5 * peak
