"""TPU slices: what is asked of gcloud, and what a host then does."""

import json
import re
import shlex
import signal
import subprocess
import tarfile

import pytest

SETTINGS = dict(NAME='tarflow', ZONE='us-east5-b', TYPE='v6e-64')
FLAGS = ['--config=configs/a.py', "--workdir=/mnt/b/it's a, b", '--config.sample.text=$HOME "x" \\']
ACTIVE, GONE = (0, 'ACTIVE'), (1, 'ERROR: (gcloud) NOT_FOUND: no such resource')
RUN = 'tpu_host.sh run'
LOST, LATER = (0, 'SUSPENDED'), (0, 'WAITING_FOR_RESOURCES')

# A host that does what it is asked: ssh runs the command in HOME, scp copies into it.
HOST = """#!/bin/bash
[[ $4 != scp ]] || exec cp "$5" "$HOME"
[[ $4 == ssh ]] || exit 1
for argument; do
  if [[ $argument == --command=* ]]; then cd && exec bash -c "${argument#--command=}"; fi
done
"""
# In the place of the hosts' Python: writes down how it was called, and stays until SIGTERM.
PYTHON = """#!PYTHON -SE
import json, os, signal, sys, time
with open(os.environ['HOME'] + '/called', 'a') as file:
    file.write(json.dumps([os.getpid(), *sys.argv[1:]]) + '\\n')
if '--stay' in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if '--stubborn' in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if '--stay' in sys.argv or '--stubborn' in sys.argv:
    print('up', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def pod(launch):
    launch.add('gcloud', 'tar')
    launch.environment |= SETTINGS
    return launch


@pytest.fixture
def host(launch):
    """A machine on which `setup` has been."""
    launch.add('python', text=PYTHON, where=launch.folder / 'home/tarflow_env/bin')
    launch.add('uv', where=launch.folder / 'home/.local/bin')
    launch.environment |= SETTINGS | {'PID_FILE': str(launch.folder / 'pid')}
    return launch


def asked(pod):
    """What was asked of gcloud, shortened to what it is about."""
    names = {
        'describe': 'describe',
        'create': 'create',
        'delete': 'delete',
        'scp': 'copy',
        'tpu_host.sh setup': 'setup',
        'tpu_host.sh run': 'run',
        'tpu_host.sh stop': 'stop',
    }
    commands = [' '.join(argv) for argv in pod.recorded() if argv[0] == 'gcloud']
    return [next(name for text, name in names.items() if text in each) for each in commands]


SETTINGS_OF = {
    'plain': {},
    'spot': {'SPOT': '1', 'BUCKET': 'b', 'GCLOUD_FLAGS': '--network=n --reserved'},
    'slices': {'NUM_SLICES': '4', 'TYPE': 'v5p-128', 'BUCKET': 'b', 'MOUNT': '/mnt/my bucket'},
    'runtime': {'TYPE': 'v9-8', 'RUNTIME': 'another'},
}


@pytest.mark.parametrize('settings', SETTINGS_OF)
@pytest.mark.parametrize('verb', ['create', 'queue', 'setup', 'run', 'watch', 'stop', 'delete'])
def test_dry_run_prints_what_is_asked(pod, verb, settings):
    settings = SETTINGS_OF[settings]
    flags = FLAGS if verb in ('run', 'watch') else []
    if verb == 'create' and 'NUM_SLICES' in settings:
        assert 'use queue' in pod.refused('tpu_pod.sh', verb, **settings)
        return
    commands = pod.run('tpu_pod.sh', verb, *flags, **settings, DRY_RUN='1').commands
    assert pod.recorded() == []
    pod.answer({'describe': [GONE, ACTIVE]})
    pod.run('tpu_pod.sh', verb, *flags, **settings)
    recorded = pod.recorded()
    if verb == 'watch':  # it looks again, to see the slice come
        assert recorded.pop(2) == recorded[0]
    if verb == 'delete':  # A || B
        (command,) = commands
        commands = [command[: command.index('||')]]
    assert recorded == commands
    if verb == 'delete':
        pod.answer({'queued': [(1, 'no such request')]})
        pod.run('tpu_pod.sh', verb, **settings)
        request, node = pod.recorded()
        assert [*request, '||', *node] == command


@pytest.mark.parametrize(
    ('type', 'version'),
    [
        ('v4-32', 'tpu-ubuntu2204-base'),
        ('v5litepod-64', 'v2-alpha-tpuv5-lite'),
        ('v5p-128', 'v2-alpha-tpuv5'),
        ('v6e-64', 'v2-alpha-tpuv6e'),
    ],
)
def test_what_a_slice_is_asked_with(pod, type, version):
    pod.run('tpu_pod.sh', 'create', TYPE=type, SPOT='1')
    pod.run('tpu_pod.sh', 'queue', TYPE=type)
    pod.run('tpu_pod.sh', 'queue', TYPE=type, NUM_SLICES='4', SPOT='1')
    node, one, many = pod.recorded()
    tpus = ['gcloud', 'compute', 'tpus']
    assert node[:6] == [*tpus, 'tpu-vm', 'create', 'tarflow']
    assert one[:6] == many[:6] == [*tpus, 'queued-resources', 'create', 'tarflow']
    for argv in node, one, many:
        assert {f'--accelerator-type={type}', '--zone=us-east5-b'} <= set(argv)
        assert ('--spot' in argv) == (argv is not one)
    assert f'--version={version}' in node
    assert {f'--runtime-version={version}', '--node-id=tarflow'} <= set(one)
    assert {f'--runtime-version={version}', '--node-count=4', '--node-prefix=tarflow'} <= set(many)


def test_every_host_of_every_slice_is_reached(pod):
    for settings in {}, {'NUM_SLICES': '2'}:
        for arguments in ['setup'], ['run', *FLAGS], ['stop']:
            pod.run('tpu_pod.sh', *arguments, **settings)
        commands = [argv for argv in pod.recorded() if argv[0] == 'gcloud']
        assert [argv[4] for argv in commands] == ['scp', 'ssh', 'ssh', 'ssh']
        for argv in commands:
            assert '--worker=all' in argv
            assert ('--node=all' in argv) == bool(settings)
            assert argv[3] == ('queued-resources' if settings else 'tpu-vm')


@pytest.mark.parametrize('status', [0, 2])
def test_watch_goes_on_until_done_or_asked_wrongly(pod, status):
    states = [GONE, LATER, LATER, ACTIVE, ACTIVE, ACTIVE, LOST, GONE, LATER, ACTIVE]
    runs = [(143, 'preempted'), (255, 'no connection'), (1, 'no connection'), (status, '')]
    pod.answer({'describe': states, RUN: runs})
    result = pod.run('tpu_pod.sh', 'watch', *FLAGS, status=status)
    assert asked(pod) == [
        *('describe', 'create', 'describe', 'describe'),
        *('describe', 'copy', 'setup', 'run'),  # saved itself, and the slice is still there
        *('describe', 'run', 'describe', 'run'),
        *('describe', 'delete', 'describe', 'create', 'describe'),  # lost; waits for another
        *('describe', 'copy', 'setup', 'run'),
    ]
    assert 'failure 2 of 10, status 1' in result.err
    assert 'failure 3' not in result.err


def test_watch_asks_anew_after_a_failed_request(pod):
    pod.answer({'describe': [(0, 'FAILED'), GONE, ACTIVE]})
    pod.run('tpu_pod.sh', 'watch', *FLAGS)
    assert asked(pod) == [
        *('describe', 'delete', 'describe', 'create'),
        *('describe', 'copy', 'setup', 'run'),
    ]


def test_watch_leaves_alone_what_it_cannot_see(pod):
    states = [(1, 'no network'), (0, 'SUSPENDING'), (0, 'new gcloud is there\nACTIVE')]
    pod.answer({'describe': states})
    result = pod.run('tpu_pod.sh', 'watch', *FLAGS)
    assert asked(pod) == ['describe'] * 3 + ['copy', 'setup', 'run']
    assert 'no network' in result.err


@pytest.mark.parametrize('text', [RUN, 'tpu_host.sh setup', ' create ', ' scp ', 'tar -czf'])
def test_watch_gives_up(pod, text):
    pod.answer({text: [(7, 'broken')], 'describe': [GONE if 'create' in text else ACTIVE]})
    result = pod.run('tpu_pod.sh', 'watch', *FLAGS, status=7, TRIES='3')
    assert 'failure 3 of 3, status 7' in result.err
    assert asked(pod).count('describe') == 3


def test_watch_waits_longer_after_each_failure_and_at_most_ten_minutes(pod):
    pod.add('sleep')
    pod.answer({'describe': [ACTIVE], RUN: [(1, '')]})
    pod.run('tpu_pod.sh', 'watch', *FLAGS, status=1, TRIES='8', POLL='30')
    pauses = [int(argv[1]) for argv in pod.recorded() if argv[0] == 'sleep']
    assert pauses == [60, 120, 240, 480, 600, 600, 600]


@pytest.mark.parametrize(
    ('arguments', 'settings', 'words'),
    [
        (['queue'], {'NAME': ''}, 'NAME must be set, for example: NAME=tarflow ZONE='),
        (['queue'], {'NAME': '', 'ZONE': '', 'TYPE': ''}, 'NAME and ZONE and TYPE must be set'),
        (['queue'], {'TYPE': 'a100'}, "TYPE must be v4-N, v5litepod-N, .* got 'a100'"),
        (['queue'], {'NUM_SLICES': '1.5'}, "NUM_SLICES .* at least 1; got '1.5'"),
        (['queue'], {'NAME': 'My Pod'}, "got 'My Pod'"),
        (['queue'], {'NAME': 'pod-'}, "got 'pod-'"),
        (['queue', '--spot'], {}, "queue takes no flags; got '--spot'"),
        (['run'], {}, 'run needs flags of the run: --config=FILE'),
        (['watch', 'x'], {'TRIES': '31'}, 'TRIES must be at most 30; got 31'),
        (['watch', 'x'], {'POLL': 'soon'}, "POLL must be a whole number .* got 'soon'"),
        (['begin'], {}, "'begin' is none of create, queue, setup, run, watch, stop, delete"),
    ],
)
def test_what_it_refuses(pod, arguments, settings, words):
    assert re.search(words, pod.refused('tpu_pod.sh', *arguments, **settings))


def test_flags_of_the_compiler_reach_the_hosts(pod):
    pod.run('tpu_pod.sh', 'run', *FLAGS, BUCKET='b', LIBTPU_INIT_ARGS='--a=true --b=2')
    (argv,) = pod.recorded()
    command = next(word for word in argv if word.startswith('--command='))
    assert shlex.split(command.removeprefix('--command='))[:4] == [
        *('env', 'BUCKET=b', 'MOUNT=/mnt/b', 'LIBTPU_INIT_ARGS=--a=true --b=2')
    ]


def test_a_host_gets_the_checkout_and_runs_it(host):
    host.add('gcloud', text=HOST)
    host.add('sudo', 'mountpoint', 'gcsfuse')
    (host.checkout / 'constraints.txt').touch()
    for folder in '.git', 'runs', '.ruff_cache':
        (host.checkout / folder).mkdir()
        (host.checkout / folder / 'large').touch()
    settings = {'BUCKET': 'b', 'MOUNT': "/mnt/it's"}
    host.run('tpu_pod.sh', 'setup', **settings)
    (uv,) = host.recorded()
    home = host.folder / 'home'
    assert shlex.join(uv) == (
        f"uv pip install -q --python {home}/tarflow_env -c constraints.txt -e '.[tpu]'"
    )
    with tarfile.open(home / 'tarflow_jax-tarflow.tgz') as archive:
        names = archive.getnames()
    assert {'./launch/tpu_host.sh', './constraints.txt'} <= set(names)
    assert not [name for name in names if 'large' in name]
    host.answer({'mountpoint': [(1, '')]})
    host.run('tpu_pod.sh', 'run', *FLAGS, **settings)
    programs = host.recorded()
    assert programs[0] == ['mountpoint', '-q', "/mnt/it's"]
    assert programs[1] == ['sudo', 'mkdir', '-p', "/mnt/it's"]
    assert programs[3][0] == 'gcsfuse'
    assert {'--implicit-dirs', '--rename-dir-limit=200000'} < set(programs[3])
    assert programs[3][-2:] == ['b', "/mnt/it's"]
    assert called(host)[0][1:] == ['-m', 'tarflow_jax.main', *FLAGS, '--distributed=on']
    host.answer({})
    host.run('tpu_pod.sh', 'run', *FLAGS, **settings)
    assert host.recorded() == [['mountpoint', '-q', "/mnt/it's"]]


def test_a_host_runs_one_at_a_time(host):
    first = start_on(host, '--stay')
    second = start_on(host, '--stay')
    assert host.finish(first).status == 143
    host.run('tpu_host.sh', 'stop')
    assert host.finish(second).status == 143
    assert len(called(host)) == 2
    host.run('tpu_host.sh', 'stop')  # nothing is there: nothing to do


def test_a_host_ends_what_will_not_stop(host):
    run = start_on(host, '--stubborn')
    host.run('tpu_host.sh', 'stop', GRACE='1')
    assert host.finish(run).status == -signal.SIGKILL


def test_a_host_spares_a_process_that_was_given_the_number(host):
    with subprocess.Popen(['sleep', '60']) as other:
        (host.folder / 'pid').write_text(f'{other.pid}\n')
        host.run('tpu_host.sh', 'stop')
        assert other.poll() is None
        other.kill()


def start_on(host, *flags):
    process = host.start('tpu_host.sh', 'run', *flags)
    assert process.stdout.readline() == 'up\n'
    return process


def called(host):
    """How the hosts' Python was called: process and arguments."""
    return [json.loads(line) for line in (host.folder / 'home/called').read_text().splitlines()]
