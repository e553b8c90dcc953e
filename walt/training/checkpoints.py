"""One checkpoint format: a folder of numbered steps, each with items that can be restored by themselves.

    state    step, parameters, optimizer; parameters, optimizer and logit averages of a discriminator
    ema      averaged parameters and what was measured: all that sampling needs
    ema_0.9  the same of another decay, an item each; `ema` is of the configuration's first
    config   the configuration of the run

The position in the data is the step: every step takes one batch, and which one is a function of its number. So a run
may go on with another number of processes.

A checkpoint appears under its number when it is complete, so a run that is killed while saving goes on from the one
before.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from walt.training.state import State, decay_name, ema_decays


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`.

    Args:
        workdir: folder of the run; made if it is not there.
        config: the run's configuration, plain values only.
        keep: how many of the newest checkpoints stay.
    """

    def __init__(self, workdir: str | Path, config: Mapping[str, Any], keep: int = 2):
        self._config = dict(config)
        self._manager = _manager(
            workdir, ocp.CheckpointManagerOptions(preservation_policy=preservation_policy.LatestN(keep))
        )

    def save(self, state: State) -> None:
        """Saves in the background; does nothing for a step that is there already."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        items['config'] = ocp.args.JsonSave(self._config)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore_latest(self, state: State) -> State:
        """The newest state, laid out as `state` is; `state` if there is none.

        Raises:
            ValueError: if the checkpoint has a discriminator and `state` has none, or the other way round.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        abstract = _items(jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
        saved = ocp.StandardCheckpointHandler().metadata(self._manager.directory / str(step) / 'state')
        there = 'adversary' in saved.tree
        if there != ('adversary' in abstract['state']):
            has = {True: 'has a discriminator', False: 'has no discriminator'}
            raise ValueError(
                f'checkpoint {step} in {self._manager.directory} {has[there]}, the configuration {has[not there]}; '
                'start.tokenizer_dir goes on from its tokenizer with a new one'
            )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        more_ema = state.more_ema and {name: restored[_item(name)]['params'] for name in state.more_ema}
        averaged = restored['ema']
        return state.replace(
            **restored['state'], ema=averaged['params'], measured=averaged['measured'], more_ema=more_ema
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_) -> None:
        """Waits for the last save."""
        self._manager.close()


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


def restore_ema(
    workdir: str | Path, abstract: Any, step: int | None = None, decay: float | None = None
) -> tuple[dict[str, Any], int]:
    """Averaged parameters and nothing else: ({'params', 'measured'} in the layout of `abstract`, step).

    Args:
        decay: of the average, where the run kept several; the configuration's first by default.

    Raises:
        FileNotFoundError: if there is no checkpoint, or not the step asked for (the steps that are there are named).
        ValueError: if there is no average of this decay (those that are there are named).
    """
    item = 'ema'
    if decay is not None:
        there = ema_decays(saved_config(workdir, step)['ema_decay'])
        if decay not in there:
            raise ValueError(f'no average of decay {decay} in {_folder(workdir)}; there are {list(there)}')
        item = 'ema' if decay == there[0] else _item(decay_name(decay))
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = _existing_step(workdir, manager, step)
        restored = manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))
    return restored[item], step


def saved_config(workdir: str | Path, step: int | None = None) -> dict[str, Any]:
    """The configuration in a checkpoint, the newest if no step is given; raises as `restore_ema` does."""
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = _existing_step(workdir, manager, step)
        return manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))['config']


def save_ema(workdir: str | Path, averaged: Mapping[str, Any], config: Mapping[str, Any], step: int) -> None:
    """Writes a checkpoint that can be sampled from but not trained on, for example a tokenizer beside its denoiser.

    `config['ema_decay']` is the decay of this one average.
    """
    with _manager(workdir, ocp.CheckpointManagerOptions()) as manager:
        items = dict(ema=ocp.args.StandardSave(dict(averaged)), config=ocp.args.JsonSave(dict(config)))
        manager.save(step, args=ocp.args.Composite(**items))


def latest_step(workdir: str | Path) -> int | None:
    """The newest complete checkpoint of a run, `None` if there is none."""
    folder = _folder(workdir)
    steps = ocp.path.step.checkpoint_steps(folder) if folder.is_dir() else []
    return max(steps, default=None)


# What may change between the start of a run and its continuation.
FREE_KEYS = ('steps', 'log_every', 'checkpoint_every', 'validate_every', 'mesh', 'accumulation', 'tokenizer_dir')
FREE_KEYS += ('denoiser.remat', 'tokenizer.remat')


def claim_workdir(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json` into a new workdir; in an old one, checks that the same experiment wrote it.

    Raises:
        ValueError: if another configuration wrote it, naming each difference with both values.
    """
    path = Path(workdir) / 'config.json'
    config = json.loads(json.dumps(config))
    if path.exists():
        changed = differences(json.loads(path.read_text()), config, FREE_KEYS)
        if changed:
            raise ValueError(f'{workdir} was written by another configuration:\n' + '\n'.join(changed))
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2) + '\n')


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
