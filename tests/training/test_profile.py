"""Traces of chosen steps: which ones, and what is said when there is none."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from walt.training.profile import Profile, parse_steps


@pytest.fixture
def profiler(monkeypatch):
    """`calls`: what was asked of JAX's profiler, with the steps between; the profiler itself is not started."""
    calls = []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: calls.append('start'))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
    return SimpleNamespace(calls=calls)


def run(workdir, text, steps, calls):
    with Profile(workdir, parse_steps(text)) as profile:
        for step in steps:
            profile.traced(step, lambda step=step: calls.append(step))


@pytest.mark.parametrize('text', ['3', '3:', ':3', '3:5:7', 'a:b', '-1:3', '1.5:3', ' 3:5'])
def test_what_is_no_pair_of_steps_is_refused(text):
    with pytest.raises(ValueError, match=f"START:STOP.*'{text}'"):
        parse_steps(text)


@pytest.mark.parametrize(('start', 'stop'), [(0, 3), (3, 3), (5, 3)])
def test_steps_that_cannot_be_are_refused_with_both_values(start, stop):
    with pytest.raises(ValueError, match=f'START {start} and STOP {stop}'):
        parse_steps(f'{start}:{stop}')


def test_the_trace_reaches_from_start_to_before_stop(profiler, tmp_path, capsys):
    run(tmp_path, '3:5', range(1, 8), profiler.calls)
    assert profiler.calls == [1, 2, 'start', 3, 4, 'stop', 5, 6, 7]
    assert not capsys.readouterr().err


def test_a_run_that_goes_on_in_their_midst_traces_the_rest(profiler, tmp_path):
    run(tmp_path, '3:6', range(5, 8), profiler.calls)
    assert profiler.calls == ['start', 5, 'stop', 6, 7]


def test_a_run_that_ends_in_their_midst_keeps_what_it_has(profiler, tmp_path):
    run(tmp_path, '3:9', range(1, 5), profiler.calls)
    assert profiler.calls == [1, 2, 'start', 3, 4, 'stop']


def test_an_error_closes_the_trace(profiler, tmp_path):
    def broken():
        raise FloatingPointError

    with pytest.raises(FloatingPointError), Profile(tmp_path, parse_steps('1:3')) as profile:
        profile.traced(1, broken)
    assert profiler.calls == ['start', 'stop']


@pytest.mark.parametrize(
    ('steps', 'made'), [(range(1, 4), 'made steps 1 to 3'), (range(10, 12), '10 to 11'), ((), 'made none')]
)
def test_a_run_that_comes_to_none_of_them_says_so(steps, made, profiler, tmp_path, capsys):
    run(tmp_path, '7:9', steps, profiler.calls)
    assert profiler.calls == [*steps]
    message = capsys.readouterr().err
    assert 'steps 7 to 8' in message and made in message


def test_nothing_is_traced_or_said_where_none_was_asked_for(profiler, tmp_path, capsys):
    run(tmp_path, '', range(1, 4), profiler.calls)
    assert profiler.calls == [1, 2, 3] and not capsys.readouterr().err


def test_only_process_0_traces(profiler, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    run(tmp_path, '2:4', range(1, 6), profiler.calls)
    run(tmp_path, '7:9', range(1, 3), profiler.calls)
    assert profiler.calls == [1, 2, 3, 4, 5, 1, 2] and not capsys.readouterr().err


def test_the_last_step_is_waited_for_and_what_a_step_returns_comes_back(profiler, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'block_until_ready', lambda result: profiler.calls.append(result))
    with Profile(tmp_path, parse_steps('1:3')) as profile:
        assert [profile.traced(step, lambda step=step: f'result {step}') for step in (1, 2, 3)] == [
            'result 1',
            'result 2',
            'result 3',
        ]
    assert profiler.calls == ['start', 'result 2', 'stop']


def test_a_trace_with_its_steps_lies_in_the_workdir(tmp_path):
    """With JAX's own profiler."""
    with Profile(tmp_path, parse_steps('2:4')) as profile:
        for step in range(1, 6):
            profile.traced(step, lambda: jax.jit(jnp.sin)(jnp.ones(3)))
    (trace,) = (tmp_path / 'profile').rglob('*.xplane.pb')
    numbers = {
        stat
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == 'train'
        for name, stat in event.stats
        if name == 'step_num'
    }
    assert numbers == {2, 3}
