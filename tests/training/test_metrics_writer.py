"""The record has every step once, also after a kill, in JSON and for TensorBoard."""

import json
import math
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from tarflow_jax.imagefiles import encode_png
from tarflow_jax.training.metrics_writer import MetricsWriter

# A limit on the size of files stands in for a disk that fills up.
RECORD_UNTIL_FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from tarflow_jax.training.metrics_writer import MetricsWriter
writer = MetricsWriter(sys.argv[1])
try:
    for step in range(10_000):
        writer.scalars(step, {'train/loss': 0.5})
except OSError:
    print('full', flush=True)
"""


def lines_in(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def events_in(workdir):
    events = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            header = data[position : position + 8]
            (length,) = struct.unpack('<Q', header)
            body = data[position + 12 : position + 12 + length]
            assert struct.unpack_from('<I', data, position + 8) == (masked_crc32c(header),)
            assert struct.unpack_from('<I', data, position + 12 + length) == (masked_crc32c(body),)
            events.append(Event.FromString(body))
            position += length + 16
    return events


def scalars_in(events):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
    ]


def test_scalars_stand_in_the_lines_and_in_the_events(tmp_path):
    with MetricsWriter(tmp_path / 'run') as writer:
        writer.scalars(10, {'train/loss': 0.5, 'train/skipped_steps': 0})
        writer.scalars(np.int64(20), {'train/loss': np.float32(0.25)})
        writer.scalars(30, {'train/loss': jnp.float32(0.125)})
    assert lines_in(tmp_path / 'run') == [
        {'step': 10, 'train/loss': 0.5, 'train/skipped_steps': 0},
        {'step': 20, 'train/loss': 0.25},
        {'step': 30, 'train/loss': 0.125},
    ]
    assert scalars_in(events_in(tmp_path / 'run')) == [
        (10, 'train/loss', 0.5),
        (10, 'train/skipped_steps', 0.0),
        (20, 'train/loss', 0.25),
        (30, 'train/loss', 0.125),
    ]


def test_what_was_recorded_is_in_the_files_before_they_are_closed(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, {'train/loss': 0.5})
        assert lines_in(tmp_path) == [{'step': 1, 'train/loss': 0.5}]
        assert scalars_in(events_in(tmp_path)) == [(1, 'train/loss', 0.5)]


def test_non_finite_values_are_null_in_the_lines_and_themselves_in_the_events(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, {'a': float('nan'), 'b': np.float32('inf'), 'c': 1.0})
    assert (
        tmp_path / 'metrics.jsonl'
    ).read_text() == '{"step": 1, "a": null, "b": null, "c": 1.0}\n'
    (_, _, nan), (_, _, infinity), _ = scalars_in(events_in(tmp_path))
    assert math.isnan(nan)
    assert infinity == math.inf


@pytest.mark.parametrize('shape', [(6, 4), (6, 4, 1), (6, 4, 3)])
def test_an_image_stands_in_the_events(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with MetricsWriter(tmp_path) as writer:
        writer.image(5, 'samples', image)
    event = events_in(tmp_path)[-1]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (5, 'samples')
    assert (value.image.height, value.image.width) == (6, 4)
    assert value.image.colorspace == (3 if shape[2:] == (3,) else 1)
    assert value.image.encoded_image_string == encode_png(image)


def test_a_text_stands_in_the_events(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.text(5, 'config', 'seed: 0')
    event = events_in(tmp_path)[-1]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (5, 'config/text_summary')
    assert value.metadata.plugin_data.plugin_name == 'text'
    assert list(value.tensor.string_val) == [b'seed: 0']


def test_resuming_drops_exactly_the_later_lines(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(0, 60, 10):
            writer.scalars(step, {'train/loss': step / 8})
    before = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    MetricsWriter(tmp_path, resume_step=30).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == b''.join(before[:4])


@pytest.mark.parametrize('torn', [1, 9, 25])
def test_resuming_drops_a_line_cut_short(tmp_path, torn):
    whole = b'{"step": 10, "train/loss": 0.5}\n'
    (tmp_path / 'metrics.jsonl').write_bytes(whole + whole[:torn])
    with MetricsWriter(tmp_path, resume_step=10) as writer:
        writer.scalars(20, {'train/loss': 0.25})
    assert lines_in(tmp_path) == [
        {'step': 10, 'train/loss': 0.5},
        {'step': 20, 'train/loss': 0.25},
    ]


def test_a_line_that_lacks_only_its_end_of_line_is_kept(tmp_path):
    (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 10}')
    MetricsWriter(tmp_path, resume_step=10).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == b'{"step": 10}\n'


STRANGE = {
    'a list': b'[{"step": 5}]\n',
    'a null step': b'{"step": null, "train/loss": 0.5}\n',
    'no step': b'{"train/loss": 0.5}\n',
    'very deep': b'[' * 100_000 + b'\n',
    'binary': bytes(range(256)) + b'\n',
    'binary at the end': b'\x00\x01',
}


@pytest.mark.parametrize('name', STRANGE)
@pytest.mark.parametrize('resume_step', [None, 10])
def test_what_is_no_line_is_kept_aside(tmp_path, name, resume_step):
    whole = b'{"step": 10, "train/loss": 0.5}\n'
    (tmp_path / 'metrics.jsonl').write_bytes(whole + STRANGE[name])
    MetricsWriter(tmp_path, resume_step).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (whole if resume_step else b'')
    assert (tmp_path / 'metrics.jsonl.unreadable').read_bytes() == STRANGE[name]
    MetricsWriter(tmp_path, resume_step).close()
    assert (tmp_path / 'metrics.jsonl.unreadable').read_bytes() == STRANGE[name]


def test_scores_that_will_be_made_again_are_forgotten(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in 10, 20:
            writer.scalars(step, {'train/loss': 0.5})
            writer.scalars(step, {'test/nats_per_dim': 0.5})
    before = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    MetricsWriter(tmp_path, resume_step=20, redo_scores=True).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == b''.join(before[:3])


def test_a_resumed_record_equals_an_uninterrupted_one(tmp_path):
    def record(folder, steps, **kwargs):
        with MetricsWriter(folder, **kwargs) as writer:
            for step in steps:
                writer.scalars(step, {'train/loss': 1 / (step + 1)})

    record(tmp_path / 'whole', range(8))
    record(tmp_path / 'killed', range(6))
    record(tmp_path / 'killed', range(4, 8), resume_step=3)
    whole, killed = ((tmp_path / name / 'metrics.jsonl') for name in ('whole', 'killed'))
    assert whole.read_bytes() == killed.read_bytes()


def test_a_run_from_the_beginning_has_an_empty_record(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(0, {'test/nats_per_dim': 1.0})
    MetricsWriter(tmp_path).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == b''


@pytest.mark.parametrize(('resume_step', 'purge_step'), [(None, 0), (0, 1), (30, 31)])
def test_resuming_tells_tensorboard_what_to_forget_and_keeps_earlier_files(
    tmp_path, resume_step, purge_step
):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(40, {'train/loss': 0.5})
    MetricsWriter(tmp_path, resume_step).close()
    assert len(list((tmp_path / 'tensorboard').iterdir())) == 2
    events = events_in(tmp_path)
    assert scalars_in(events) == [(40, 'train/loss', 0.5)]
    restart = events[-1]
    assert restart.session_log.status == SessionLog.START
    assert restart.step == purge_step


def test_only_an_enabled_writer_writes(tmp_path):
    with MetricsWriter(tmp_path, enabled=False) as writer:
        writer.scalars(1, {'train/loss': 0.5})
        writer.image(1, 'samples', np.zeros((2, 2), np.uint8))
    assert not list(tmp_path.iterdir())


def test_closing_twice_is_fine(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.close()
    writer.close()


def test_a_full_disk_is_said_and_does_not_hang_the_run(tmp_path):
    run = subprocess.run(
        [sys.executable, '-c', RECORD_UNTIL_FULL, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == 'full\n'
