"""The metrics of a run, also of one that was interrupted."""

import errno
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX import SummaryWriter

from walt.training.metrics import Metrics, by_bin, means


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_each_write_is_a_line_on_disk_at_once(tmp_path):
    with Metrics(tmp_path, 0) as metrics:
        metrics.write(1, {'train/loss': 0.5})
        assert lines(tmp_path) == [{'step': 1, 'train/loss': 0.5}]
        metrics.write(2, {'train/loss': 0.25, 'train/rate': 3})
    assert lines(tmp_path)[1] == {'step': 2, 'train/loss': 0.25, 'train/rate': 3.0}


def test_a_continued_run_drops_what_was_written_after_its_checkpoint(tmp_path):
    with Metrics(tmp_path, 0) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {'train/loss': step})
    with Metrics(tmp_path, 2) as metrics:
        metrics.write(3, {'train/loss': 30})
    assert [(line['step'], line['train/loss']) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "tra')
    with Metrics(tmp_path, 2) as metrics:
        metrics.write(3, {'train/loss': 0.1})
    assert [line['step'] for line in lines(tmp_path)] == [1, 3]


def test_tensorboard_is_told_where_the_run_goes_on(tmp_path, monkeypatch):
    """It then hides the events of that step and later ones."""
    opened = []
    monkeypatch.setattr('walt.training.metrics.SummaryWriter', lambda *args, **kwargs: opened.append((args, kwargs)))
    metrics = Metrics(tmp_path, 2)
    metrics._lines.close()
    assert opened == [((str(tmp_path / 'tensorboard'),), {'purge_step': 3})]


def test_tensorboard_has_every_value_by_its_step(tmp_path, monkeypatch):
    added = []
    monkeypatch.setattr(SummaryWriter, 'add_scalar', lambda self, *event: added.append(event))
    with Metrics(tmp_path, 0) as metrics:
        metrics.write(4, {'a': 1.0, 'b': 2.0})
    assert added == [('a', 1.0, 4), ('b', 2.0, 4)]


@pytest.mark.parametrize('write', [True, False])
def test_only_the_writing_process_touches_the_disk(tmp_path, write):
    with Metrics(tmp_path, 0, write=write) as metrics:
        metrics.write(1, {'train/loss': 0.5})
    assert any(tmp_path.iterdir()) == write


def test_a_line_that_cannot_be_written_names_its_file_also_if_that_cannot_be_closed(tmp_path):
    class Full:
        name = 'metrics.jsonl'

        def write(self, line):
            raise OSError(errno.ENOSPC, 'No space left on device')

        def close(self):
            raise OSError(errno.ENOSPC, 'closed')

    with pytest.raises(OSError, match=r"No space left on device: 'metrics.jsonl'"), Metrics(tmp_path, 0) as metrics:
        metrics._lines.close()
        metrics._lines = Full()
        metrics.write(1, {'train/loss': 0.5})


def test_a_metric_by_bin_is_the_mean_of_the_rows_in_it_over_steps_that_had_some():
    place_B, value_B = jnp.array([0.0, 0.49, 0.5, 1.0]), jnp.array([1.0, 3.0, 10.0, 20.0])
    whole = by_bin(value_B, place_B, 4)
    np.testing.assert_array_equal(whole, [[1, 3, 10, 20], [1, 1, 1, 1]])
    rows = [np.array([0, 1]), np.array([0, 3])]
    steps = [{'loss': np.float32(2), 'by': np.asarray(by_bin(value_B[some], place_B[some], 3))} for some in rows]
    found = means(steps)
    assert found == {'loss': 2.0, 'by/1': 1.0, 'by/2': 3.0, 'by/3': 20.0}
