"""Metrics of a run: JSON lines in `metrics.jsonl` and TensorBoard events, both by step."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter


def by_bin(value_B: jax.Array, place_B: jax.Array, bins: int, where_B: jax.typing.ArrayLike = True) -> jax.Array:
    """A metric by where in [0, 1] its rows are, in equal bins: (2, bins), sums of the values and counts of the rows.

    So it can be averaged over micro-batches and steps, some of which have no row in a bin; `means` divides. Rows where
    `where_B` is False are left out.
    """
    in_bin_BK = jnp.clip(jnp.floor(place_B * bins), 0, bins - 1)[:, None] == jnp.arange(bins)
    in_bin_BK &= jnp.reshape(where_B, (-1, 1))
    return jnp.stack([(in_bin_BK * value_B[:, None]).sum(0), in_bin_BK.sum(0).astype(value_B.dtype)])


def means(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Means over steps, by name; NAME/1, NAME/2, .. of the bins of `by_bin` that have rows."""
    found = {}
    for name in rows[0]:
        mean = np.mean([row[name] for row in rows], axis=0)
        if mean.ndim == 0:
            found[name] = float(mean)
        else:
            bins = enumerate(zip(*mean), start=1)
            found |= {f'{name}/{number}': float(total / count) for number, (total, count) in bins if count}
    return found


class Metrics:
    """Appends to the metrics of a run that goes on from `step`; what an interrupted run wrote later is dropped.

    Only the process with `write` on (host 0) touches the disk.
    """

    def __init__(self, workdir: str | Path, step: int, write: bool = True):
        self._write = write
        if not write:
            return
        path = Path(workdir) / 'metrics.jsonl'
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        unfinished = path.with_name(f'.{path.name}.unfinished')
        unfinished.write_text(
            ''.join(line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= step)
        )
        unfinished.replace(path)
        self._lines = path.open('a', buffering=1)
        self._board = SummaryWriter(str(Path(workdir) / 'tensorboard'), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float | np.ndarray]) -> None:
        """One line and one event for each value; names are `phase/quantity`.

        Pictures, uint8 (H, W, 3), go to TensorBoard alone.

        Raises:
            OSError: if the line cannot be written, naming the file.
        """
        if not self._write:
            return
        scalars = {name: float(value) for name, value in values.items() if np.ndim(value) == 0}
        try:
            self._lines.write(json.dumps({'step': step, **scalars}) + '\n')
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._lines.name) from error
        for name, value in values.items():
            if np.ndim(value) == 3:
                self._board.add_image(name, value, step, dataformats='HWC')
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> 'Metrics':
        return self

    def __exit__(self, kind, *_) -> None:
        """What cannot be closed, because the disk is full, does not hide the error that told of it."""
        if not self._write:
            return
        for file in (self._lines, self._board):
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                file.close()
