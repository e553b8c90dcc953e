"""Files as PyTorch writes them, byte by byte, for tests that have no PyTorch."""

import pickle
import zipfile

import numpy as np
import pytest

TYPES = {
    'float64': 'Double',
    'float32': 'Float',
    'float16': 'Half',
    'bfloat16': 'BFloat16',
    'int64': 'Long',
    'int32': 'Int',
    'uint8': 'Byte',
}


def opcodes(value) -> bytes:
    """What a pickle of `value` holds between its header and its end."""
    return pickle.dumps(value, protocol=2)[2:-1]


def view(storage, shape, strides, offset=0):
    """A tensor that looks at the numbers of a one-dimensional array, as `as_strided` does in PyTorch."""
    return storage, offset, shape, strides


def state_pickle(tensors: dict, legacy: bool) -> bytes:
    """The pickle of a state dict: names to `view`s, or to arrays. The storage of the i-th has the key str(i)."""
    items = b''
    for key, (name, tensor) in enumerate(tensors.items()):
        storage, offset, shape, strides = tensor
        kind = TYPES[storage.dtype.name].encode()
        what = opcodes('storage') + b'ctorch\n' + kind + b'Storage\n'
        where = opcodes(str(key)) + opcodes('cuda:0') + opcodes(storage.size) + (opcodes(None) if legacy else b'')
        reference = b'(' + what + where + b'tQ'
        hooks = b'ccollections\nOrderedDict\n)R'
        arguments = (
            b'(' + reference + opcodes(offset) + opcodes(shape) + opcodes(strides) + opcodes(False) + hooks + b't'
        )
        items += opcodes(name) + b'ctorch._utils\n_rebuild_tensor_v2\n' + arguments + b'R'
    return b'\x80\x02ccollections\nOrderedDict\n)R(' + items + b'u.'


def write_torch(path, tensors: dict, legacy: bool = False, pickled: bytes | None = None):
    """Writes a state dict; `pickled` puts another pickle in its place."""

    def contiguous(array):
        strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
        return view(np.ascontiguousarray(array).reshape(-1), array.shape, strides)

    tensors = {name: contiguous(t) if isinstance(t, np.ndarray) else t for name, t in tensors.items()}
    if pickled is None:
        pickled = state_pickle(tensors, legacy)
    storages = {str(key): tensor[0] for key, tensor in enumerate(tensors.values())}
    if legacy:
        system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
        header = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
        keys = sorted(storages)
        numbers = [storages[key].size.to_bytes(8, 'little') + storages[key].tobytes() for key in keys]
        path.write_bytes(b''.join([*header, pickled, pickle.dumps(keys, protocol=2), *numbers]))
        return path
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/byteorder', 'little')
        for key, storage in storages.items():
            archive.writestr(f'archive/data/{key}', storage.tobytes())
    return path


@pytest.fixture(scope='session', name='write_torch')
def write_torch_fixture():
    return write_torch


@pytest.fixture(scope='session', name='view')
def view_fixture():
    return view
