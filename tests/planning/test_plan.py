"""`--mode=plan` through the command line: real compilations for hardware that is not here."""

import json
import math
import re

import jax
import jax.experimental.topologies
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.planning import report, topologies

V5E_HBM = 15.75 * 2**30
V5E_FLOPS = 197e12  # bfloat16
NO_LIBTPU = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec


def find_others(name, *arguments, **options):
    return None if name == 'libtpu' else find_spec(name, *arguments, **options)


PathFinder.find_spec = find_others
"""


@pytest.fixture(scope='module')
def planned(runs, tmp_path_factory):
    """What a plan for two topologies printed, and its objects."""
    workdir = tmp_path_factory.mktemp('plan') / 'not' / 'there'
    flags = ['--topology=v5e:2x2,cpu', '--config.sample.guidance=1', '--config.sample.denoise=true']
    result = runs.run(workdir, '--mode=plan', *flags, '--nosearch_batch')
    assert result.err == ''
    assert [path.name for path in workdir.iterdir()] == ['plan.json']
    return result.out, json.loads((workdir / 'plan.json').read_text())


def test_every_topology_has_its_numbers(planned):
    out, plans = planned
    assert [plan['topology'] for plan in plans] == ['v5e:2x2', 'cpu']
    assert [plan['devices'] for plan in plans] == [4, 1]
    for plan in plans:
        assert plan['global_batch'] == 64
        assert plan['fits'] is True
        assert plan['batch_per_device'] == 64 / plan['devices']
        assert plan['flops_per_step'] > 0
        assert 0 < plan['state_bytes_per_device'] < plan['peak_hbm_bytes_per_device']
        assert plan['peak_hbm_bytes_per_device'] < plan['hbm_bytes_per_device']
        assert plan['roofline_step_seconds'] == max(plan['roofline_terms_seconds'].values()) > 0
        assert plan['step_seconds'] == sum(plan['step_terms_seconds'].values())
        assert plan['step_seconds'] > plan['roofline_step_seconds']
        # Written out, the first block is seen to need no gradient of its input.
        assert 0 < plan['mfu'] < plan['roofline_mfu'] < 1.05
        assert plan['bound_by'] in plan['step_terms_seconds']
        # All loops count: every product but the gradients by the one-hot labels is executed.
        executed = plan['executed_flops_per_device'] * plan['devices']
        assert executed == pytest.approx(plan['flops_per_step'], rel=2e-2)
        sampler = plan['sampler']
        assert sampler['batch_size'] == 16
        assert sampler['fits'] is True
        assert sampler['bound_by'] in plan['step_terms_seconds']
        assert sampler['seconds_of_50000'] > 1000 * sampler['batch_seconds'] > 0
        assert plan['compile_seconds'] > sampler['compile_seconds'] > 0
        assert f'{plan["topology"]}: {plan["devices"]} device' in out


def test_a_plan_for_tpus(planned):
    plan = planned[1][0]
    assert plan['mesh'] == {'data': 4, 'fsdp': 1, 'tensor': 1}
    assert plan['hbm_bytes_per_device'] == V5E_HBM
    assert plan['peak_flops_per_device'] == pytest.approx(V5E_FLOPS / 6)  # it computes in float32
    sums = [row for row in plan['collectives'] if row['kind'] == 'all-reduce']
    assert {tuple(row['axes']) for row in sums} == {('data',)}
    assert all(row['seconds'] > 0 for row in sums)
    assert plan['collectives'][0]['types'] == ['f32']
    assert sum(row['bytes'] for row in sums) >= 4 * plan['parameters']  # of the gradients


def test_a_plan_for_this_machine_is_measured(planned):
    plan = planned[1][1]
    assert plan['collectives'] == []
    assert plan['peak_flops_per_device'] != pytest.approx(V5E_FLOPS / 6)


def test_the_whole_training(runs, tmp_path):
    flags = ['--config.data.num_images=1000', '--config.train.num_epochs=128']
    result = runs.run(tmp_path, '--mode=plan', '--topology=cpu', *flags)
    assert re.search(r'largest batch +\d+ images fit; more were not tried\n', result.out)
    (plan,) = json.loads((tmp_path / 'plan.json').read_text())
    assert plan['total_steps'] == 2000
    assert plan['days'] == pytest.approx(2000 * plan['step_seconds'] / 86_400)
    assert plan['chip_hours'] == pytest.approx(24 * plan['days'])
    assert plan['hosts'] == 1
    pace = plan['global_batch'] / plan['roofline_step_seconds']
    assert plan['images_per_second_per_host'] == pytest.approx(pace)


def test_what_does_not_fit_is_planned_and_told(runs, tmp_path):
    flags = ['--topology=v5e:2x2', '--config.train.batch_size=1048576', '--nosearch_batch']
    flags += ['--config.model.width=256']
    result = runs.run(tmp_path, '--mode=plan', *flags, status=1)
    assert 'DOES NOT FIT' in result.out
    assert result.err.startswith('error: The train step does not fit on v5e:2x2: it takes ')
    assert 'What would help: a larger mesh.fsdp' in result.err
    (plan,) = json.loads((tmp_path / 'plan.json').read_text())
    assert plan['fits'] is False
    assert plan['peak_hbm_bytes_per_device'] > V5E_HBM
    assert plan['step_seconds'] is plan['mfu'] is None
    assert plan['sampler']['fits'] is True


def test_one_device_is_not_told_to_share(planned):
    plan = {**planned[1][1], 'fits': False, 'peak_hbm_bytes_per_device': 2**50}
    advice = report.misfit(plan).partition('What would help: ')[2]
    assert advice.startswith("model.remat='full', train.microbatches above ")
    assert advice.endswith(', a smaller train.batch_size.')


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('v9:2x2', "there is no topology 'v9:2x2'. A name is a TPU, one of v4, v5e, v5p"),
        ('v5e-16', "there is no topology 'v5e-16'"),
        ('v5e:4', "'v5e:4' is not a topology of v5e, whose chips form a torus of 2 dimensions"),
        ('v5e:3x5', 'there is no topology v5e:3x5: Topology layout'),
        ('cpu,v5e', "there is no topology 'v5e'"),
        (',', '--topology is empty'),
    ],
)
def test_unknown_hardware_is_refused(runs, tmp_path, name, reason):
    line = runs.refused(tmp_path / 'new', '--mode=plan', f'--topology={name}')
    assert reason in line
    assert 'v5e:4x4' in line  # what there is


def test_gpus_need_their_compiler(monkeypatch):
    """JAX says so if no plugin for NVIDIA's GPUs is installed, as on most machines of the tests."""

    def no_plugin(platform, **options):
        assert platform == 'cuda'
        assert 'cuda_compute_capability { major: 8 minor: 9 }' in options['target_config']
        raise NotImplementedError('topology not implemented for cuda')

    monkeypatch.setattr(jax.experimental.topologies, 'get_topology_desc', no_plugin)
    with pytest.raises(InputError, match=r"planning for rtx4090 .* pip install -e '\.\[cuda\]'"):
        topologies.make_topology('rtx4090')


def test_only_the_data_axis_crosses_the_network_between_slices():
    devices = topologies.make_topology('2xv5e:2x2').devices
    mesh = make_mesh(data=2, fsdp=-1, devices=devices)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(InputError, match=r'mesh\.data=1 cannot be split over 2 slices: only the'):
        make_mesh(data=1, fsdp=-1, devices=devices)


@pytest.mark.parametrize('shape', [(1, 1), (1, 2), (2, 2)])
def test_a_slice_smaller_than_a_host(shape):
    topology = topologies.make_topology('v5e:' + 'x'.join(map(str, shape)))
    assert (topology.num_chips, topology.num_hosts) == (math.prod(shape), 1)


def test_a_batch_that_the_devices_cannot_share_is_refused(runs, tmp_path):
    flags = ['--topology=v5e:2x2', '--config.train.batch_size=66', '--nosearch_batch']
    line = runs.refused(tmp_path, '--mode=plan', *flags)
    assert 'train.batch_size 66 cannot be divided evenly among the 4 devices of' in line
    assert 'choose a multiple of 4.' in line


def test_a_missing_compiler_is_told(runs, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(NO_LIBTPU)
    flags = [f'--config={runs.config}', f'--workdir={tmp_path}/run', '--mode=plan']
    process = runs.start_python(*flags, '--topology=v5e:2x2', PYTHONPATH=str(tmp_path))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, '')
    assert err.startswith('error: planning for v5e:2x2 requires libtpu, the TPU compiler,')
    assert "pip install -e '.[tpu]'" in err
