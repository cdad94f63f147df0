"""Processes find each other, or say why not."""

import socket

import jax
import pytest
from runs import free_port

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.parallel import cluster, distributed, launchers

HERE = '127.0.0.1:8476'
REFUSED = {
    (None, 2, 0): ['--coordinator must be given too', 'go together'],
    (HERE, None, None): ['--num_processes and --process_id must be given too'],
    ('10.0.0.1', 2, 0): ['--coordinator must be HOST:PORT', "'10.0.0.1'"],
    (':8476', 2, 0): ['--coordinator must be HOST:PORT'],
    ('host:port', 2, 0): ['--coordinator must be HOST:PORT'],
    ('host:70000', 2, 0): ['--coordinator must be HOST:PORT'],
    (HERE, 0, 0): ['--num_processes must be at least 1; got 0'],
    (HERE, 2, 2): ['--process_id must lie in 0..1 for --num_processes=2', 'got 2'],
    (HERE, 2, -1): ['--process_id must lie in 0..1', 'got -1'],
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name, _ in launchers.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize('given', REFUSED)
@pytest.mark.parametrize('mode', ['auto', 'on'])
def test_flags_that_do_not_go_together(mode, given):
    with pytest.raises(InputError) as refusal:
        cluster.connect(mode, *given)
    for words in REFUSED[given]:
        assert words in str(refusal.value)


def test_one_process_stays_on_its_own():
    cluster.connect('auto')
    cluster.connect('off', HERE, 2, 1)
    cluster.connect('on', HERE, 1, 0)
    assert not jax.distributed.is_initialized()
    assert distributed.is_main()


@pytest.mark.parametrize(
    ('name', 'of_one', 'of_several'),
    [
        ('SLURM_STEP_NUM_TASKS', '1', '2'),
        ('OMPI_COMM_WORLD_SIZE', '1', '16'),
        ('TPU_WORKER_HOSTNAMES', 'localhost', 't1k-0,t1k-1'),
        ('MEGASCALE_COORDINATOR_ADDRESS', '', '10.0.0.1:8080'),
    ],
)
def test_a_launcher_is_noticed(monkeypatch, name, of_one, of_several):
    assert not launchers.launched()
    monkeypatch.setenv(name, of_one)
    assert not launchers.launched()
    monkeypatch.setenv(name, of_several)
    assert launchers.launched()


def test_a_coordinator_that_does_not_answer():
    address = f'127.0.0.1:{free_port()}'
    with pytest.raises(RunError) as error:
        cluster.connect('auto', address, 2, 1, timeout=1)
    assert f'the coordinator {address} did not answer within 1 seconds' in str(error.value)
    assert 'Connection refused' in str(error.value)
    assert '--coordinator_timeout' in str(error.value)


def test_a_port_that_is_taken():
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'
        with pytest.raises(RunError, match=f'cannot listen at --coordinator={address}'):
            cluster.connect('auto', address, 2, 0, timeout=1)


def test_processes_that_never_come(runs, tmp_path):
    address = f'127.0.0.1:{free_port()}'
    flags = ('--num_processes=2', '--process_id=0', '--coordinator_timeout=1')
    result = runs.run(tmp_path, f'--coordinator={address}', *flags, status=1)
    assert result.out == ''
    assert result.err == (
        f'error: process 0 waited 1 seconds at {address} for all processes to connect; '
        'missing: 1. Start every one of them, with the same --coordinator; --coordinator_timeout '
        'sets the seconds.\n'
    )


def test_a_server_that_is_no_coordinator(runs, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'
        flags = ('--num_processes=2', '--process_id=1', '--coordinator_timeout=1')
        result = runs.run(tmp_path, f'--coordinator={address}', *flags, status=1)
    assert f'error: the coordinator {address} did not answer within 1 seconds' in result.err


def test_on_without_a_launcher(runs, tmp_path):
    line = runs.refused(tmp_path, '--distributed=on')
    assert 'JAX cannot determine the coordinator, the number of processes' in line
    assert 'Give --coordinator=HOST:PORT, --num_processes and --process_id' in line


def test_a_launcher_that_jax_does_not_know(runs, tmp_path):
    """Open MPI 5 tells processes less than Open MPI 4."""
    flags = (f'--config={runs.config}', f'--workdir={tmp_path}')
    process = runs.start_python(*flags, OMPI_COMM_WORLD_SIZE='2')
    _, words = process.communicate()
    assert process.returncode == 2
    assert 'or the environment of a launcher' in words
    assert '--process_id=$OMPI_COMM_WORLD_RANK' in words
