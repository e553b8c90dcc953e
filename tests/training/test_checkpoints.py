"""Checkpoints: exact, separable, complete or not there, and a workdir that belongs to one experiment."""

import contextlib
import json
import os
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    claim_workdir,
    latest_step,
    restore_ema,
    save_ema,
    saved_config,
)
from walt.training.code import code_version

CONFIG = {'seed': 3, 'optimizer': {'name': 'adamw', 'betas': (0.9, 0.99)}}


@pytest.fixture(scope='module')
def run(tmp_path_factory, toy):
    """A workdir with steps 1 and 2, and the state of step 2."""
    workdir, state, batches = tmp_path_factory.mktemp('run'), toy.state(), toy.batches()
    with Checkpoints(workdir, CONFIG) as checkpoints:
        for step in (1, 2):
            state, _ = toy.step(state, next(batches), jax.random.key(step))
            state = state.replace(measured={'count': jnp.asarray(float(step))})
            checkpoints.save(state)
    return workdir, state


def abstract_ema(state):
    return jax.eval_shape(lambda: {'params': state.ema, 'measured': state.measured})


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, twin in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
        assert leaf.dtype == twin.dtype
        np.testing.assert_array_equal(leaf, twin)


def test_a_restored_state_is_the_saved_one(run, toy):
    workdir, state = run
    with Checkpoints(workdir, CONFIG) as checkpoints:
        restored = checkpoints.restore_latest(toy.state())
    assert_same(restored, state)


def test_a_restored_state_lies_where_the_new_one_would(run, toy):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    new = jax.device_put(toy.state(), sharding)
    with Checkpoints(run[0], CONFIG) as checkpoints:
        restored = checkpoints.restore_latest(new)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))


def test_without_a_checkpoint_the_given_state_comes_back(tmp_path, toy):
    state = toy.state()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore_latest(state) is state


def test_the_average_is_restored_without_the_optimizer(run, tmp_path):
    workdir, state = run
    sampling_only = shutil.copytree(workdir, tmp_path / 'copy')
    shutil.rmtree(sampling_only / 'checkpoints' / '2' / 'state')
    restored, step = restore_ema(sampling_only, abstract_ema(state))
    assert step == 2 and set(restored) == {'params', 'measured'}
    assert_same(restored, {'params': state.ema, 'measured': state.measured})


def test_an_older_step_can_be_asked_for(run):
    workdir, state = run
    restored, step = restore_ema(workdir, abstract_ema(state), step=1)
    assert step == 1 and restored['measured']['count'] == 1


def test_a_missing_step_names_those_that_exist(run):
    workdir, state = run
    with pytest.raises(FileNotFoundError, match=r'step 7 in .*checkpoints; there are steps \[1, 2\]'):
        restore_ema(workdir, abstract_ema(state), step=7)
    with pytest.raises(FileNotFoundError, match='step 7'):
        saved_config(workdir, 7)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/nowhere/checkpoints'):
        restore_ema(tmp_path / 'nowhere', {})
    (tmp_path / 'empty' / 'checkpoints').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f'no complete checkpoint in {tmp_path}/empty/checkpoints'):
        saved_config(tmp_path / 'empty')
    assert latest_step(tmp_path / 'nowhere') is latest_step(tmp_path / 'empty') is None
    assert not (tmp_path / 'nowhere').exists()


def test_the_configuration_is_in_the_checkpoint(run):
    assert saved_config(run[0]) == {'seed': 3, 'optimizer': {'name': 'adamw', 'betas': [0.9, 0.99]}}


def test_the_newest_checkpoints_stay(tmp_path, toy):
    state = toy.state()
    with Checkpoints(tmp_path, CONFIG, keep=2) as checkpoints:
        for step in (3, 5, 9):
            checkpoints.save(state.replace(step=jnp.asarray(step, jnp.int32)))
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['5', '9']
    assert latest_step(tmp_path) == 9


def test_a_step_that_is_there_is_not_saved_again(run, toy, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / 'copy')
    with Checkpoints(workdir, CONFIG) as checkpoints:
        checkpoints.save(run[1].replace(ema={'w': jnp.zeros(3)}))
    restored, _ = restore_ema(workdir, abstract_ema(run[1]))
    assert_same(restored['params'], run[1].ema)


def test_a_checkpoint_that_was_cut_short_is_passed_over(run, toy, tmp_path):
    """A save writes under another name and is renamed when it is complete."""
    workdir = shutil.copytree(run[0], tmp_path / 'copy')
    checkpoints = workdir / 'checkpoints'
    shutil.copytree(checkpoints / '2', checkpoints / '3.orbax-checkpoint-tmp')
    shutil.rmtree(checkpoints / '3.orbax-checkpoint-tmp' / 'ema')
    assert latest_step(workdir) == 2
    with Checkpoints(workdir, CONFIG) as manager:
        assert manager.restore_latest(toy.state()).step == 2


def test_an_average_alone_can_be_saved_and_restored(run, tmp_path):
    averaged = {'params': run[1].ema, 'measured': run[1].measured}
    save_ema(tmp_path, averaged, {'name': 'tokenizer'}, 42)
    restored, step = restore_ema(tmp_path, abstract_ema(run[1]))
    assert step == latest_step(tmp_path) == 42 and saved_config(tmp_path) == {'name': 'tokenizer'}
    assert_same(restored, averaged)


@pytest.fixture(scope='module')
def several(tmp_path_factory, toy):
    """A workdir with averages of three decays, and their state."""
    workdir, state = tmp_path_factory.mktemp('several'), toy.state()
    more = {'0.5': {'w': jnp.array([1.0, 5.0, 9.0])}, '0.9999': {'w': jnp.array([2.0, 4.0, 8.0])}}
    state = state.replace(step=jnp.asarray(7, jnp.int32), ema={'w': jnp.array([0.0, 3.0, 6.0])}, more_ema=more)
    with Checkpoints(workdir, {'ema_decay': (0.9, 0.5, 0.9999)}) as checkpoints:
        checkpoints.save(state)
    return workdir, state


@pytest.mark.parametrize('decay', [None, 0.9, 0.5, 0.9999])
def test_any_of_several_averages_can_be_restored_alone(several, tmp_path, decay):
    workdir, state = several
    item = 'ema' if decay in (None, 0.9) else f'ema_{decay}'
    alone = shutil.copytree(workdir, tmp_path / 'copy')
    for other in {'state', 'ema', 'ema_0.5', 'ema_0.9999'} - {item}:
        shutil.rmtree(alone / 'checkpoints' / '7' / other)
    restored, step = restore_ema(alone, abstract_ema(state), decay=decay)
    expected = state.ema if item == 'ema' else state.more_ema[str(decay)]
    assert step == 7
    assert_same(restored, {'params': expected, 'measured': state.measured})


def test_an_average_that_is_not_there_is_refused_with_those_that_are(several, run, tmp_path):
    workdir, state = several
    with pytest.raises(ValueError, match=r'decay 0.99 in .*checkpoints; there are \[0.9, 0.5, 0.9999\]'):
        restore_ema(workdir, abstract_ema(state), decay=0.99)
    save_ema(tmp_path, {'params': state.ema, 'measured': state.measured}, {'ema_decay': 0.9}, 1)
    with pytest.raises(ValueError, match=r'decay 0.5 in .*checkpoints; there are \[0.9\]'):
        restore_ema(tmp_path, abstract_ema(state), decay=0.5)


def test_training_goes_on_with_all_its_averages(several, toy):
    workdir, state = several
    zeros = {name: jax.tree.map(jnp.zeros_like, params) for name, params in state.more_ema.items()}
    with Checkpoints(workdir, {}) as checkpoints:
        restored = checkpoints.restore_latest(toy.state().replace(more_ema=zeros))
    assert_same(restored, state)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # Orbax leaves reads that nobody awaits
def test_a_file_that_was_cut_short_is_told_of_or_was_not_needed_and_never_changes_what_is_restored(run, toy, tmp_path):
    """Every file in turn. The error says which checkpoint is older and how to go on from it, which then works."""
    workdir, state = run
    newest, told = workdir / 'checkpoints' / '2', 0
    files = sorted(path.relative_to(workdir) for path in newest.rglob('*') if path.is_file())
    for number, file in enumerate(files):
        damaged = shutil.copytree(workdir, tmp_path / str(number))
        os.truncate(damaged / file, (damaged / file).stat().st_size // 2)
        with Checkpoints(damaged, CONFIG) as checkpoints:
            try:
                assert_same(checkpoints.restore_latest(toy.state()), state)
                continue
            except CheckpointError as error:
                message = str(error)
        told += 1
        remove = f'rm -r {damaged}/checkpoints/2'
        assert f'checkpoint 2 in {damaged}/checkpoints cannot be read' in message
        assert f'to go on from checkpoint 1, remove it: {remove}' in message
    assert told > 5
    shutil.rmtree(damaged / 'checkpoints' / '2')
    with Checkpoints(damaged, CONFIG) as checkpoints:
        assert checkpoints.restore_latest(toy.state()).step == 1


def test_damage_where_nothing_is_older_and_to_what_sampling_reads_is_told_too(run, toy, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / 'copy')
    shutil.rmtree(workdir / 'checkpoints' / '1')
    for item in ('ema', 'state', 'config'):
        for path in (workdir / 'checkpoints' / '2' / item).rglob('*'):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
    no_older = {'match': r'checkpoint 2 .*\n.* there is no older one'}
    with pytest.raises(CheckpointError, **no_older):
        restore_ema(workdir, abstract_ema(run[1]))
    with pytest.raises(CheckpointError, **no_older):
        saved_config(workdir)
    with Checkpoints(workdir, CONFIG) as checkpoints, pytest.raises(CheckpointError, **no_older):
        checkpoints.restore_latest(toy.state())


LARGE = {'w': np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)}


@contextlib.contextmanager
def full_disk():
    """Files cannot grow over a megabyte, which to the one who writes them is like a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_save_that_fails_is_told_once_with_what_is_left_and_what_to_do(run, toy, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / 'copy')
    with Checkpoints(workdir, CONFIG) as checkpoints:
        with pytest.raises(CheckpointError) as failure, full_disk():
            checkpoints.save(run[1].replace(step=jnp.asarray(3, jnp.int32), params=LARGE))
            checkpoints.wait()
        checkpoints.check()
    message = str(failure.value)
    assert message.startswith(f'checkpoint 3 cannot be written to {workdir}/checkpoints: ')
    assert 'File too large' in message and 'checkpoint 2 is whole; make room there' in message
    assert latest_step(workdir) == 2
    with Checkpoints(workdir, CONFIG) as checkpoints:
        assert_same(checkpoints.restore_latest(toy.state()), run[1])


def test_a_save_that_fails_in_the_background_is_told_without_waiting_for_it(run, tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.raises(CheckpointError), full_disk():
        checkpoints.save(run[1].replace(params=LARGE))
        for _ in range(1000):
            checkpoints.check()
            time.sleep(0.01)


def test_a_failed_save_does_not_hide_the_error_that_ended_the_run(run, tmp_path):
    with pytest.raises(FloatingPointError) as error, full_disk(), Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(run[1].replace(params=LARGE))
        raise FloatingPointError
    (note,) = error.value.__notes__
    assert 'checkpoint 2 cannot be written' in note and 'there is none before it' in note


def test_what_a_killed_save_left_is_removed_by_the_next_run(run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / 'copy')
    left = shutil.copytree(workdir / 'checkpoints' / '2', workdir / 'checkpoints' / '3.orbax-checkpoint-tmp')
    with Checkpoints(workdir, CONFIG) as checkpoints:
        checkpoints.save(run[1].replace(step=jnp.asarray(5, jnp.int32)))
    assert not left.exists() and latest_step(workdir) == 5


def test_a_checkpoint_of_other_code_is_warned_of_and_restored(run, toy, monkeypatch, recwarn):
    with Checkpoints(run[0], CONFIG) as checkpoints:
        checkpoints.restore_latest(toy.state())
    assert not recwarn
    other = code_version() | {'jax': '0.0.1', 'commit': 'another'}
    monkeypatch.setattr('walt.training.checkpoints.code_version', lambda: other)
    with (
        Checkpoints(run[0], CONFIG) as checkpoints,
        pytest.warns(UserWarning, match="checkpoint 2 was written by other code:\n  commit: .* 'another' now\n  jax: "),
    ):
        assert_same(checkpoints.restore_latest(toy.state()), run[1])


def test_a_checkpoint_from_before_code_was_kept_is_restored(run, toy, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / 'copy')
    shutil.rmtree(workdir / 'checkpoints' / '2' / 'code')
    with Checkpoints(workdir, CONFIG) as checkpoints, pytest.warns(UserWarning, match="walt: 'absent' there"):
        assert_same(checkpoints.restore_latest(toy.state()), run[1])


RUN = {'seed': 0, 'steps': 10, 'mesh': {'data': 1}, 'denoiser': {'width': 8, 'window': (2, 2)}}


def test_a_new_workdir_is_made_and_holds_the_configuration(tmp_path):
    claim_workdir(tmp_path / 'new' / 'run', RUN)
    written = json.loads((tmp_path / 'new' / 'run' / 'config.json').read_text())
    assert written == RUN | {'denoiser': {'width': 8, 'window': [2, 2]}}
    claim_workdir(tmp_path / 'new' / 'run', RUN)


def test_a_workdir_of_another_configuration_is_refused_with_every_difference(tmp_path):
    claim_workdir(tmp_path, RUN)
    before = (tmp_path / 'config.json').read_text()
    with pytest.raises(ValueError) as error:
        claim_workdir(tmp_path, {'seed': 1, 'steps': 99, 'mesh': {'data': 2}, 'denoiser': {'width': 9, 'rank': 2}})
    lines = str(error.value).splitlines()
    assert lines == [
        f'{tmp_path} was written by another configuration:',
        "  denoiser.rank: 'absent' there, 2 now",
        '  denoiser.width: 8 there, 9 now',
        "  denoiser.window: [2, 2] there, 'absent' now",
        '  seed: 0 there, 1 now',
    ]
    assert (tmp_path / 'config.json').read_text() == before


def test_length_and_machine_may_change_on_the_way(tmp_path):
    claim_workdir(tmp_path, RUN)
    claim_workdir(tmp_path, RUN | {'steps': 20, 'mesh': {'data': 4, 'fsdp': 2}})
    assert json.loads((tmp_path / 'config.json').read_text())['steps'] == 20


@pytest.mark.parametrize('workdir', ['file/run', 'link'])
def test_a_workdir_that_cannot_be_written_to_is_named(tmp_path, workdir):
    """Below a file, and on a file system that takes nothing: a folder without permissions is no hindrance to root."""
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to('/proc/self')
    with pytest.raises(OSError, match=f'the workdir {tmp_path}/{workdir} cannot be written to; give another with'):
        claim_workdir(tmp_path / workdir, RUN)
