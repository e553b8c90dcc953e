"""Flags that tell a program of other processes."""

import jax
import pytest
from tiny import run_here

TRAIN = ['--config=configs/quickstart_tokenizer.py:smoke', '--workdir=nowhere']


@pytest.fixture
def asked(monkeypatch):
    """What JAX is asked for, in place of asking; training does not start."""
    calls = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **options: calls.append(args))
    monkeypatch.setattr('walt.train_tokenizer.train', lambda config, workdir, profile: None)
    return calls


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ([], []),
        (['--distributed=auto'], [()]),
        (['--coordinator=host:1', '--processes=2', '--process=1'], [('host:1', 2, 1)]),
    ],
)
def test_jax_is_asked_for_what_the_flags_say(asked, flags, expected):
    run_here('train_tokenizer', *TRAIN, *flags)
    assert asked == expected


def test_flags_that_contradict_each_other_are_refused_before_anything_is_done(asked):
    with pytest.raises(ValueError, match='either the processes are found automatically or they are told'):
        run_here('train_tokenizer', *TRAIN, '--distributed=auto', '--processes=2')
    with pytest.raises(ValueError, match=r"come together, but only {'processes': 2} is given"):
        run_here('train_tokenizer', *TRAIN, '--processes=2')
    assert not asked


def test_a_profile_that_is_no_two_steps_is_refused_before_anything_starts(asked):
    with pytest.raises(ValueError, match="START:STOP, two step numbers, not '10'"):
        run_here('train_tokenizer', *TRAIN, '--profile=10')
    assert not asked
