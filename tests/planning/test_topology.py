"""Machines by name, their rings, and what the TPU compiler says."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from walt.parallel.mesh import make_mesh
from walt.planning.topology import overflow, topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install -e '.[tpu]'"
)


def test_a_name_says_chip_and_sides():
    pod = topology('v5p:4x4x8')
    assert (pod.chip.name, pod.sides, pod.count) == ('v5p', (4, 4, 8), 128)
    assert topology('v6e:16x16').count == 256
    assert topology('h100:8').count == 8


@pytest.mark.parametrize('text', ['v5p', 'v5p:4x4', 'v6e:4x4x4', 'h100:2x4', 'v6e:4x', 'v6e:0x4', 'v6e:axb'])
def test_a_size_that_is_not_the_chips_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=f"'{text}' needs a size such as {text[:3]}"):
        topology(text)


def test_an_unknown_chip_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown chip 'v7' in topology 'v7:4x4'; choices: \['a100', .*'v6e'\]"):
        topology('v7:4x4')


def _mesh(*sides):
    coords = list(np.ndindex(*sides))
    devices = np.empty(len(coords), object)
    devices[:] = [SimpleNamespace(coords=coord) for coord in coords]
    return SimpleNamespace(devices=devices)


def test_a_ring_has_the_links_of_the_axes_it_extends_in():
    link = 100e9
    line, ring = (2, 2, 2), (4, 4, 4)
    for sides, links in ((line, 1), (ring, 2)):
        mesh = _mesh(*sides)
        of = {
            name: topology('v5p:' + 'x'.join(map(str, sides))).bandwidth(mesh, members)
            for name, members in {
                'one axis': range(sides[2]),
                'two axes': range(sides[1] * sides[2]),
                'all': range(len(mesh.devices)),
            }.items()
        }
        assert of == {'one axis': links * link, 'two axes': 2 * links * link, 'all': 3 * links * link}


def test_half_of_a_ring_is_a_line():
    mesh, pod = _mesh(4, 4, 8), topology('v5p:4x4x8')
    assert pod.bandwidth(mesh, range(8)) == 2 * pod.bandwidth(mesh, range(4)) == 200e9


def test_a_switch_gives_a_chip_all_it_has():
    assert topology('h100:8').bandwidth(None, ()) == 450e9


def test_an_overflow_says_how_much_was_asked_for():
    text = (
        'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
        'temporaries (40.50G) exceeds available HBM (31.25G). HLO module: jit_step.'
    )
    assert overflow(text) == (int(40.5 * 2**30), int(31.25 * 2**30))
    with pytest.raises(RuntimeError, match='not for want of memory: INTERNAL: odd'):
        overflow('INTERNAL: odd')


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"compiling for v6e:2x2 needs libtpu: pip install -e '\.\[tpu\]'"):
        topology('v6e:2x2').devices()


@needs_libtpu
def test_a_slice_has_a_device_for_every_chip_and_a_mesh_of_all_of_them():
    pod = topology('v5p:2x2x2')
    devices = pod.devices()
    mesh = make_mesh(data=2, fsdp=4, devices=devices)
    assert set(mesh.devices.flat) == set(devices) and mesh.shape['fsdp'] == 4
    assert pod.bandwidth(mesh, range(8)) == 3 * pod.chip.link_bandwidth


@needs_libtpu
def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"topology 'v6e:3x5'"):
        topology('v6e:3x5').devices()
