"""Encoding a data set once, so that training costs no passes of frozen networks: the tokenizer, and a text encoder.

    element of the source                       element on disk
    video, uint8 (T, H, W, 3)                   z, normalised latents, and what else `encode` makes of pixels
    images, uint8 (k, T, H, W, 3)               images_z
    caption                                     caption; text (S, D), text_mask (S,), where there is a text encoder
    label, ...                                  label, ...

Every shard is encoded by itself, in batches of one size that start at its first clip (the last is filled up). So one
process or several, at a stretch or interrupted, write the same bytes, as long as a device is given as many clips at a
time; otherwise they may differ by roundings. Of a source of clips of many sizes (`sizes_N3`) those of one size are
encoded together, shard by shard, with a compiled program for each size.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from walt.data.encoded import FORMAT, NULL_TEXT, SIZES, Encoded
from walt.data.pipeline import epoch
from walt.data.records import MANIFEST, keys_of, pack, shards_of, write_shard
from walt.parallel.distributed import fetch, first_process, wait_for_all
from walt.parallel.mesh import check_batch, make_mesh
from walt.parallel.rules import activate, replicated
from walt.parallel.shard import put_batch
from walt.tokenizer.frozen import FrozenTokenizer
from walt.training.checkpoints import differences
from walt.training.feed import Texts

DTYPES = ('float32', 'float16', 'bfloat16')

EncodeText = Callable[[list[str]], tuple[Any, Any]]
"""B texts -> embeddings (B, S, D) float32, mask (B, S) bool: `encode` of a `walt.text.encoder.TextEncoder`."""

_PIXELS = ('video', 'images')

Batch = Mapping[str, np.ndarray]


def write_latents(
    root: str | Path,
    split: str,
    frozen: FrozenTokenizer,
    source,
    *,
    origin: Mapping[str, Any],
    mesh: Mesh,
    batch_size: int,
    clips: int | None = None,
    shard_size: int = 1024,
    dtype: str = 'float32',
    encode: Callable[[FrozenTokenizer, Batch], Mapping[str, Any]] = lambda frozen, batch: {
        'z': frozen.encode(batch['video'])
    },
    text: EncodeText | None = None,
    worker: int | None = None,
    workers: int | None = None,
) -> None:
    """Encodes a source into shards under ROOT/SPLIT, those that are not there yet; `Encoded(root, split)` reads them.

    Args:
        origin: plain values that say what the latents are made of: `data`, the source's section; `tokenizer`, with the
            `checkpoint` it is from; `text`, of the text encoder. Kept in the manifest.
        mesh: devices that share a batch. Among several processes each encodes shards of its own on its own devices.
        batch_size: clips encoded together; among several processes, by all of them.
        clips: how many, from the first on; all by default.
        shard_size: clips in a shard.
        dtype: of the latents on disk, one of `DTYPES`.
        encode: (tokenizer, the pixels of a batch) -> latents by name, among them `z`; compiled.
        text: of captions; embeddings are kept as float16, and those of '' in `null_text.npz`.
        worker, workers: this process writes the shards worker, worker + workers, ...; each is a program of its own. By
            default they are the processes of this program.

    Raises:
        ValueError: if the folder was begun with something else than this, naming each difference with both values; on
            an unknown dtype, a worker out of range, captions that are missing, a text encoder that `origin` does not
            tell of, or keys that two of source, `encode` and `text` give.
    """
    if dtype not in DTYPES:
        raise ValueError(f'unknown dtype {dtype!r}; choices: {DTYPES}')
    worker, workers = jax.process_index() if worker is None else worker, workers or jax.process_count()
    if not 0 <= worker < workers:
        raise ValueError(f'worker {worker} must be one of {workers} workers, counted from 0')
    if jax.process_count() > 1 and (worker, workers) != (jax.process_index(), jax.process_count()):
        here = f'process {jax.process_index()} of {jax.process_count()}'
        raise ValueError(f'this is {here}, which cannot be worker {worker} of {workers}')
    if (text is None) == ('text' in origin):
        raise ValueError(f"a text encoder and what it is, origin['text'], come together; origin has {sorted(origin)}")
    check_batch(mesh, batch_size)
    clips = min(clips or len(source), len(source))
    folder, shards = Path(root) / split, shards_of(clips, shard_size)
    claim = {
        'format': FORMAT,
        'walt': importlib.metadata.version('walt'),
        'split': split,
        'clips': clips,
        'fps': getattr(source, 'fps', None),
        'num_classes': source.num_classes,
        **origin,
        'tokenizer': {**origin['tokenizer'], **describe(frozen)},
        'shard_size': shard_size,
    }
    claim = json.loads(json.dumps(claim))
    _check_claim(folder, claim)
    if jax.process_count() > 1:
        mesh, rows_per_device = make_mesh(devices=jax.local_devices()), max(1, batch_size // jax.device_count())
        batch_size = rows_per_device * jax.local_device_count()
        frozen = jax.device_put(fetch(frozen), replicated(mesh))
    pixels_N3 = np.asarray(getattr(source, 'sizes_N3', np.zeros((clips, 3))))[:clips]
    mixed = len(np.unique(pixels_N3, axis=0)) > 1
    sizes_N3 = _latent_sizes(frozen, pixels_N3) if mixed else None
    todo = [i for i in range(worker, len(shards), workers) if not (folder / shards[i]['file']).exists()]

    @jax.jit
    def to_disk(frozen, pixels):
        return jax.tree.map(lambda z: z.astype(dtype), encode(frozen, pixels))

    texts = Texts(text) if text else None

    def encode_batch(batch: Batch) -> dict[str, Any]:
        pixels = {key: rows for key, rows in batch.items() if key in _PIXELS}
        given = {key: rows for key, rows in batch.items() if key not in _PIXELS}
        parts = [given, to_disk(frozen, put_batch(mesh, pixels))]
        parts += [text_arrays(texts, batch)] if texts else []
        doubled = sorted(key for one, other in itertools.combinations(parts, 2) for key in set(one) & set(other))
        if doubled:
            raise ValueError(f'keys {doubled} are given twice, by two of {[sorted(part) for part in parts]}')
        return {key: rows for part in parts for key, rows in part.items()}

    clips_todo = sum(shards[i]['clips'] for i in todo)
    with activate(mesh), tqdm(desc='encode', total=clips_todo, unit='clip', disable=not first_process()) as bar:
        for i in todo:
            part = _Part(source, range(i * shard_size, i * shard_size + shards[i]['clips']))
            elements = _size_by_size(part, pixels_N3, batch_size, encode_batch) if mixed else None
            elements = elements or _elements(part, batch_size, encode_batch)
            first = next(elements)
            keys = keys_of(first)
            if mixed:
                keys['z']['shape'][:3] = [None] * 3
            _claim(folder, claim | {'keys': keys, 'shards': shards}, texts, worker, sizes_N3)
            records = (pack(element, keys) for element in itertools.chain([first], elements))
            write_shard(folder / shards[i]['file'], _counted(records, bar))
    wait_for_all(f'{split} encoded')


def encoded(root: str | Path, split: str, frozen: FrozenTokenizer, source, **options) -> Encoded:
    """The latents of a source, from ROOT/SPLIT as far as they are there; options and errors as `write_latents`."""
    write_latents(root, split, frozen, source, **options)
    return Encoded(root, split)


def text_arrays(texts: Texts, batch: Batch) -> dict[str, np.ndarray]:
    """`text` float16 (B, S, D) and `text_mask` bool (B, S) of `caption`, and so for captions of other names.

    Raises:
        ValueError: if the batch has no caption.
    """
    captions = {key: rows for key, rows in batch.items() if key.endswith('caption')}
    if 'caption' not in captions:
        raise ValueError(f"texts are encoded from 'caption', but elements of the data have {sorted(batch)}")
    return {key: rows if rows.dtype == bool else rows.astype(np.float16) for key, rows in texts(captions).items()}


def describe(frozen: FrozenTokenizer) -> dict[str, Any]:
    """What tells a tokenizer from others: `checksum` of parameters and norm; and the norm, `mean` and `std`."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path({'params': frozen.params, 'norm': frozen.norm}):
        array = fetch(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    mean_C, std_C = (fetch(moment).tolist() for moment in (frozen.norm.mean_C, frozen.norm.std_C))
    return {'checksum': digest.hexdigest(), 'mean': mean_C, 'std': std_C}


def latent_shape(frozen: FrozenTokenizer, source) -> tuple[int, ...]:
    """(frames, height, width, channels) of a source's latents, which may be encoded already.

    Raises:
        ValueError: as `check_latents` for those, as `Tokenizer.latent_shape` for clips.
    """
    if isinstance(source, Encoded):
        check_latents(source, frozen)
        return source.latent_shape
    return frozen.module.latent_shape(*source[0]['video'].shape[:3])


def check_latents(latents: Encoded, frozen: FrozenTokenizer) -> None:
    """Raises `ValueError` if the latents are of another tokenizer than `frozen`, naming both checksums."""
    there, now = latents.manifest['tokenizer'], describe(frozen)
    if there['checksum'] != now['checksum']:
        raise ValueError(
            f'{latents.folder} holds latents of the tokenizer {there["checksum"]} ({there["checkpoint"]}), '
            f'the tokenizer of this run is {now["checksum"]}'
        )


def _check_claim(folder: Path, claim: Mapping[str, Any]) -> None:
    """Raises `ValueError` if the folder has a manifest that differs in an entry of `claim`."""
    path = folder / MANIFEST
    if not path.exists():
        return
    there = json.loads(path.read_text())
    # The same tokenizer may lie elsewhere; shards follow from `clips` and `shard_size`.
    changed = differences({key: there.get(key) for key in claim}, claim, ('tokenizer.checkpoint', 'shards'))
    if changed:
        raise ValueError(f'{folder} was begun with something else:\n' + '\n'.join(changed))


def _claim(
    folder: Path, manifest: Mapping[str, Any], texts: Texts | None, worker: int, sizes_N3: np.ndarray | None
) -> None:
    """Writes the manifest, and null text and mixed sizes before it, unless they are there; then they must agree."""
    _check_claim(folder, manifest)
    if (folder / MANIFEST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = {MANIFEST: (json.dumps(manifest, indent=2) + '\n').encode()}
    if texts:
        null, npz = text_arrays(texts, {'caption': np.array([''])}), io.BytesIO()
        np.savez(npz, **{key: rows[0] for key, rows in null.items()})
        files = {NULL_TEXT: npz.getvalue(), **files}
    if sizes_N3 is not None:
        npy = io.BytesIO()
        np.save(npy, sizes_N3)
        files = {SIZES: npy.getvalue(), **files}
    for name, content in files.items():
        unfinished = folder / f'.{name}.{worker}'
        unfinished.write_bytes(content)
        unfinished.replace(folder / name)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some elements of a source, by number."""

    source: Any
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[self.numbers[index]]


def _latent_sizes(frozen: FrozenTokenizer, pixels_N3: np.ndarray) -> np.ndarray:
    """int32 (N, 3): of the latents of clips of these sizes."""
    sizes, which_N = np.unique(pixels_N3, axis=0, return_inverse=True)
    latents = [frozen.module.latent_shape(*map(int, size))[:3] for size in sizes]
    return np.array(latents, np.int32)[which_N.reshape(-1)]


def _size_by_size(
    part: _Part, pixels_N3: np.ndarray, batch_size: int, encode_batch: Callable[[Batch], dict[str, Any]]
) -> Iterator[dict]:
    """The encoded elements in order, all of which are held: those of one size come together."""
    by_size, made = {}, {}
    for number in part.numbers:
        by_size.setdefault(tuple(pixels_N3[number]), []).append(number)
    for numbers in by_size.values():
        made |= zip(numbers, _elements(_Part(part.source, numbers), batch_size, encode_batch))
    yield from (made.pop(number) for number in part.numbers)


def _elements(part: _Part, batch_size: int, encode_batch: Callable[[Batch], dict[str, Any]]) -> Iterator[dict]:
    """The encoded elements in order; a batch is read from the device after the next one was sent there."""

    def rows(encoded: Mapping[str, Any], count: int) -> Iterator[dict]:
        arrays = {key: np.asarray(rows) for key, rows in encoded.items()}
        for row in range(count):
            yield {key: array[row] for key, array in arrays.items()}

    pending = None
    for batch in epoch(part, batch_size, keys=tuple(part[0])):
        count = len(batch['video'])
        if count < batch_size:
            batch = {
                key: np.concatenate([rows, rows[-1:].repeat(batch_size - count, 0)]) for key, rows in batch.items()
            }
        following = encode_batch(batch), count
        if pending:
            yield from rows(*pending)
        pending = following
    yield from rows(*pending)


def _counted(records: Iterator[bytes], bar: tqdm) -> Iterator[bytes]:
    for record in records:
        yield record
        bar.update()
