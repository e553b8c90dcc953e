"""The loop: it resumes exactly, stops when asked, refuses a loss that is not finite, and logs each step once."""

import json
import resource
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.randomness import stream
from walt.training.checkpoints import CheckpointError, latest_step
from walt.training.loop import fit

CONFIG = {'seed': 0, 'steps': 6, 'log_every': 1, 'validate_every': 3, 'checkpoint_every': 2, 'non_finite': 'stop'}


@pytest.fixture
def run(tmp_path, toy):
    """run(workdir=..., step=..., before_save=..., **config): `fit` on the toy model."""

    def run(workdir='run', step=toy.step, before_save=lambda state: state, **config):
        return fit(
            step,
            toy.state(),
            toy.batches,
            workdir=str(tmp_path / workdir),
            config=CONFIG | config,
            put_batch=lambda batch: batch,
            validate=lambda state: {'w': float(state.ema['w'].sum())},
            before_save=before_save,
        )

    return run


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def rows(workdir, prefix):
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != 'train/steps_per_second'}
        for line in lines
        if any(key.startswith(prefix) for key in line)
    ]


def assert_same(state, other):
    for leaf, twin in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, twin)


def test_it_trains_to_the_last_step_saves_it_and_logs_every_step_once(run, tmp_path):
    state = run(steps=5)
    assert state.step == 5
    assert saved_steps(tmp_path / 'run') == [4, 5]
    train = rows(tmp_path / 'run', 'train/')
    assert [row['step'] for row in train] == [row['train/step'] for row in train] == [1, 2, 3, 4, 5]
    assert [row['step'] for row in rows(tmp_path / 'run', 'validation/')] == [3, 5]


def test_a_line_is_the_mean_of_the_steps_since_the_line_before(run, tmp_path):
    run(workdir='fine')
    run(workdir='coarse', log_every=3)
    fine, coarse = (rows(tmp_path / name, 'train/') for name in ('fine', 'coarse'))
    assert [row['step'] for row in coarse] == [3, 6]
    for row, part in zip(coarse, (fine[:3], fine[3:])):
        np.testing.assert_allclose(row['train/loss'], np.mean([step['train/loss'] for step in part]), rtol=1e-6)


def test_the_steps_after_the_last_whole_window_are_logged_with_the_last_step(run, tmp_path):
    run(steps=5, log_every=2, validate_every=5)
    train = rows(tmp_path / 'run', 'train/')
    assert [(row['step'], row['train/step']) for row in train] == [(2, 1.5), (4, 3.5), (5, 5)]


def test_each_step_draws_from_a_key_of_its_own(run, toy):
    keys = []

    def step(state, batch, key):
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return toy.step(state, batch, key)

    run(step=step)
    assert len(set(keys)) == len(keys) == 6


def test_asked_to_stop_it_saves_exits_143_and_goes_on_as_if_unbroken(run, toy, tmp_path):
    """SIGTERM arrives during step 3, which is no step to save at."""
    unbroken = run(workdir='unbroken')

    def terminated(state, batch, key):
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return toy.step(state, batch, key)

    with pytest.raises(SystemExit) as stop:
        run(step=terminated)
    assert stop.value.code == 128 + signal.SIGTERM == 143
    assert saved_steps(tmp_path / 'run') == [2, 3]

    assert_same(run(), unbroken)
    for prefix in ('train/', 'validation/'):
        assert rows(tmp_path / 'run', prefix) == rows(tmp_path / 'unbroken', prefix)


def test_the_steps_before_an_interruption_are_logged_too(run, toy, tmp_path):
    def terminated(state, batch, key):
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return toy.step(state, batch, key)

    every = {'log_every': 4, 'validate_every': 6}
    with pytest.raises(SystemExit):
        run(step=terminated, **every)
    run(**every)
    train = rows(tmp_path / 'run', 'train/')
    assert [(row['step'], row['train/step']) for row in train] == [(3, 2), (4, 4), (6, 5.5)]


def test_asked_to_stop_at_the_last_step_it_just_ends(run, toy, tmp_path):
    def terminated(state, batch, key):
        if state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return toy.step(state, batch, key)

    assert run(step=terminated).step == 6
    assert saved_steps(tmp_path / 'run') == [4, 6]


def test_a_finished_run_does_nothing_more(run, tmp_path):
    state = run()
    before = (tmp_path / 'run' / 'metrics.jsonl').read_text()

    def never(*_):
        raise AssertionError('a step of a finished run')

    assert_same(run(step=never), state)
    assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == before


def test_a_finished_run_can_be_made_longer(run):
    run(steps=4)
    assert_same(run(steps=6), run(workdir='unbroken', steps=6))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('broken', [3, 4, 6])
def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_is_saved_from_then_on(broken, value, run, toy, tmp_path):
    """Step 4 is one to save at, 6 the last; 3 is read when 4 was dispatched."""

    def step(state, batch, key):
        bad = state.step + 1 == broken
        return toy.step(state, {'x': jnp.where(bad, value, batch['x'])}, key)

    with pytest.raises(FloatingPointError, match=f'loss of step {broken} is (nan|inf); gradient of w'):
        run(step=step)
    assert max(saved_steps(tmp_path / 'run')) < broken


def test_what_a_checkpoint_measures_is_measured_before_it_is_saved(run):
    state = run(before_save=lambda state: state.replace(measured={'count': state.measured['count'] + 1}))
    assert state.measured['count'] == 3  # at steps 2, 4 and 6
    again = run()
    assert again.measured['count'] == 3


def test_a_save_that_failed_stops_the_run_and_the_same_command_goes_on_from_the_one_before(run, toy, tmp_path):
    """What is measured at step 40 does not fit on the disk; that is told long before step 80, the next to save at."""
    limits, every = resource.getrlimit(resource.RLIMIT_FSIZE), {'log_every': 40, 'validate_every': 40}

    def measure(state):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        return state.replace(measured=np.random.default_rng(0).normal(size=1_000_000))

    def step(state, batch, key):
        assert state.step < 79
        time.sleep(0.1 if state.step >= 40 else 0)
        return toy.step(state, batch, key)

    run(steps=38, checkpoint_every=40, **every)
    try:
        with pytest.raises(CheckpointError, match=r'checkpoint 40 cannot .*File too large.*\ncheckpoint 38 is whole'):
            run(step=step, before_save=measure, steps=100, checkpoint_every=40, **every)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert latest_step(tmp_path / 'run') == 38
    assert_same(run(steps=42, **every), run(workdir='unbroken', steps=42, **every))


@pytest.fixture
def poisoned(toy):
    """Steps whose batches are NaN in these steps; the batches that were seen, by step, are in `seen`."""

    def make(*broken):
        def step(state, batch, key):
            bad = int(state.step) + 1 in broken
            return toy.step(state, {'x': jnp.where(bad, jnp.nan, batch['x'])}, key)

        return step

    return make


def test_a_skipped_step_is_as_if_its_batch_had_not_been(run, poisoned, tmp_path):
    state = run(step=poisoned(3, 4), non_finite='skip', steps=8)
    assert state.step == 8 and jnp.isfinite(state.params['w']).all()
    assert [row['step'] for row in rows(tmp_path / 'run', 'train/')] == [1, 2, 5, 6, 7, 8]


def test_too_many_bad_steps_stop_the_run(run, poisoned):
    with pytest.raises(FloatingPointError, match='11 bad steps'):
        run(step=poisoned(*range(3, 40)), non_finite='skip', steps=40, checkpoint_every=20)


def test_rollback_forgets_what_was_learnt_since_the_checkpoint_and_goes_on_with_new_batches(run, poisoned, toy):
    """Step 7 is seen to be bad when step 8 was dispatched."""
    state = run(step=poisoned(7), non_finite='rollback', steps=10, checkpoint_every=4, validate_every=10)
    at_4 = run(workdir='four', steps=4)
    rest = toy.batches(8)
    expected = at_4.replace(step=jnp.int32(8))
    for step in (9, 10):
        expected, _ = toy.step(expected, next(rest), stream(jax.random.key(0), 'train', step))
    assert_same(state, expected)


def test_a_killed_run_rolls_back_as_an_unbroken_one(run, poisoned, toy, tmp_path):
    every = dict(non_finite='rollback', steps=12, checkpoint_every=4, validate_every=12)
    unbroken = run(workdir='unbroken', step=poisoned(6), **every)
    step = poisoned(6)

    def killed(state, batch, key):
        if state.step == 6:
            raise KeyboardInterrupt
        return step(state, batch, key)

    with pytest.raises(KeyboardInterrupt):
        run(step=killed, **every)
    assert max(saved_steps(tmp_path / 'run')) == 4
    assert_same(run(step=step, **every), unbroken)
