"""What is read back is what was saved, or is said to be damaged."""

import contextlib
import resource
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import (
    break_the_fingerprints,
    delete_an_item,
    delete_the_fingerprints,
    empty_the_folder,
    flip_a_bit,
    list_the_fingerprints,
    nest_the_fingerprints,
    null_the_fingerprints,
    rename_from_another_step,
    truncate_arrays,
)
from jax.sharding import NamedSharding, PartitionSpec
from runs import files_in

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.parallel.fingerprints import fingerprints
from tarflow_jax.training.checkpoint import (
    BEST_METRIC,
    RETRY_SECONDS,
    Checkpoints,
    DamagedCheckpoint,
)

SHAPES = {'w': (40, 50), 'b': (7,)}


def items_of(step):
    rows = np.random.default_rng(step)
    params = {name: jnp.asarray(rows.normal(size=shape)) for name, shape in SHAPES.items()}
    return {'params': params, 'counters': {'step': jnp.asarray(step, jnp.int32)}}


def save(checkpoints, step, nats=None):
    checkpoints.save(step, items_of(step))
    checkpoints.wait()
    if nats is not None:
        checkpoints.attach(step, {BEST_METRIC: nats})


def abstract_items():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), items_of(0)
    )


def assert_are_of(step, items):
    jax.tree.map(np.testing.assert_array_equal, items, items_of(step))


@pytest.fixture
def opened():
    """Opens checkpoints that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_checkpoints(workdir, **kwargs):
            return stack.enter_context(contextlib.closing(Checkpoints(workdir, **kwargs)))

        yield open_checkpoints


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 10, 20 and 30, the best of which is 10; not to change."""
    workdir = tmp_path_factory.mktemp('saved')
    with contextlib.closing(Checkpoints(workdir, keep=3)) as checkpoints:
        for step in 10, 20, 30:
            save(checkpoints, step, step / 100)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy of `saved`."""
    return shutil.copytree(saved, tmp_path / 'run')


DAMAGES = [
    truncate_arrays,
    flip_a_bit,
    empty_the_folder,
    delete_an_item,
    delete_the_fingerprints,
    break_the_fingerprints,
    null_the_fingerprints,
    list_the_fingerprints,
    nest_the_fingerprints,
    rename_from_another_step,
]


def test_what_was_saved_is_restored(saved, opened):
    checkpoints = opened(saved, read_only=True)
    assert checkpoints.steps() == [30, 20, 10]
    assert checkpoints.best_step() == 10
    step, items = checkpoints.restore_newest(abstract_items())
    assert step == 30
    assert_are_of(30, items)
    assert_are_of(20, checkpoints.restore(20, abstract_items()))


def test_some_of_the_items_are_restored_alone(saved, opened):
    params = opened(saved, read_only=True).restore(10, {'params': abstract_items()['params']})
    assert params.keys() == {'params'}
    np.testing.assert_array_equal(params['params']['w'], items_of(10)['params']['w'])


def test_an_item_that_was_not_saved_is_named(saved, opened):
    later = {**abstract_items(), 'later': {}}
    with pytest.raises(
        InputError, match=r'/30 was saved by an earlier version, without later\. It'
    ):
        opened(saved, read_only=True).restore_newest(later)


def test_an_empty_workdir_has_no_checkpoint_and_gets_no_folder(tmp_path, opened):
    for read_only in False, True:
        checkpoints = opened(tmp_path, read_only=read_only)
        assert checkpoints.steps() == []
        assert checkpoints.best_step() is None
        assert checkpoints.restore_newest(abstract_items()) is None
    assert list(tmp_path.iterdir()) == []


def test_the_newest_and_the_best_are_kept(tmp_path, opened):
    checkpoints = opened(tmp_path, keep=2)
    kept = []
    for step, nats in (1, 0.5), (2, 0.1), (3, 0.4), (4, None), (5, float('nan')), (6, 0.3):
        save(checkpoints, step, nats)
        kept.append(checkpoints.steps())
        assert checkpoints.best_step() == min(step, 2)
    assert kept == [[1], [2, 1], [3, 2], [4, 3, 2], [5, 4, 2], [6, 5, 2]]
    assert opened(tmp_path, keep=2).best_step() == 2


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(workdir, opened, caplog, damage):
    damage(workdir / 'checkpoints' / '30')
    checkpoints = opened(workdir)
    with pytest.raises(DamagedCheckpoint):
        checkpoints.restore(30, abstract_items())
    step, items = checkpoints.restore_newest(abstract_items())
    assert step == 20
    assert_are_of(20, items)
    (warning,) = caplog.messages
    assert f'{workdir}/checkpoints/30 is damaged' in warning


def test_a_complete_checkpoint_from_elsewhere_is_used(workdir, tmp_path, opened):
    with contextlib.closing(Checkpoints(tmp_path / 'other')) as other:
        save(other, 40)
    shutil.copytree(tmp_path / 'other' / 'checkpoints' / '40', workdir / 'checkpoints' / '40')
    step, items = opened(workdir).restore_newest(abstract_items())
    assert step == 40
    assert_are_of(40, items)


def test_a_copy_under_another_name_says_so(workdir, opened, caplog):
    shutil.copytree(workdir / 'checkpoints' / '30', workdir / 'checkpoints' / '32')
    step, _ = opened(workdir).restore_newest(abstract_items())
    assert step == 30
    assert '32 is damaged (it belongs to step 30, and was copied or renamed)' in caplog.text


@contextlib.contextmanager
def no_more_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_may_pass_is_tried_again(saved, opened):
    checkpoints = opened(saved, read_only=True)
    checkpoints.restore(30, abstract_items())
    with no_more_open_files() as lift:
        threading.Timer(RETRY_SECONDS[0] / 2, lift).start()
        assert_are_of(30, checkpoints.restore(30, abstract_items()))


def test_what_does_not_pass_is_told_and_nothing_is_called_damaged(
    workdir, opened, caplog, monkeypatch
):
    monkeypatch.setattr('tarflow_jax.training.checkpoint.RETRY_SECONDS', (0.01, 0.01))
    checkpoints = opened(workdir)
    before = files_in(workdir)
    checkpoints.steps()
    with (
        no_more_open_files(),
        pytest.raises(
            RunError, match=r'failed 3 times \(OSError: \[Errno 24\] Too many open files'
        ),
    ):
        checkpoints.restore(30, abstract_items())
    assert files_in(workdir) == before
    assert caplog.messages == []
    assert_are_of(30, checkpoints.restore(30, abstract_items()))


WRITE = """
import contextlib, sys
import jax.numpy as jnp
from tarflow_jax.training.checkpoint import Checkpoints
with contextlib.closing(Checkpoints(sys.argv[1], keep=1)) as checkpoints:
    for step in range(31, 61):
        params = {'w': jnp.full((40, 50), step, float), 'b': jnp.zeros(7)}
        counters = {'step': jnp.asarray(step, jnp.int32)}
        checkpoints.save(step, {'params': params, 'counters': counters})
        checkpoints.wait()
"""


def test_what_is_removed_while_it_is_read_is_not_damaged(workdir, opened, caplog):
    """The run beside keeps one checkpoint, and saves as fast as it can."""
    writer = subprocess.Popen([sys.executable, '-c', WRITE, workdir])
    seen = set()
    while writer.poll() is None:
        step, items = opened(workdir, read_only=True).restore_newest(abstract_items())
        assert items['counters']['step'] == step
        seen.add(step)
    assert writer.returncode == 0
    assert len(seen) > 1
    assert caplog.messages == []


def test_earlier_steps_of_a_run_that_went_back_set_later_ones_aside(workdir, opened):
    checkpoints = opened(workdir)
    save(checkpoints, 15)
    assert checkpoints.steps() == [15, 10]
    folders = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
    assert folders == ['10', '15', '20.abandoned', '30.abandoned']
    assert_are_of(15, checkpoints.restore_newest(abstract_items())[1])
    assert_are_of(10, checkpoints.restore_newest(abstract_items(), older_than=15)[1])


def test_every_flipped_bit_changes_the_fingerprint():
    words = np.random.default_rng(0).integers(2**32, size=97, dtype=np.uint32)
    sound = fingerprints({'x': jnp.asarray(words)})
    for position in 0, 50, 96:
        for bit in range(32):
            damaged = words.copy()
            damaged[position] ^= np.uint32(1) << np.uint32(bit)
            assert fingerprints({'x': jnp.asarray(damaged)}) != sound


@pytest.mark.parametrize('size', [8, 8 * 40_000])
def test_the_fingerprint_is_the_same_in_one_memory_and_in_many(size):
    words = np.random.default_rng(0).normal(size=size).astype(np.float32)
    whole = jnp.asarray(words)
    expected = sum(int(word) * (2 * i + 1) for i, word in enumerate(words.view(np.uint32)))
    mesh = jax.make_mesh((8,), ('data',))
    in_parts = jax.device_put(whole, NamedSharding(mesh, PartitionSpec('data')))
    for array in whole, in_parts:
        assert list(fingerprints({'x': array}).values()) == [expected % 2**32]


def test_an_array_can_be_donated_after_its_fingerprint():
    array = jnp.ones(4)
    fingerprints({'x': array})
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert array.is_deleted()


def test_swapped_numbers_change_the_fingerprint():
    sound = fingerprints({'x': jnp.array([1.0, 2.0, 3.0])})
    assert fingerprints({'x': jnp.array([2.0, 1.0, 3.0])}) != sound


def test_a_damaged_one_is_set_aside_and_its_step_can_be_saved_again(workdir, opened):
    for aside in ['30.damaged'], ['30.damaged', '30.damaged2']:
        flip_a_bit(workdir / 'checkpoints' / '30')
        checkpoints = opened(workdir, keep=3)
        step, _ = checkpoints.restore_newest(abstract_items())
        checkpoints.set_aside(newer_than=step)
        assert checkpoints.steps() == [20, 10]
        save(checkpoints, 30, 0.3)
        assert_are_of(30, checkpoints.restore(30, abstract_items()))
        folders = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
        assert folders == ['10', '20', '30', *aside]


def test_all_damaged_is_an_error_and_nothing_is_lost(workdir, opened):
    for step, damage in zip((10, 20, 30), DAMAGES, strict=False):
        damage(workdir / 'checkpoints' / str(step))
    before = files_in(workdir)
    with pytest.raises(InputError, match=r'all checkpoints in .* are damaged: \[10, 20, 30\]'):
        opened(workdir).restore_newest(abstract_items())
    assert files_in(workdir) == before


@pytest.mark.parametrize('content', ['', '{"test/na', '[1]', '{"loss": 1.0}'])
def test_damaged_metrics_do_not_hide_a_sound_checkpoint(workdir, opened, content):
    (workdir / 'checkpoints' / '10' / 'metrics' / 'metrics').write_text(content)
    checkpoints = opened(workdir, keep=3)
    assert checkpoints.best_step() == 20
    assert_are_of(10, checkpoints.restore(10, abstract_items()))
    save(checkpoints, 40, 0.4)
    assert checkpoints.steps() == [40, 30, 20]


def test_reading_changes_nothing(workdir, opened, caplog):
    flip_a_bit(workdir / 'checkpoints' / '30')
    unfinished = workdir / 'checkpoints' / '40.orbax-checkpoint-tmp'
    unfinished.mkdir()
    before = files_in(workdir)
    checkpoints = opened(workdir, read_only=True)
    assert checkpoints.restore_newest(abstract_items())[0] == 20
    assert files_in(workdir) == before
    assert unfinished.is_dir()


def test_an_unfinished_save_is_no_checkpoint_and_is_cleared_away(workdir, opened):
    unfinished = workdir / 'checkpoints' / '40.orbax-checkpoint-tmp'
    shutil.copytree(workdir / 'checkpoints' / '30', unfinished)
    checkpoints = opened(workdir)
    assert checkpoints.steps() == [30, 20, 10]
    checkpoints.save(50, items_of(50))  # waits for the clearing
    assert not unfinished.exists()


@contextlib.contextmanager
def files_end_at(num_bytes):
    """Writes of arrays fail as on a full disk. Not a fixture: pytest's own log may be larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_is_told_without_waiting_for_the_next(tmp_path, capfd):
    def check_until_it_fails():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            checkpoints.check()
            time.sleep(0.01)

    with files_end_at(10 * 1024), contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(10, {'params': {'b': jnp.zeros(7)}})
        checkpoints.save(20, {'params': {'b': jnp.asarray(np.random.default_rng(0).random(9999))}})
        with pytest.raises(RunError, match=r'The last good one, of step 10, is untouched\.'):
            check_until_it_fails()
    assert checkpoints.steps() == [10]
    assert capfd.readouterr() == ('', '')


def test_shapes_of_another_model_are_not_taken(saved, opened):
    other = abstract_items()
    other['params']['w'] = jax.ShapeDtypeStruct((50, 40), jnp.float32, sharding=None)
    with pytest.raises(DamagedCheckpoint):
        opened(saved, read_only=True).restore(10, other)


def test_saved_by_one_device_restored_onto_eight(saved, opened):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), items_of(0)
    )
    abstract['params']['w'] = jax.ShapeDtypeStruct(SHAPES['w'], jnp.float32, sharding=rows)
    items = opened(saved, read_only=True).restore(20, abstract)
    assert items['params']['w'].sharding == rows
    assert_are_of(20, items)
