"""One checkpoint format: a folder of numbered steps, each with items that can be restored by themselves.

    state    step, parameters, optimizer; parameters, optimizer and logit averages of a discriminator
    ema      averaged parameters and what was measured: all that sampling needs
    ema_0.9  the same of another decay, an item each; `ema` is of the configuration's first
    config   the configuration of the run
    code     versions of what wrote it (`code_version`)

The position in the data is the step: every step takes one batch, and which one is a function of its number. So a run
may go on with another number of processes.

A checkpoint appears under its number when it is complete, so a run that is killed while saving goes on from the one
before. A save that fails, because the disk is full for example, stops the run at the step it is at by then, and leaves
the one before as it was. A checkpoint that cannot be read, because a file of it was cut short, is never passed over
without a word: the error says which older one there is, and what to remove to go on from that.
"""

import contextlib
import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from walt.parallel.distributed import first_process, wait_for_all
from walt.training.code import code_version
from walt.training.state import State, decay_name, ema_decays


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. Says why, what is left, and what to do."""


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`.

    Args:
        workdir: folder of the run; made if it is not there.
        config: the run's configuration, plain values only.
        keep: how many of the newest checkpoints stay.
    """

    def __init__(self, workdir: str | Path, config: Mapping[str, Any], keep: int = 2):
        self._workdir, self._config = workdir, dict(config)
        policy = preservation_policy.LatestN(keep)
        self._manager = _manager(
            workdir, ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        )
        self._thread, self._saving, self._failed = ThreadPoolExecutor(1), None, False

    def save(self, state: State) -> None:
        """Saves in the background, after the save before; does nothing for a step that is there already.

        Raises:
            CheckpointError: if this or the one before fails.
        """
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        items |= {'config': ocp.args.JsonSave(self._config), 'code': ocp.args.JsonSave(code_version())}
        with self._writing(step):
            self._manager.save(step, args=ocp.args.Composite(**items))
        self._saving: tuple[int, Future] | None = step, self._thread.submit(self._manager.wait_until_finished)

    def check(self) -> None:
        """Raises `CheckpointError` if the save in the background has failed; does not wait for it."""
        if self._saving and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being saved any more. Raises `CheckpointError` if that failed."""
        if self._saving:
            (step, done), self._saving = self._saving, None
            with self._writing(step):
                done.result()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turns whatever Orbax meets while it writes, of any class, into one error that says what to do."""
        try:
            yield
        except Exception as error:
            self._failed = True
            newest = latest_step(self._workdir)
            left = 'there is none before it' if newest is None else f'checkpoint {newest} is whole'
            raise CheckpointError(
                f'checkpoint {step} cannot be written to {self._manager.directory}: {_reason(error)}\n{left}; '
                'make room there, or make it writable, and the same command goes on from the newest'
            ) from error

    def restore_latest(self, state: State) -> State:
        """The newest state, laid out as `state` is; `state` if there is none. Warns if other code wrote it.

        Raises:
            ValueError: if the checkpoint has a discriminator and `state` has none, or the other way round.
            CheckpointError: if it cannot be read.
        """
        self.wait()
        step = self._manager.latest_step()
        if step is None:
            return state
        abstract = _items(jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
        folder = self._manager.directory / str(step)
        with _reading(self._manager, step):
            saved = ocp.StandardCheckpointHandler().metadata(folder / 'state')
        there = 'adversary' in saved.tree
        if there != ('adversary' in abstract['state']):
            has = {True: 'has a discriminator', False: 'has no discriminator'}
            raise ValueError(
                f'checkpoint {step} in {self._manager.directory} {has[there]}, the configuration {has[not there]}; '
                'start.tokenizer_dir goes on from its tokenizer with a new one'
            )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        if (folder / 'code').exists():
            items['code'] = ocp.args.JsonRestore()
        with _reading(self._manager, step):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        _compare_code(step, restored.get('code'))
        more_ema = state.more_ema and {name: restored[_item(name)]['params'] for name in state.more_ema}
        averaged = restored['ema']
        return state.replace(
            **restored['state'], ema=averaged['params'], measured=averaged['measured'], more_ema=more_ema
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Waits for the last save. That it fails does not hide the error that ended the block, but adds to it."""
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        if not self._failed:
            self._manager.close()  # which would raise once more what a save failed of


def _items(state: State) -> dict[str, Any]:
    """What is saved of a state, by item."""
    trained = {'step': state.step, 'params': state.params, 'opt_state': state.opt_state}
    if state.adversary is not None:
        trained['adversary'] = state.adversary
    averages = {'ema': state.ema} | {_item(name): params for name, params in (state.more_ema or {}).items()}
    return {'state': trained} | {
        item: {'params': params, 'measured': state.measured} for item, params in averages.items()
    }


def _item(name: str) -> str:
    """Of the average that `State.more_ema` has under this name."""
    return f'ema_{name}'


def _reason(error: Exception) -> str:
    """The first line of what Orbax or TensorStore say, without their traces."""
    return (str(error) or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _reading(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Turns whatever Orbax meets while it reads, `Exception` itself among it, into one error that says what to do."""
    try:
        yield
    except Exception as error:
        older = max((other for other in manager.all_steps() if other < step), default=None)
        advice = 'there is no older one: train again in a new workdir'
        if older is not None:
            advice = f'to go on from checkpoint {older}, remove it: rm -r {manager.directory / str(step)}'
        raise CheckpointError(
            f'checkpoint {step} in {manager.directory} cannot be read: {_reason(error)}\n'
            f'if it is damaged and not of another configuration, {advice}'
        ) from error


def _compare_code(step: int, there: Mapping[str, Any] | None) -> None:
    """Warns if a checkpoint was written by other code: then what follows need not be what an unbroken run does."""
    changed = differences(there or {}, code_version())
    if changed and first_process():
        warnings.warn(f'checkpoint {step} was written by other code:\n' + '\n'.join(changed), stacklevel=3)


def restore_ema(
    workdir: str | Path, abstract: Any, step: int | None = None, decay: float | None = None
) -> tuple[dict[str, Any], int]:
    """Averaged parameters and nothing else: ({'params', 'measured'} in the layout of `abstract`, step).

    Args:
        decay: of the average, where the run kept several; the configuration's first by default.

    Raises:
        FileNotFoundError: if there is no checkpoint, or not the step asked for (the steps that are there are named).
        ValueError: if there is no average of this decay (those that are there are named).
        CheckpointError: if it cannot be read.
    """
    item = 'ema'
    if decay is not None:
        there = ema_decays(saved_config(workdir, step)['ema_decay'])
        if decay not in there:
            raise ValueError(f'no average of decay {decay} in {_folder(workdir)}; there are {list(there)}')
        item = 'ema' if decay == there[0] else _item(decay_name(decay))
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = _existing_step(workdir, manager, step)
        with _reading(manager, step):
            restored = manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))
    return restored[item], step


def saved_config(workdir: str | Path, step: int | None = None) -> dict[str, Any]:
    """The configuration in a checkpoint, the newest if no step is given; raises as `restore_ema` does."""
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = _existing_step(workdir, manager, step)
        with _reading(manager, step):
            return manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))['config']


def save_ema(workdir: str | Path, averaged: Mapping[str, Any], config: Mapping[str, Any], step: int) -> None:
    """Writes a checkpoint that can be sampled from but not trained on, for example a tokenizer beside its denoiser.

    `config['ema_decay']` is the decay of this one average.
    """
    with _manager(workdir, ocp.CheckpointManagerOptions()) as manager:
        items = {'ema': ocp.args.StandardSave(dict(averaged)), 'config': ocp.args.JsonSave(dict(config))}
        items['code'] = ocp.args.JsonSave(code_version())
        manager.save(step, args=ocp.args.Composite(**items))


def latest_step(workdir: str | Path) -> int | None:
    """The newest complete checkpoint of a run, `None` if there is none."""
    folder = _folder(workdir)
    steps = ocp.path.step.checkpoint_steps(folder) if folder.is_dir() else []
    return max(steps, default=None)


# What may change between the start of a run and its continuation.
FREE_KEYS = ('steps', 'log_every', 'checkpoint_every', 'validate_every', 'mesh', 'accumulation', 'tokenizer_dir')
FREE_KEYS += ('non_finite', 'denoiser.remat', 'tokenizer.remat')


def claim_workdir(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json` into a new workdir; in an old one, checks that the same experiment wrote it.

    Raises:
        ValueError: if another configuration wrote it, naming each difference with both values.
        OSError: if the workdir cannot be written to.
    """
    path = Path(workdir) / 'config.json'
    config = json.loads(json.dumps(config))
    if path.exists():
        changed = differences(json.loads(path.read_text()), config, FREE_KEYS)
        if changed:
            raise ValueError(f'{workdir} was written by another configuration:\n' + '\n'.join(changed))
    if first_process():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name('.config.json.unfinished')
            unfinished.write_text(json.dumps(config, indent=2) + '\n')
            unfinished.replace(path)
        except OSError as error:
            advice = f'the workdir {workdir} cannot be written to; give another with --workdir, or make room there'
            raise OSError(error.errno, f'{error.strerror}: {advice}') from error
    wait_for_all('workdir claimed')


def differences(there: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """A line for each key in which two trees of plain values differ, with both values; `free` keys, at the top or by
    their whole path, may."""
    there, now = _flatten(there), _flatten(now)
    return [
        f'  {key}: {there.get(key, "absent")!r} there, {now.get(key, "absent")!r} now'
        for key in sorted(there | now)
        if there.get(key) != now.get(key) and not {key, key.split('.')[0]} & set(free)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _folder(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / 'checkpoints'


def _manager(workdir: str | Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    folder = _folder(workdir)
    if options.read_only and not folder.is_dir():
        raise FileNotFoundError(f'no checkpoints in {folder}')
    return ocp.CheckpointManager(folder, options=options)


def _existing_step(workdir: str | Path, manager: ocp.CheckpointManager, step: int | None) -> int:
    steps = sorted(manager.all_steps())
    if not steps:
        raise FileNotFoundError(f'no complete checkpoint in {_folder(workdir)}')
    if step is not None and step not in steps:
        raise FileNotFoundError(f'no checkpoint of step {step} in {_folder(workdir)}; there are steps {steps}')
    return steps[-1] if step is None else step
