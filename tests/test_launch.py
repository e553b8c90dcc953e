"""The launchers: what they would run, what they refuse, and that processes really start, stop and start again.

Nothing here calls gcloud, sbatch or srun: dry runs print, and where a launcher runs, it finds stand-ins for them.
"""

import functools
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCAL, SLURM, TPU_POD = (ROOT / 'launch' / f'{name}.sh' for name in ('local', 'slurm', 'tpu_pod'))

# What the launchers read of the environment: the tests' own must not reach them.
VARIABLES = ['NAME', 'LOGS', 'NODES', 'GPUS', 'CPUS', 'TIME', 'GRACE', 'DRY_RUN']
VARIABLES += ['ZONE', 'PROJECT', 'ACCELERATOR', 'RUNTIME', 'SLICES', 'SPOT', 'SHARE', 'MOUNT', 'PREPARE', 'RESTARTS']
VARIABLES += ['EVERY', 'STATE']
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in VARIABLES}


def launch(script, *argv, **variables):
    """The finished launcher; it is run from another folder than the repository's."""
    environment = ENVIRONMENT | {name: str(value) for name, value in variables.items()}
    argv = [str(script), *map(str, argv)]
    return subprocess.run(argv, env=environment, cwd='/', capture_output=True, text=True, timeout=60)


@pytest.fixture
def stand_ins(tmp_path):
    """stand_ins(name=script, ...) -> a PATH on which these programs come first. Each call is a line of `calls`."""

    def make(**scripts):
        folder = tmp_path / 'bin'
        folder.mkdir()
        for name, script in scripts.items():
            program = folder / name
            note = f'printf "%q " {name} "$@" >> {tmp_path}/calls; echo >> {tmp_path}/calls'
            program.write_text(f'#!/usr/bin/env bash\n{note}\n{script}\n')
            program.chmod(0o755)
        return f'{folder}:{ENVIRONMENT["PATH"]}'

    return make


def calls(folder):
    """What the stand-ins were called with, in order."""
    return [shlex.split(line) for line in (folder / 'calls').read_text().splitlines()]


def dry_run(script, *argv, **variables):
    """The commands that would be run, each as a list of words; lines that begin with # are not among them."""
    done = launch(script, '--dry-run', *argv, **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith('#')]


def refused(script, *argv, **variables):
    """What is said to the user."""
    done = launch(script, '--dry-run', *argv, **variables)
    assert done.returncode == 2 and not done.stdout
    return done.stderr


# ---- local.sh

STAND_IN = """
import json, os, signal, sys, time
folder, plan, *flags = sys.argv[1:]
process = int(next(flag.split('=')[1] for flag in flags if flag.startswith('--process=')))
path = f'{folder}/{process}.jsonl'
attempt = len(open(path).readlines()) if os.path.exists(path) else 0
todo = plan.split(';')[attempt].split(',')[process]
signal.signal(signal.SIGTERM, (lambda *_: None) if todo == 'stubborn' else lambda *_: sys.exit(143))
with open(path, 'a') as file:
    env = {name: os.environ.get(name) for name in ('JAX_PLATFORMS', 'JAX_NUM_CPU_DEVICES', 'CUDA_VISIBLE_DEVICES')}
    print(json.dumps({'flags': flags, 'env': env, 'pid': os.getpid()}), file=file)
others = [f'{folder}/{other}.jsonl' for other in range(plan.split(';')[attempt].count(',') + 1)]
while not all(os.path.exists(path) and len(open(path).readlines()) > attempt for path in others):
    time.sleep(0.01)
if todo in ('wait', 'stubborn'):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.05)
    sys.exit('nobody stopped me')
if todo == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
print('process', process, 'does', todo)
sys.exit(int(todo))
"""


@pytest.fixture
def local(tmp_path):
    """local(plan, *options) -> the running launcher; what process I saw of its starts is in I.jsonl.

    A plan is what each process does in each start, '0,3;0,0': an exit code, `wait` for SIGTERM and exit with 143,
    `stubborn`, which waits for SIGKILL, or `killed`, by SIGKILL.
    """
    program = tmp_path / 'stand_in.py'
    program.write_text(STAND_IN)
    started = []

    def start(plan, *options):
        processes = len(plan.split(';')[0].split(','))
        options = [f'--processes={processes}', '--devices=4', f'--logs={tmp_path / "logs"}', *options]
        argv = [str(LOCAL), *options, str(program), str(tmp_path), plan, '--config.text=two words']
        pipe = subprocess.PIPE
        # Tests that were put into the background ignore Ctrl-C, and so would all that they start.
        listen = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        own = dict(env=ENVIRONMENT, cwd='/', start_new_session=True, preexec_fn=listen)
        started.append(subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, **own))
        return started[-1]

    yield start
    for launcher in started:
        if launcher.poll() is None:
            launcher.kill()


def ended(launcher):
    """(exit code, what it said)."""
    out, err = launcher.communicate(timeout=40)
    return launcher.returncode, out + err


def starts(folder, process):
    path = folder / f'{process}.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_local_dry_run_tells_each_process_who_it_is_and_its_devices():
    program = ['-m', 'walt.train_denoiser', '--workdir=my runs', "--config.text=it's"]
    commands = dry_run(LOCAL, '--processes=2', '--devices=4', *program)
    environment = ['env', 'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=4']
    for process, command in enumerate(commands):
        who = ['--coordinator=127.0.0.1:PORT', '--processes=2', f'--process={process}']
        log = ['>>', f'runs/logs/{process}.log', '2>&1']
        assert command == [*environment, '.venv/bin/python', *program, *who, *log]
    assert len(commands) == 2


def test_local_shares_the_gpus_out_in_order():
    commands = dry_run(LOCAL, '--processes=2', '--gpus=7,5,0,1', '-m', 'program')
    assert [command[1] for command in commands] == ['CUDA_VISIBLE_DEVICES=7,5', 'CUDA_VISIBLE_DEVICES=0,1']
    assert not any('JAX_PLATFORMS' in word for command in commands for word in command)


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--devices=4', 'x.py'], "--processes is how many, 1 or more, not ''"),
        (['--processes=0', '--devices=4', 'x.py'], "--processes is how many, 1 or more, not '0'"),
        (['--processes=2', 'x.py'], "--devices is how many each has, 1 or more, not ''"),
        (['--processes=2', '--devices=4', '--gpus=0,1', 'x.py'], 'either --devices=4 or --gpus=0,1'),
        (['--processes=2', '--gpus=0,1,2', 'x.py'], '3 GPUs (0,1,2) are not divisible by 2 processes'),
        (['--processes=2', '--devices=4', '--restarts=often', 'x.py'], "not 'often'"),
        (['--processes=2', '--devices=4', '--grace=1m', 'x.py'], "not '1m'"),
        (['--processes=2', '--device=4', 'x.py'], 'no option --device=4'),
        (['--processes=2', '--devices=4'], 'nothing to run'),
    ],
)
def test_local_refuses_with_what_it_was_given(argv, said):
    assert said in refused(LOCAL, *argv)


def test_processes_start_with_their_flags_and_devices_and_meet_at_one_free_port(local, tmp_path):
    assert ended(local('0,0')) == (0, '')
    ports = set()
    for process in (0, 1):
        (start,) = starts(tmp_path, process)
        text, coordinator, *who = start['flags']
        assert text == '--config.text=two words' and who == ['--processes=2', f'--process={process}']
        assert start['env']['JAX_PLATFORMS'] == 'cpu' and start['env']['JAX_NUM_CPU_DEVICES'] == '4'
        ports.add(coordinator)
        assert (tmp_path / 'logs' / f'{process}.log').read_text() == f'process {process} does 0\n'
    (coordinator,) = ports
    assert coordinator.startswith('--coordinator=127.0.0.1:') and int(coordinator.split(':')[1]) > 1023


def test_if_one_process_dies_the_others_are_stopped_and_its_code_and_log_are_told(local, tmp_path):
    code, said = ended(local('wait,3'))
    assert code == 3
    assert 'process 1 ended with 3' in said and 'process 1 does 3' in said
    assert not is_alive(starts(tmp_path, 0)[0]['pid'])


def test_a_process_that_does_not_stop_is_killed_after_the_grace(local, tmp_path):
    start = time.monotonic()
    assert ended(local('stubborn,3', '--grace=1'))[0] == 3
    assert time.monotonic() - start < 20  # it would wait for 30 seconds
    assert not is_alive(starts(tmp_path, 0)[0]['pid'])


def test_a_process_that_was_killed_is_no_success(local):
    code, said = ended(local('wait,killed'))
    assert code == 137 and 'process 1 ended with 137' in said


@pytest.mark.parametrize(
    'send',
    [
        lambda launcher: launcher.send_signal(signal.SIGTERM),
        lambda launcher: os.killpg(launcher.pid, signal.SIGINT),  # as a terminal does, to all of a group
    ],
    ids=['SIGTERM', 'Ctrl-C'],
)
def test_a_signal_reaches_all_processes_and_nothing_is_started_again(send, local, tmp_path):
    launcher = local('wait,wait', '--restarts=3')
    wait_for(lambda: starts(tmp_path, 0) and starts(tmp_path, 1))
    send(launcher)
    code, said = ended(launcher)
    assert code == 143 and 'starting all again' not in said
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 1


def test_processes_that_saved_or_died_are_started_again_until_they_end(local, tmp_path):
    code, said = ended(local('143,143;wait,3;0,0', '--restarts=5'))
    assert code == 0
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 3
    assert 'ended with 143' in said and 'process 1 ended with 3' in said


def test_they_are_started_again_as_often_as_asked_and_no_more(local, tmp_path):
    assert ended(local('3;3;3', '--restarts=1'))[0] == 3
    assert len(starts(tmp_path, 0)) == 2


def test_who_saves_later_than_another_is_left_alone_for_the_grace(local, tmp_path):
    """Process 1 has saved and ended; process 0 gets its SIGTERM only a second later."""
    start = time.monotonic()
    assert ended(local('wait,143', '--grace=1'))[0] == 143
    assert time.monotonic() - start >= 1


def test_a_death_counts_for_more_than_a_save(local):
    assert ended(local('143,4', '--grace=5'))[0] == 4


# ---- slurm.sh

PROGRAM = ['-m', 'walt.train_denoiser', '--workdir=my runs']


def test_slurm_dry_run_submits_itself_with_one_process_a_gpu_and_starts_them_with_srun():
    submit, step, again = dry_run(SLURM, *PROGRAM, NODES=2, GPUS=8, NAME='ucf', LOGS='my logs')
    assert submit[0] == 'sbatch'
    assert submit[-5:] == ['launch/slurm.sh', '--in-job', *PROGRAM]
    asked = {'--nodes=2', '--ntasks-per-node=8', '--gpus-per-node=8', '--cpus-per-task=8', '--time=24:00:00'}
    asked |= {'--job-name=ucf', '--signal=TERM@120', '--requeue', f'--chdir={ROOT}', '--output=my logs/%x-%j.log'}
    assert asked <= set(submit)
    assert step[0] == 'srun' and step[-5:] == ['.venv/bin/python', *PROGRAM, '--distributed=auto']
    assert {'--cpus-per-task=8', '--output=my logs/%x-%j-%t.log', '--kill-on-bad-exit=0'} <= set(step)
    assert again == ['scontrol', 'requeue', 'JOB']


def test_slurm_hides_no_gpu_from_a_task():
    """JAX picks among all of a node by the task's local number."""
    for command in dry_run(SLURM, *PROGRAM, NODES=2, GPUS=8):
        assert not [word for word in command if word.startswith(('--gpu-bind', '--gpus-per-task'))]


@pytest.mark.parametrize(
    ('argv', 'variables', 'said'),
    [
        (PROGRAM, {'GPUS': 8}, "NODES has to be a number, 1 or more, not ''"),
        (PROGRAM, {'NODES': 2}, "GPUS has to be a number, 1 or more, not ''"),
        (PROGRAM, {'NODES': 'two', 'GPUS': 8}, "not 'two'"),
        ([], {'NODES': 2, 'GPUS': 8}, 'give what to run'),
        (['--config=x'], {'NODES': 2, 'GPUS': 8}, "not '--config=x'"),
    ],
)
def test_slurm_refuses_with_what_it_was_given(argv, variables, said):
    assert said in refused(SLURM, *argv, **variables)


@pytest.mark.parametrize(('code', 'again'), [(0, False), (143, True), (1, False), (137, False)])
def test_a_job_that_saved_goes_into_the_queue_again_and_no_other(code, again, stand_ins, tmp_path):
    """The part that runs in the job, which SLURM starts in the folder of the repository."""
    variables = {'PATH': stand_ins(srun=f'exit {code}', scontrol=''), 'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '8'}
    job = ['bash', str(SLURM), '--in-job', *PROGRAM]
    done = subprocess.run(job, env=ENVIRONMENT | variables | {'LOGS': 'logs'}, cwd=ROOT, timeout=60)
    assert done.returncode == code
    step, *rest = calls(tmp_path)
    assert step[-5:] == ['.venv/bin/python', *PROGRAM, '--distributed=auto']
    assert rest == ([['scontrol', 'requeue', '7']] if again else [])


# ---- tpu_pod.sh

POD = {'NAME': 'pod', 'ZONE': 'us-east5-a', 'ACCELERATOR': 'v5p-128', 'SHARE': '10.0.0.2:/walt'}
RUN = ['run', '-m', 'walt.train_denoiser', "--workdir=/mnt/walt/it's mine"]
RESOURCES = ['gcloud', '--quiet', 'compute', 'tpus', 'queued-resources']


def remote(command):
    """The words of what a gcloud ssh runs on the workers."""
    (line,) = [word.removeprefix('--command=') for word in command if word.startswith('--command=')]
    return shlex.split(line)


def test_tpu_dry_run_creates_waits_installs_starts_and_fetches():
    commands = dry_run(TPU_POD, *RUN, **POD)
    verbs = [command[5] if command[:5] == RESOURCES else ' '.join(command[:2]) for command in commands]
    expected = ['list', 'create', 'delete', 'ssh', 'git archive', 'scp', 'ssh', 'ssh', 'ssh', 'ssh', 'mkdir -p', 'ssh']
    assert verbs == expected
    assert all('--zone=us-east5-a' in command for command in commands if command[0] == 'gcloud')
    assert commands[1][6:] == [
        *('pod', '--zone=us-east5-a', '--node-id=pod', '--accelerator-type=v5p-128'),
        '--runtime-version=v2-alpha-tpuv5',
    ]
    starts = [remote(command) for command in commands if command[5:6] == ['ssh'] and 'start' in remote(command)]
    assert starts == [['cd', 'walt', '&&', './launch/tpu_pod.sh', 'worker', 'start', '/mnt/walt', *RUN[1:]]] * 2
    everywhere = [command for command in commands if command[5:6] in (['ssh'], ['scp'])]
    assert all('--worker=all' in command for command in everywhere)


def test_tpu_of_several_slices_preemptible_in_a_project():
    commands = dry_run(TPU_POD, *RUN, **POD | {'SLICES': 2, 'SPOT': 'yes', 'PROJECT': 'mine', 'ACCELERATOR': 'v6e-256'})
    (create,) = [command for command in commands if command[5:6] == ['create']]
    assert {'--node-count=2', '--node-prefix=pod', '--spot', '--runtime-version=v2-alpha-tpuv6e'} <= set(create)
    assert not [word for word in create if word.startswith('--node-id')]
    assert all('--project=mine' in command for command in commands if command[0] == 'gcloud')
    assert {word for command in commands for word in command if word.startswith('--node=')} == {
        *('--node=all', '--node=0', '--node=1')
    }


@pytest.mark.parametrize('what', ['logs', 'stop', 'delete'])
def test_tpu_other_words_need_name_and_zone_alone(what):
    commands = dry_run(TPU_POD, what, NAME='pod', ZONE='z')
    assert 'pod' in commands[-1] and '--zone=z' in commands[-1]


@pytest.mark.parametrize('missing', POD)
def test_tpu_names_the_variable_that_is_missing(missing):
    assert f'set {missing}:' in refused(TPU_POD, *RUN, **POD | {missing: ''})


@pytest.mark.parametrize(
    ('argv', 'variables', 'said'),
    [
        ([], {}, "say run, logs, stop or delete, not ''"),
        (['start'], {}, "not 'start'"),
        (['run'], {}, 'give what to run'),
        (['run', 'x.py', '--workdir=gs://bucket/run'], {}, '--workdir=gs://bucket/run is not on the share'),
        (['run', 'x.py', '--workdir=/mnt/walt/run'], {'MOUNT': '/nfs'}, 'which is at /nfs'),
        (RUN, {'ACCELERATOR': 'tpu9-8'}, 'ACCELERATOR=tpu9-8 takes is not known here: set RUNTIME'),
        (RUN, {'SLICES': 'two'}, "not 'two'"),
    ],
)
def test_tpu_refuses_with_what_it_was_given(argv, variables, said):
    assert said in refused(TPU_POD, *argv, **POD | variables)


GCLOUD = """
answer() { head -n 1 "$1"; sed -i 1d "$1"; }
case $* in
  *' list '*) answer RESOURCE ;;
  *'worker state'*) answer WORKERS | tr , '\\n' ;;
esac
"""


@pytest.fixture
def pod(stand_ins, tmp_path):
    """pod(resource, workers) -> (finished launcher, what it did): states of the queued resource and of the workers as
    they are asked for, one after another."""

    def run(resource, workers, **variables):
        for name, answers in (('resource', resource), ('workers', workers)):
            (tmp_path / name).write_text(''.join(f'{answer}\n' for answer in answers))
        gcloud = GCLOUD.replace('RESOURCE', f'{tmp_path}/resource').replace('WORKERS', f'{tmp_path}/workers')
        path = stand_ins(gcloud=gcloud, git='', mkdir='')
        done = launch(TPU_POD, *RUN, **POD | {'PATH': path, 'EVERY': 0} | variables)
        did = []
        for command in calls(tmp_path):
            if command[:5] == RESOURCES and command[5] in ('create', 'delete'):
                did.append(command[5])
            elif command[:5] == RESOURCES and command[5] == 'ssh':
                did += [word for word in remote(command) if word in ('install', 'start', 'walt-run/log')]
        assert not (tmp_path / 'resource').read_text() and not (tmp_path / 'workers').read_text()
        return done, did

    return run


def test_a_slice_is_made_waited_for_and_used_until_the_run_is_complete(pod):
    resource = ['', '', 'WAITING_FOR_RESOURCES', 'PROVISIONING', *['ACTIVE'] * 4]
    done, did = pod(resource, ['worker: none', *['worker: running,worker: running'] * 2, 'worker: 0,worker: 0'])
    assert done.returncode == 0 and 'the run is complete' in done.stderr
    assert did == ['create', 'install', 'start', 'walt-run/log']


def test_after_a_preemption_there_is_a_new_slice_with_the_same_run(pod):
    resource = [
        'ACTIVE',
        'ACTIVE',
        'ACTIVE',
        'SUSPENDING',
        'SUSPENDED',
        'DELETING',
        '',
        'PROVISIONING',
        *['ACTIVE'] * 3,
    ]
    done, did = pod(resource, ['worker: none', 'worker: running', 'worker: none', 'worker: running', 'worker: 0'])
    assert done.returncode == 0
    assert did == ['install', 'start', 'delete', 'create', 'install', 'start', 'walt-run/log']


def test_workers_that_saved_are_started_again_and_not_counted_as_crashes(pod):
    saved = ['worker: 143,worker: 0'] * 3
    done, did = pod(['ACTIVE'] * 6, ['worker: running', *saved, 'worker: 0'], RESTARTS=0)
    assert done.returncode == 0 and did == ['start', 'start', 'start', 'walt-run/log']


def test_workers_that_crashed_are_started_again_as_often_as_allowed(pod):
    done, did = pod(['ACTIVE'] * 4, ['worker: running', 'worker: 1,worker: 143', 'worker: 134'], RESTARTS=1)
    assert done.returncode == 1 and 'crashed 2 times' in done.stderr
    assert did == ['start', 'walt-run/log']


def test_a_run_that_is_there_is_not_started_again(pod):
    done, did = pod(['ACTIVE'] * 3, ['worker: running', 'worker: 0'])
    assert done.returncode == 0 and did == ['walt-run/log']


def test_a_run_that_ended_before_is_started_by_a_new_command(pod):
    done, did = pod(['ACTIVE'] * 3, ['worker: 0', 'worker: 0'])
    assert done.returncode == 0 and did == ['install', 'start', 'walt-run/log']


def test_a_request_that_fails_at_once_is_not_made_again(pod):
    done, did = pod(['', '', 'FAILED'], [])
    assert done.returncode == 2 and 'a new request is FAILED' in done.stderr
    assert did == ['create']


@pytest.fixture
def worker(tmp_path):
    """worker(verb, ...): what runs on a TPU machine, here, with a state of its own."""
    return lambda *argv: launch(TPU_POD, 'worker', *argv, STATE=tmp_path / 'state', HOME=tmp_path)


WORKER = """
import json, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print(json.dumps(sys.argv[1:]), flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(5)
"""


def test_a_worker_runs_on_its_own_and_says_what_it_ended_with(worker, tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(WORKER)
    log = tmp_path / 'state' / 'log'
    assert worker('state').stdout == 'worker: none\n'
    assert worker('start', '/mnt/walt', program, 30, 'two words').returncode == 0
    assert worker('state').stdout == 'worker: running\n'
    assert worker('start', '/mnt/walt', program, 30, 'two words').returncode == 0
    wait_for(log.read_text)
    assert json.loads(log.read_text()) == ['30', 'two words', '--distributed=auto']  # once
    assert worker('stop').returncode == 0
    wait_for(lambda: worker('state').stdout == 'worker: 143\n')

    worker('start', '/mnt/walt', program, 0)
    wait_for(lambda: worker('state').stdout == 'worker: 5\n')
