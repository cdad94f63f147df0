"""Several processes on one machine: with a program that stands in, and with JAX itself."""

import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = ['--config=configs/a.py', "--workdir=/mnt/it's a, b", '--config.sample.text=$HOME "x"']

# Finds a free port as Python does. As the program it notes how it was called and every signal that
# it gets, and does what BODY says.
PYTHON = """#!PYTHON -SE
import json, os, signal, sys, time
if sys.argv[1] == '-c':
    exec(sys.argv[2])
    sys.exit()
process = int(sys.argv[-1].partition('--process_id=')[2])
def note(what):
    with open(os.environ['STAND_INS'] + f'/process_{process}', 'a') as file:
        print(json.dumps(what), file=file)
def leave(number, _):
    note(number)
    time.sleep(0.3)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
note([os.environ['CUDA_VISIBLE_DEVICES'], *sys.argv[1:]])
print('process', process, flush=True)
exec(os.environ['BODY'])
"""
STAY = 'time.sleep(60)'

# Makes the terminal that it reads from its own, and becomes a program.
IN_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.argv[1], sys.argv[1:])
"""

# Adds a number of each process.
SUM = """
import argparse, jax
parser = argparse.ArgumentParser()
parser.add_argument('--coordinator')
parser.add_argument('--num_processes', type=int)
parser.add_argument('--process_id', type=int)
asked, _ = parser.parse_known_args()
jax.distributed.initialize(asked.coordinator, asked.num_processes, asked.process_id)
from jax.experimental.multihost_utils import process_allgather
print(process_allgather(jax.numpy.float32(10**asked.process_id)).sum())
"""


@pytest.fixture
def machine(launch):
    launch.add('python', text=PYTHON)
    launch.environment |= {'BODY': '', 'LOGS': str(launch.folder / 'the logs'), 'GRACE': '1'}
    return launch


def notes(machine, process):
    """How a process was called, and its signals."""
    file = machine.folder / f'process_{process}'
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def log(machine, process):
    return (machine.folder / f'the logs/process_{process}.log').read_text()


def wait_until_called(machine, count):
    deadline = time.monotonic() + 120
    while not all(notes(machine, process) for process in range(count)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ('count', 'gpus', 'expected'),
    [
        (1, {}, ['0']),
        (3, {}, ['0', '1', '2']),
        (2, {'CUDA_VISIBLE_DEVICES': '5, 3,1'}, ['5', '3']),
        (2, {'CUDA_VISIBLE_DEVICES': ''}, ['', '']),
    ],
)
def test_each_process_is_told_its_part(machine, count, gpus, expected):
    result = machine.run('one_machine.sh', count, *FLAGS, **gpus)
    calls = [notes(machine, process) for process in range(count)]
    port = calls[0][0][-3].rpartition(':')[2]
    assert calls == [
        [
            [
                expected[process],
                *('-m', 'tarflow_jax.main', *FLAGS, f'--coordinator=127.0.0.1:{port}'),
                *(f'--num_processes={count}', f'--process_id={process}'),
            ]
        ]
        for process in range(count)
    ]
    assert result.out == 'process 0\n'
    for process in range(1, count):
        assert log(machine, process) == f'process {process}\n'
    assert ('the logs' in result.err) == (count > 1)


def test_dry_run_prints_what_is_run(machine):
    dry = machine.run('one_machine.sh', 2, *FLAGS, DRY_RUN='1', PORT='4321')
    assert not (machine.folder / 'the logs').exists()
    machine.run('one_machine.sh', 2, *FLAGS, PORT='4321')
    called = [notes(machine, process)[0] for process in range(2)]
    first, *commands = dry.commands
    assert first == ['mkdir', '-p', str(machine.folder / 'the logs')]
    redirections = [], [f'>{machine.folder}/the logs/process_1.log', '2>&1']
    for command, (gpu, *arguments), redirection in zip(commands, called, redirections, strict=True):
        gpu = f'CUDA_VISIBLE_DEVICES={gpu}'
        assert command == ['env', gpu, 'python', *arguments, *redirection, '&']


def test_a_free_port_each_time(machine):
    ports = set()
    for _ in range(3):
        dry = machine.run('one_machine.sh', 1, *FLAGS, DRY_RUN='1')
        ports.add(dry.commands[0][-4])
    assert len(ports) > 1


@pytest.mark.parametrize(('process', 'status'), [(0, 1), (1, 2), (2, 143)])
def test_the_others_end_with_one_that_fails(machine, process, status):
    body = f'if process == {process}: print("why", flush=True), sys.exit({status})\n{STAY}'
    result = machine.run('one_machine.sh', 3, *FLAGS, BODY=body, status=status)
    for other in {0, 1, 2} - {process}:
        assert notes(machine, other)[1:] == [signal.SIGTERM]
    assert f'process {process} ended with status {status}' in result.err
    assert 'why' in (result.err if process else result.out)


def test_the_others_may_save_before_they_end(machine):
    body = 'time.sleep(process * 0.3); sys.exit(143 - process)'
    machine.run('one_machine.sh', 3, *FLAGS, BODY=body, status=143, GRACE='30')
    assert [len(notes(machine, process)) for process in range(3)] == [1, 1, 1]


def test_one_that_will_not_end_is_killed(machine):
    body = f'if process: sys.exit(3)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{STAY}'
    machine.run('one_machine.sh', 2, *FLAGS, BODY=body, status=3)


def test_it_waits_for_the_last(machine):
    machine.run('one_machine.sh', 2, *FLAGS, BODY='time.sleep(process); note("end")')
    assert [notes(machine, process)[-1] for process in range(2)] == ['end', 'end']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_on_to_all(machine, number):
    process = machine.start('one_machine.sh', 3, *FLAGS, BODY=STAY, GRACE='30')
    wait_until_called(machine, 3)
    process.send_signal(number)
    assert machine.finish(process).status == 128 + number
    assert [notes(machine, each)[1:] for each in range(3)] == [[number]] * 3


def test_ctrl_c_reaches_each_process_once(machine):
    ours, theirs = pty.openpty()
    script = machine.checkout / 'launch/one_machine.sh'
    process = subprocess.Popen(
        [sys.executable, '-SE', '-c', IN_TERMINAL, script, '2', *FLAGS],
        env=machine.environment | {'BODY': STAY, 'GRACE': '30'},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    wait_until_called(machine, 2)
    os.write(ours, b'\x03')
    assert process.wait(120) == 130
    assert [notes(machine, each)[1:] for each in range(2)] == [[signal.SIGINT]] * 2
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ('arguments', 'settings', 'words'),
    [
        (['--config=x'], {}, "N must be a whole number of at least 1; got '--config=x'"),
        (['0', '--config=x'], {}, "got '0'"),
        (['2'], {}, 'there are no flags of the run'),
        (['3', 'x'], {'CUDA_VISIBLE_DEVICES': '0,1'}, 'has no GPU for each of 3 processes'),
        (['2', 'x'], {'GRACE': 'long'}, "GRACE .* got 'long'"),
        (['2', 'x'], {'PORT': '99999'}, "PORT must be below 65536; got '99999'"),
    ],
)
def test_what_it_refuses(machine, arguments, settings, words):
    assert re.search(words, machine.refused('one_machine.sh', *arguments, **settings))


def test_processes_find_each_other(launch):
    package = launch.checkout / 'tarflow_jax'
    package.mkdir()
    (package / 'main.py').write_text(SUM)
    launch.environment |= {
        'PATH': f'{pathlib.Path(sys.executable).parent}:/usr/bin:/bin',
        'LOGS': str(launch.folder / 'logs'),
        'JAX_PLATFORMS': 'cpu',
    }
    result = launch.run('one_machine.sh', 2, '--unused')
    assert result.out.endswith('11.0\n'), result  # after Gloo's own words
    assert '11.0\n' in (launch.folder / 'logs/process_1.log').read_text()


def test_the_program_takes_the_flags(launch):
    launch.environment |= {
        'PATH': f'{pathlib.Path(sys.executable).parent}:/usr/bin:/bin',
        'LOGS': str(launch.folder / 'logs'),
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(ROOT),
    }
    flags = [f'--config={ROOT}/configs/digits.py', '--workdir=gs://bucket/run']
    result = launch.run('one_machine.sh', 2, *flags, status=2)
    for words in result.err, (launch.folder / 'logs/process_1.log').read_text():
        assert 'workdir gs://bucket/run is a URL' in words
