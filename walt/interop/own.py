"""Our own names: the path of every parameter with dots between its parts, and what is measured beside them.

params.blocks.spatial.attention.qkv.kernel      layers that are scanned are stacked along the first axis
measured.mean_C, measured.std_C                 of a tokenizer's latents
measured.text_SE, measured.mask_S               of a denoiser with texts: the null text
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import serialization

from walt.interop.table import check, flat, nested


def export(trained: Mapping[str, Any]) -> dict[str, Any]:
    """{'params': a nested dict, 'measured': a dataclass or None} -> arrays by name."""
    measured = serialization.to_state_dict(trained['measured']) or {}
    return flat({'params': trained['params'], 'measured': measured}, '.')


def load(
    arrays: Mapping[str, np.ndarray],
    trained: Mapping[str, Any],
    source,
    allow_missing: Iterable[str] = (),
    initial: Callable[[], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The inverse of `export`; `trained` in shapes. Other arguments and errors as `Table.load`; what is measured may
    not be missing."""
    expected = export(trained)
    check(arrays, expected, source, allow_missing)
    missing = set(expected) - set(arrays)
    if measured := sorted(name for name in missing if name.startswith('measured.')):
        raise ValueError(f'{source} lacks {measured}, which nothing can stand for')
    begun = export({'params': initial(), 'measured': None}) if missing else {}
    found = {name: np.asarray(arrays.get(name, begun.get(name)), leaf.dtype) for name, leaf in expected.items()}
    tree = nested(found, '.')
    measured = serialization.from_state_dict(trained['measured'], tree.get('measured'))
    return {'params': tree['params'], 'measured': jax.tree.map(np.asarray, measured)}
