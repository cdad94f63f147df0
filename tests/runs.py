"""Runs of the command line in processes of their own, of a flow so small that one takes seconds.

Most of the time of a small run goes into imports and compilation. So the processes are forked from
one that has imported everything (`start`), and all share what was compiled; only where the start of
the process itself is the point is it a new Python (`start_python`).
"""

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import json
import logging
import multiprocessing
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time
import types
import warnings
from multiprocessing import forkserver

import jax
import numpy as np
import pytest
from jax._src import compiler

from tarflow_jax import terminal

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = [sys.executable, '-m', 'tarflow_jax.main']
TIMEOUT = 240

# 24 steps an epoch. Windows of metrics reach over checkpoints, scores and samples, on purpose.
TINY = """
from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'digits'
    config.model.image_shape = (8, 8, 1)
    config.model.num_classes = 10
    config.model.patch_size = 4
    config.model.width = 16
    config.model.head_dim = 8
    config.model.num_blocks = 2
    config.model.layers_per_block = 1
    config.model.dtype = 'float32'
    config.noise.std = 0.1
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.warmup_steps = 5
    config.optimizer.clip_norm = 1.0
    config.train.num_epochs = 1.0
    config.train.batch_size = 64
    config.train.microbatches = 1  # loops stay loops, and are traced sooner
    config.train.ema_decay = 0.99
    config.train.log_every = 5
    config.train.evaluate_every = 16
    config.train.evaluate_draws = 1
    config.train.sample_every = 16
    config.train.checkpoint_every = 8
    config.train.keep_checkpoints = 4
    config.sample.num_samples = 16
    config.sample.batch_size = 16
    config.sample.denoise = False
    config.evaluate.metrics = ('nats_per_dim', 'bits_per_dim', 'accuracy', 'cross_entropy')
    return config
"""
TOTAL_STEPS = 24


@dataclasses.dataclass
class Result:
    status: int  # exit status, or minus the signal that killed it
    out: str
    err: str


class Run:
    """A run of the command line that is under way."""

    def __init__(self, process, folder: pathlib.Path):
        self._process = process
        self._folder = folder

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        """What it printed, without the notes of Gloo, through which CPUs of two processes add."""
        file = self._folder / 'out'
        lines = (file.read_text() if file.exists() else '').splitlines(keepends=True)
        return ''.join(line for line in lines if not line.startswith('[Gloo] '))

    def signal(self, number):
        os.kill(self.pid, number)

    def wait_until_paused(self):
        """Waits until it has sent itself SIGSTOP."""
        status = pathlib.Path(f'/proc/{self.pid}/stat')
        deadline = time.monotonic() + TIMEOUT
        while ') T ' not in status.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait(self) -> Result:
        self._process.join(TIMEOUT)
        assert self._process.exitcode is not None, self.out
        result = Result(self._process.exitcode, self.out, (self._folder / 'err').read_text())
        self._process.close()
        return result


@dataclasses.dataclass(frozen=True)
class Runs:
    """Starts runs of the tiny flow.

    Attributes:
      folder: for what runs print, and other files of the session.
      data_dir: has the digits.
      config: the file of the tiny flow's config.
      environment: variables of the runs' environment.
    """

    folder: pathlib.Path
    data_dir: pathlib.Path
    config: pathlib.Path
    environment: dict[str, str] = dataclasses.field(compare=False)

    def start(self, workdir, *flags, at=(), file_size=None, devices=None, mortal=False) -> Run:
        """Starts a run in a process that is forked from one that has imported everything.

        Args:
          workdir: of the run.
          *flags: further flags.
          at: (event, text, number, action): takes the action as soon as Python announces the event
            (of sys.addaudithook) that many times for an argument that has the text. The event
            'call' is a function's, the text as in 'training/loop.py read'. The action is a signal,
            which it sends itself, or an exception, which it raises.
          file_size: bytes after which the writing of a file fails, as on a full disk.
          devices: how many CPU devices it has; one by default.
          mortal: whether permissions bind it even if it belongs to root.
        """
        arguments = [f'--config={self.config}', f'--workdir={workdir}', *map(str, flags)]
        if any(str(flag).startswith('--config=') for flag in flags):
            arguments = [flag for flag in arguments[1:] if flag != '--config=']
        return self._fork(_run, arguments, at, file_size, devices, mortal)

    def run_script(self, source, path, cwd) -> Result:
        """Runs the source of a script as `__main__` in a folder, in a process as those of `start`.

        Args:
          source: of the script.
          path: that tracebacks name.
          cwd: the folder in which it runs.
        """
        result = self._fork(_script, source, str(path), cwd).wait()
        assert result.status == 0, result
        return result

    def _fork(self, target, *arguments) -> Run:
        folder = self.folder / f'run{len(list(self.folder.glob("run*")))}'
        folder.mkdir()
        (folder / 'out').touch()
        process = _forkserver().Process(target=target, args=(folder, *arguments), daemon=True)
        process.start()
        return Run(process, folder)

    def run(self, workdir, *flags, status=0, **how) -> Result:
        """`start`, and waits for the end."""
        result = self.start(workdir, *flags, **how).wait()
        assert result.status == status, result
        return result

    def start_many(self, number, workdir, *flags, own=None, at=None) -> list[Run]:
        """Starts a run of several processes, with a device each.

        Args:
          number: of processes.
          workdir: of the run.
          *flags: further flags, for all of them.
          own: further flags, by process.
          at: for `start`, by process.
        """
        own, at = own or {}, at or {}
        coordinator = (f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={number}')
        return [
            self.start(
                *(workdir, *flags, *coordinator, f'--process_id={i}', *own.get(i, ())),
                at=at.get(i, ()),
            )
            for i in range(number)
        ]

    def run_many(self, number, workdir, *flags, status=0, **how) -> list[Result]:
        """`start_many`, and waits for the end of all."""
        results = [run.wait() for run in self.start_many(number, workdir, *flags, **how)]
        assert [result.status for result in results] == [status] * number, results
        return results

    def start_calls(self, number, function) -> list[Run]:
        """Starts `function(process)` in each of several connected processes; prints its result."""
        coordinator = (f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={number}')
        return [
            self._fork(_call, function, process, [*coordinator, f'--process_id={process}'])
            for process in range(number)
        ]

    def call_in_many(self, number, function) -> list[Result]:
        """`start_calls`, and waits for the end of all."""
        return [run.wait() for run in self.start_calls(number, function)]

    def refused(self, workdir, *flags) -> str:
        """The one line with which a run refuses to start, having changed nothing."""
        before = files_in(workdir)
        result = self.run(workdir, *flags, status=2)
        assert files_in(workdir) == before
        assert result.out == ''
        line, end = result.err[:-1], result.err[-1:]
        assert line.startswith('error: '), result.err
        assert '\n' not in line
        assert end == '\n'
        return line

    def start_python(self, *flags, cwd=ROOT, **environment) -> subprocess.Popen:
        """Starts `python -m tarflow_jax.main` itself."""
        return subprocess.Popen(
            [*COMMAND, *map(str, flags)],
            cwd=cwd,
            env=os.environ | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def make_config(self, **changes):
        """The tiny config; `train__num_epochs=2.0` changes config.train.num_epochs."""
        spec = importlib.util.spec_from_file_location('tiny_config', self.config)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
        config.data.dir = str(self.data_dir)
        for path, value in changes.items():
            section, key = path.split('__')
            config[section][key] = value
        return config


@functools.cache
def _forkserver():
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tarflow_jax.modes'])
    forkserver.ensure_running()  # with the environment of this moment
    return context


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def _print_into(folder):
    # What another process is writing is compiled once more.
    warnings.filterwarnings('ignore', 'Error reading persistent compilation cache')
    # Of several processes JAX lets the first alone keep what it compiles; on CPUs none of the
    # others can use that. Here each keeps its own, as it compiles half of a run's time.
    compiler.distributed = types.SimpleNamespace(
        global_state=types.SimpleNamespace(process_id=0, client=None)
    )
    for name, stream in ('out', 1), ('err', 2):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)


def _call(folder, function, process, arguments):
    _print_into(folder)
    from tarflow_jax import command_line, main, modes
    from tarflow_jax.parallel import cluster

    def call():
        cluster.connect(*command_line.process_flags())
        print(function(process))
        return 0

    sys.argv = ['tarflow_jax/main.py', '--mode=convert', '--workdir=none', *arguments]
    modes.run = call
    _as_python_ends(main.run)


def _script(folder, source, path, cwd):
    _print_into(folder)
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    _as_python_ends(lambda: exec(compile(source, path, 'exec'), {'__name__': '__main__'}))


def _run(folder, arguments, at, file_size, devices, mortal):
    _print_into(folder)
    terminal.prepare()
    for handler in logging.root.handlers:  # made before, with the stream that it replaces
        handler.setStream(sys.stderr)
    sys.argv = ['tarflow_jax/main.py', *arguments]
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if mortal:
        _obey_permissions()
    if devices:
        jax.config.update('jax_num_cpu_devices', devices)
    if at:
        _set_trap(*at)
    from tarflow_jax import main

    _as_python_ends(main.run)


def _obey_permissions():
    """Drops the capabilities by which root reads and writes whatever permissions say."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the structures; this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; of 32 capabilities, twice
    libc = ctypes.CDLL(None)
    libc.capget(header, sets)
    for i in 0, 1:
        sets[i] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


def _as_python_ends(function):
    """Calls what is to be called at exit, too, which a forked process does not."""
    try:
        function()
    finally:
        atexit._run_exitfuncs()


def _set_trap(event, text, number, action):
    seen = 0

    def on_event(name, argument):
        nonlocal seen
        if name == event and text in argument:
            seen += 1
            if seen == number and isinstance(action, Exception):
                raise action
            if seen == number:
                os.kill(os.getpid(), action)

    def on_call(frame, name, _):
        code = frame.f_code
        if code.co_name == function and code.co_filename.endswith(file):
            on_event(name, text)

    if event == 'call':
        file, function = text.split()
        sys.setprofile(on_call)
    else:
        sys.addaudithook(lambda name, arguments: on_event(name, str(arguments[:1])))


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
    """Starts runs of the tiny flow."""
    from tarflow_jax.data.sources import open_dataset

    folder = tmp_path_factory.mktemp('runs')
    config = folder / 'tiny.py'
    config.write_text(TINY)
    open_dataset('digits', folder / 'data')
    base = tmp_path_factory.getbasetemp()
    of_all_workers = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
    environment = {
        'JAX_COMPILATION_CACHE_DIR': str(of_all_workers / 'compiled'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_NUM_CPU_DEVICES': '1',  # however many cores there are
        'TFDS_DATA_DIR': str(folder / 'data'),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        _forkserver()
    return Runs(folder, folder / 'data', config, environment)


@pytest.fixture(scope='session')
def golden_dir():
    """The folder with published checkpoints."""
    return ROOT / 'tests' / 'golden'


@pytest.fixture(scope='session')
def whole(runs, tmp_path_factory):
    """The workdir of a run that nothing interrupted, and what it printed; only to be read."""
    workdir = tmp_path_factory.mktemp('whole')
    return workdir, runs.run(workdir)


def files_in(folder):
    """Every file below a folder with its bytes and its time, but for locks."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(pathlib.Path(folder).rglob('*'))
        if path.is_file() and path.name != '.lock'
    }


def wait_until_held(workdir, pid):
    """Waits until the run of process `pid` holds the workdir."""
    lock = pathlib.Path(workdir, '.lock')
    wait_for(lambda: lock.exists() and lock.read_text().startswith(f'{pid} '))


def wait_for(condition):
    """Waits until the function gives True."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def metrics_in(workdir):
    """The lines of metrics.jsonl without what is a matter of time."""
    lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    for values in metrics:
        values.pop('train/images_per_second', None)
    return metrics


def steps_in(workdir):
    """The steps of a workdir's checkpoints."""
    folder = pathlib.Path(workdir) / 'checkpoints'
    return sorted(int(path.name) for path in folder.glob('*') if path.name.isdigit())


def arrays_in(runs, workdir, step, **changes):
    """Every array of a checkpoint, by name."""
    from tarflow_jax.training.checkpoint import Checkpoints

    items = _abstract_items(runs, **changes)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        restored = checkpoints.restore(step, items)
    leaves, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@functools.cache
def _abstract_items(runs, **changes):
    from tarflow_jax.build import make_model
    from tarflow_jax.training import optimizer, state

    init = functools.partial(
        state.init_state,
        model=make_model(runs.make_config(**changes).model),
        optimizer=optimizer.make_optimizer(
            lambda step: 0.0, b1=0.9, b2=0.9, weight_decay=0.0, clip_norm=1.0
        ),
        ema=True,
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(init, jax.random.key(0)).to_items(),
    )


def assert_same_run(runs, workdir, whole):
    """Final state, metrics and pictures are those of the uninterrupted run, bit for bit."""
    assert metrics_in(workdir) == metrics_in(whole)
    pictures = [
        {path.name: path.read_bytes() for path in (folder / 'samples').iterdir()}
        for folder in (pathlib.Path(workdir), whole)
    ]
    assert pictures[0] == pictures[1]
    last = steps_in(whole)[-1]
    arrays, expected = (arrays_in(runs, folder, last) for folder in (workdir, whole))
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.tobytes() == expected[name].tobytes(), name
