"""Elements of a data set as records in shards: ArrayRecord files that any element can be read from.

A folder holds

    manifest.json                     what is in it and what it was made from; `keys` and `shards` are read here
    00000-of-00002.arrayrecord        the elements 0, 1, ... in order, `shards[0]['clips']` of them
    00001-of-00002.arrayrecord        those after them

All elements of a data set have the same keys with the same dtypes and shapes, which the manifest therefore says once,

    "keys": {"z": {"dtype": "float32", "shape": [5, 16, 16, 8]}, "caption": {"dtype": "str", "shape": []}, ...}

and a record is nothing but their bytes in this order: arrays row by row in little endian, each text as its length in
bytes (uint32) and UTF-8. An extent of null is another in every element, and stands before its bytes (uint32). Latents
look like noise, so nothing is compressed. The same elements make the same bytes.
"""

import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - tells NumPy what 'bfloat16' is
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

MANIFEST = 'manifest.json'

Keys = Mapping[str, Mapping[str, Any]]
"""Key of an element -> its `dtype` by name, 'str' for texts, and its `shape`, in which None is any extent."""

_LENGTH = struct.Struct('<I')


def keys_of(element: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The `Keys` of an element; raises ValueError where it holds Python objects."""
    return {key: _kind(key, value) for key, value in element.items()}


def pack(element: Mapping[str, Any], keys: Keys) -> bytes:
    """One record. Raises ValueError where the element has other keys, dtypes or shapes, naming both."""
    found = keys_of(element)
    if set(found) != set(keys) or not all(_fits(found[key], keys[key]) for key in keys):
        raise ValueError(f'an element has {found}, the data set {dict(keys)}')
    parts = []
    for key in keys:
        extents = zip(found[key]['shape'], keys[key]['shape'])
        parts += [_LENGTH.pack(extent) for extent, said in extents if said is None]
        if keys[key]['dtype'] == 'str':
            for text in np.asarray(element[key]).ravel():
                utf8 = str(text).encode()
                parts += [_LENGTH.pack(len(utf8)), utf8]
        else:
            parts.append(np.asarray(element[key]).tobytes())
    return b''.join(parts)


def unpack(record: bytes, keys: Keys) -> dict[str, Any]:
    """The element of a record, arrays read-only. Raises ValueError where the record has another length."""
    element, place = {}, 0
    for key, kind in keys.items():
        shape = []
        for said in kind['shape']:
            shape.append(_LENGTH.unpack_from(record, place)[0] if said is None else said)
            place += _LENGTH.size if said is None else 0
        count = math.prod(shape)
        if kind['dtype'] == 'str':
            texts = []
            for _ in range(count):
                start = place + _LENGTH.size
                place = start + _LENGTH.unpack_from(record, place)[0]
                texts.append(record[start:place].decode())
            element[key] = np.array(texts).reshape(shape) if shape else texts[0]
        else:
            dtype = np.dtype(kind['dtype'])
            element[key] = np.frombuffer(record, dtype, count, place).reshape(shape)
            place += count * dtype.itemsize
    if place != len(record):
        raise ValueError(f'a record of {len(record)} bytes, but {dict(keys)} take {place}')
    return element


def shards_of(clips: int, shard_size: int) -> list[dict[str, Any]]:
    """File and number of elements of each shard, `shard_size` in all but the last."""
    count = -(-clips // shard_size)
    return [
        {'file': f'{i:05}-of-{count:05}.arrayrecord', 'clips': min(shard_size, clips - i * shard_size)}
        for i in range(count)
    ]


def write_shard(path: Path, records: Iterable[bytes]) -> None:
    """Writes a shard, which appears under its name when it is complete; what an interrupted run left is replaced."""
    unfinished = path.with_name(f'.{path.name}.unfinished')
    writer = ArrayRecordWriter(os.fspath(unfinished), 'group_size:1,uncompressed')
    for record in records:
        writer.write(record)
    writer.close()
    unfinished.replace(path)


def _fits(found: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether what an element has under a key is what the data set has there."""
    if found['dtype'] != said['dtype'] or len(found['shape']) != len(said['shape']):
        return False
    return all(extent in (one, None) for one, extent in zip(found['shape'], said['shape']))


def _kind(key: str, value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    if array.dtype.kind in 'OS':
        raise ValueError(f'{key!r} must be numbers or text, not {array.dtype} {array.shape}')
    return {'dtype': 'str' if array.dtype.kind == 'U' else array.dtype.name, 'shape': list(array.shape)}
