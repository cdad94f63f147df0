"""Processes find each other, or say why not."""

import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import free_port

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.parallel.mesh import make_mesh

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
    for name, _ in distributed.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize('given', REFUSED)
@pytest.mark.parametrize('mode', ['auto', 'on'])
def test_flags_that_do_not_go_together(mode, given):
    with pytest.raises(InputError) as refusal:
        distributed.connect(mode, *given)
    for words in REFUSED[given]:
        assert words in str(refusal.value)


def test_one_process_stays_on_its_own():
    distributed.connect('auto')
    distributed.connect('off', HERE, 2, 1)
    distributed.connect('on', HERE, 1, 0)
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
    assert not distributed.launched()
    monkeypatch.setenv(name, of_one)
    assert not distributed.launched()
    monkeypatch.setenv(name, of_several)
    assert distributed.launched()


def test_a_coordinator_that_does_not_answer():
    address = f'127.0.0.1:{free_port()}'
    with pytest.raises(RunError) as error:
        distributed.connect('auto', address, 2, 1, timeout=1)
    assert f'the coordinator {address} did not answer within 1 seconds' in str(error.value)
    assert 'Connection refused' in str(error.value)
    assert '--coordinator_timeout' in str(error.value)


def test_a_port_that_is_taken():
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'
        with pytest.raises(RunError, match=f'cannot listen at --coordinator={address}'):
            distributed.connect('auto', address, 2, 0, timeout=1)


def test_processes_that_never_come(runs, tmp_path):
    address = f'127.0.0.1:{free_port()}'
    flags = ('--num_processes=2', '--process_id=0', '--coordinator_timeout=1')
    result = runs.run(tmp_path, f'--coordinator={address}', *flags, status=1)
    assert result.out == ''
    assert result.err == (
        f'error: process 0 waited 1 seconds at {address} and not all of the processes came; '
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
    assert '--distributed=on, and JAX finds no launcher' in line
    assert 'Give --coordinator=HOST:PORT, --num_processes and --process_id' in line


@pytest.mark.parametrize('sizes', [dict(), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8)])
def test_one_process_holds_every_row(sizes):
    mesh = make_mesh(**sizes)
    rows = distributed.local_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    batch = {'x': np.arange(48.0, dtype=np.float32).reshape(16, 3)}
    placed = distributed.put_rows(batch, mesh, 16, rows)
    assert placed['x'].sharding == rules.batch_sharding(mesh)
    np.testing.assert_array_equal(distributed.fetch(placed)['x'], batch['x'])


def test_alone_one_agrees_with_oneself():
    assert distributed.agree(True)
    assert not distributed.agree(False)
    distributed.leave(1, 'nobody hears this')


DESCRIPTION = {'config': {'seed': 0, 'model': {'width': 16}}, 'step': None, 'sizes': [7, 0.1]}


def words_of_main(process):
    return distributed.of_main({'process': process, 'text': 'ä' * (2 + process), 'none': None})


def same(process):
    distributed.check_same(DESCRIPTION)


def another_step(process):
    with pytest.raises(RunError) as error:
        distributed.check_same(DESCRIPTION | {'step': 8 if process == 2 else 16})
    return error.value


def another_key(process):
    config = {'seed': 0, 'model': {'width': 16} | ({'depth': 'ä'} if process else {})}
    with pytest.raises(RunError) as error:
        distributed.check_same(DESCRIPTION | {'config': config})
    return error.value


def test_main_says_and_all_compare():
    assert words_of_main(0) == {'process': 0, 'text': 'ää', 'none': None}
    same(0)


def talk(process):
    return '\n'.join(str(say(process)) for say in (words_of_main, same, another_step, another_key))


def test_four_hear_what_the_main_one_says_and_how_they_differ(runs):
    results = runs.call_in_many(4, talk)
    assert [(result.status, result.err) for result in results] == [(0, '')] * 4
    assert {result.out for result in results} == {
        f'{words_of_main(0)}\nNone\n'
        'the processes of this run differ in step: process 0 has 16, process 2 has 8. Start all of '
        'them with the same code, the same flags and the same files.\n'
        'the processes of this run differ in config.model.depth: process 0 has none, process 1 '
        'has "\\u00e4". Start all of them with the same code, the same flags and the same files.\n'
    }


def test_arrays_are_put_where_they_belong_and_fetched_again():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    tree = {'x': np.ones((2, 3), np.float32)}
    placed = distributed.put(tree, {'x': device})
    assert placed['x'].devices() == {jax.devices()[1]}
    assert isinstance(distributed.fetch(placed)['x'], np.ndarray)
    assert distributed.fetch(jnp.int32(3)) == 3
