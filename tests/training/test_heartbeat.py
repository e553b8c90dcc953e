"""A run that hangs is told of, with where it hangs; one that works is left in peace."""

import re
import threading
import time

import pytest

from walt.training.heartbeat import Heartbeat


@pytest.fixture
def stderr(tmp_path):
    with (tmp_path / 'stderr').open('w+') as file:
        yield file


def written(file):
    file.seek(0)
    return file.read()


def wait_for(condition, seconds=20):
    """Until it holds: a busy machine may be slow, which is no failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def hang_here(until):
    wait_for(until)


def load_rows(release):
    release.wait(20)


def test_a_hang_is_told_of_with_step_phase_and_the_stacks_of_all_threads(stderr):
    release = threading.Event()
    other = threading.Thread(target=load_rows, args=[release])
    other.start()
    with Heartbeat(0.05, stderr) as heartbeat:
        heartbeat.beat(41, 'validation')
        hang_here(lambda: {'in hang_here', 'in load_rows'} <= set(re.findall(r'in \w+', written(stderr))))
    release.set()
    other.join()
    assert re.search(r'process 0 of 1: nothing finished for \d+ s, in validation after step 41\.', written(stderr))


def test_messages_come_at_doubling_intervals(stderr):
    with Heartbeat(0.1, stderr):
        time.sleep(1)  # at 0.1, 0.2, 0.4 and 0.8
    assert 2 <= written(stderr).count('nothing finished') <= 4


def test_a_run_that_beats_is_left_in_peace(stderr):
    with Heartbeat(5, stderr) as heartbeat:
        for step in range(100):
            heartbeat.beat(step)
    assert written(stderr) == ''


def test_a_beat_ends_the_silence_and_the_limit_is_the_first_one_again(stderr):
    with Heartbeat(0.3, stderr) as heartbeat:
        heartbeat.beat(1)
        wait_for(lambda: written(stderr).count('after step 1.') >= 2)  # the next one would come after 1.2 s
        start = time.monotonic()
        heartbeat.beat(2)
        wait_for(lambda: 'after step 2.' in written(stderr))
        assert 0.3 <= time.monotonic() - start < 1.1


def test_the_end_of_the_block_does_not_wait_for_the_limit_and_leaves_no_thread(stderr):
    start = time.monotonic()
    with Heartbeat(600, stderr):
        assert 'heartbeat' in {thread.name for thread in threading.enumerate()}
    assert time.monotonic() - start < 10
    assert 'heartbeat' not in {thread.name for thread in threading.enumerate()}


def test_before_the_first_step_it_says_that_the_run_is_starting(stderr):
    with Heartbeat(0.05, stderr):
        wait_for(lambda: 'in starting after step 0' in written(stderr))


@pytest.mark.parametrize('seconds', [0, -1.0])
def test_a_limit_that_is_not_positive_is_refused(seconds):
    with pytest.raises(ValueError, match=f'positive, got {seconds}'):
        Heartbeat(seconds)
