"""Meshes and batches that fit the devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from walt.parallel.mesh import AXES, check_batch, make_mesh
from walt.parallel.rules import batch_sharding
from walt.parallel.shard import put_batch


def test_one_device_is_a_mesh_of_one():
    assert dict(make_mesh().shape) == {'data': 1, 'fsdp': 1, 'tensor': 1}


def test_data_takes_the_devices_that_the_other_axes_leave(monkeypatch):
    made = []
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    monkeypatch.setattr(jax, 'make_mesh', lambda shape, *_, **__: made.append(shape))
    make_mesh(fsdp=2)
    make_mesh(tensor=4, fsdp=2)
    make_mesh(data=2, fsdp=2, tensor=2)
    assert made == [(4, 2, 1), (1, 2, 4), (2, 2, 2)]


@pytest.mark.parametrize('shape', [{'data': 3}, {'tensor': 3}, {'data': 0}, {'fsdp': 16}, {'fsdp': 0}], ids=str)
def test_axes_that_do_not_multiply_to_the_devices_are_refused_with_both(shape, monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    with pytest.raises(ValueError, match=r'mesh {.*} do not multiply to the 8 devices'):
        make_mesh(**shape)


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_both():
    mesh = AbstractMesh((2, 3, 4), AXES)
    check_batch(mesh, 12)
    with pytest.raises(ValueError, match=r'batch_size 8 .* 6 devices'):
        check_batch(mesh, 8)


def test_rows_of_a_batch_arrive_in_order_and_as_they_were():
    mesh = make_mesh()
    batch = {'video': np.arange(24, dtype=np.uint8).reshape(4, 6), 'label': np.arange(4, dtype=np.int32)}
    put = put_batch(mesh, batch)
    for name, rows in batch.items():
        assert isinstance(put[name], jax.Array) and put[name].dtype == rows.dtype
        assert put[name].sharding.is_equivalent_to(batch_sharding(mesh), rows.ndim)
        np.testing.assert_array_equal(put[name], rows)
