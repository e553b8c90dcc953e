"""Meshes and batches that fit the devices."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from walt.parallel import mesh as mesh_module
from walt.parallel.mesh import AXES, check_batch, make_mesh
from walt.parallel.rules import batch_sharding
from walt.parallel.shard import put_batch, put_filled


def test_one_device_is_a_mesh_of_one():
    assert dict(make_mesh().shape) == dict.fromkeys(AXES, 1)


@pytest.fixture
def eight(monkeypatch):
    """The shapes of the meshes that are made of eight devices."""
    made = []
    monkeypatch.setattr(jax, 'devices', lambda: 8 * [SimpleNamespace(platform='cpu')])
    monkeypatch.setattr(jax, 'make_mesh', lambda shape, *_, **__: made.append(shape))
    return made


def test_the_axis_of_minus_one_takes_the_devices_that_the_others_leave(eight):
    make_mesh(fsdp=2)
    make_mesh(tensor=4, fsdp=2)
    make_mesh(data=2, fsdp=2, tensor=2)
    make_mesh(data=1, fsdp=-1, context=2)
    make_mesh(data=1, context=-1)
    assert eight == [(4, 2, 1, 1), (1, 2, 1, 4), (2, 2, 1, 2), (1, 4, 2, 1), (1, 1, 8, 1)]


@pytest.mark.parametrize(
    'shape', [{'data': 3}, {'tensor': 3}, {'data': 0}, {'fsdp': 16}, {'fsdp': 0}, {'fsdp': -1}, {'context': 3}], ids=str
)
def test_axes_that_do_not_multiply_to_the_devices_are_refused_with_both(shape, eight):
    with pytest.raises(ValueError, match=r'mesh {.*} do not multiply to the 8 devices'):
        make_mesh(**shape)


def tpus(slices: int, each: int):
    """Devices of a multi-slice job, as JAX lists them."""
    return [
        SimpleNamespace(
            platform='tpu',
            device_kind='TPU v4',
            id=s * each + i,
            slice_index=s,
            process_index=s,
            coords=(i % 2, i // 2, 0),
            core_on_chip=0,
        )
        for s in range(slices)
        for i in range(each)
    ]


def test_slices_lie_along_data_and_nothing_else_crosses_them(monkeypatch):
    monkeypatch.setattr(mesh_module, 'Mesh', lambda devices, axes, axis_types: devices)
    devices = make_mesh(data=4, fsdp=2, devices=tpus(2, 4))
    assert devices.shape == (4, 2, 1, 1)
    slices = np.vectorize(lambda device: device.slice_index)(devices)
    assert (slices == np.array([0, 0, 1, 1]).reshape(4, 1, 1, 1)).all()
    with pytest.raises(ValueError, match='2 slices do not divide the axis data of 1 devices'):
        make_mesh(data=1, fsdp=8, devices=tpus(2, 4))


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_both():
    mesh = AbstractMesh((2, 3, 1, 4), AXES)
    check_batch(mesh, 12)
    check_batch(mesh, 12, accumulation=2)
    with pytest.raises(ValueError, match=r'batch_size 8 .* 6 devices'):
        check_batch(mesh, 8)
    with pytest.raises(ValueError, match=r'batch_size 12 in 3 micro-batches .* 6 devices'):
        check_batch(mesh, 12, accumulation=3)


def test_rows_of_a_batch_arrive_in_order_and_as_they_were():
    mesh = make_mesh()
    batch = {'video': np.arange(24, dtype=np.uint8).reshape(4, 6), 'label': np.arange(4, dtype=np.int32)}
    put = put_batch(mesh, batch)
    for name, rows in batch.items():
        assert isinstance(put[name], jax.Array) and put[name].dtype == rows.dtype
        assert put[name].sharding.is_equivalent_to(batch_sharding(mesh), rows.ndim)
        np.testing.assert_array_equal(put[name], rows)


def test_rows_that_devices_do_not_divide_are_filled_up_with_the_last_one(monkeypatch):
    placed = []
    monkeypatch.setattr(jax, 'device_put', lambda rows, sharding: placed.append(np.asarray(rows)))
    put_filled(AbstractMesh((2, 2, 1, 1), AXES), np.arange(6).reshape(6, 1))
    put_filled(AbstractMesh((2, 1, 1, 1), AXES), np.arange(4).reshape(4, 1))
    assert [rows[:, 0].tolist() for rows in placed] == [[0, 1, 2, 3, 4, 5, 5, 5], [0, 1, 2, 3]]
