"""Metrics of a run: JSON lines in `metrics.jsonl` and TensorBoard events, both by step."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


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
