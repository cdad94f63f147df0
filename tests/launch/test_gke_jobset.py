"""The JobSet that is asked of kubectl."""

import re

import pytest
import yaml

SETTINGS = dict(
    NAME='digits', IMAGE='eu.gcr.io/me/tarflow:1', TPU='v6e', TOPOLOGY='4x8', BUCKET='b'
)
FLAGS = [
    '--config=configs/a.py',
    "--workdir=/data/it's a, b",
    '--config.sample.text=$HOME "x" \\n `y` {z}: #é',
]


@pytest.fixture
def gke(launch):
    launch.add('kubectl')
    launch.environment |= SETTINGS
    return launch


def jobset(gke, *flags, **settings):
    gke.run('gke_jobset.sh', *(flags or FLAGS), **settings)
    (record,) = gke.records()
    assert record['argv'] == ['kubectl', 'create', '-f', '-']
    return yaml.safe_load(record['stdin'])


def job(jobset):
    (job,) = jobset['spec']['replicatedJobs']
    return job['template']['spec']


def pod(jobset):
    return job(jobset)['template']['spec']


def test_every_pod_runs_the_command(gke):
    (container,) = pod(jobset(gke))['containers']
    assert container['command'] == ['python', '-m', 'tarflow_jax.main']
    assert container['args'] == [*FLAGS, '--distributed=on']
    assert container['image'] == 'eu.gcr.io/me/tarflow:1'


@pytest.mark.parametrize(
    ('tpu', 'topology', 'settings', 'accelerator', 'hosts', 'chips'),
    [
        ('v4', '2x2x2', {}, 'tpu-v4-podslice', 2, 4),
        ('v5e', '1x1', {}, 'tpu-v5-lite-podslice', 1, 1),
        ('v5e', '2x4', {'CHIPS_PER_HOST': '8'}, 'tpu-v5-lite-podslice', 1, 8),
        ('v5p', '4x4x8', {'NUM_SLICES': '3'}, 'tpu-v5p-slice', 32, 4),
        ('v6e', '16x16', {}, 'tpu-v6e-slice', 64, 4),
        ('tpu7x', '2x2x1', {}, 'tpu7x', 1, 4),
    ],
)
def test_hosts_of_a_slice(gke, tpu, topology, settings, accelerator, hosts, chips):
    made = jobset(gke, TPU=tpu, TOPOLOGY=topology, **settings)
    assert made['spec']['replicatedJobs'][0]['replicas'] == int(settings.get('NUM_SLICES', 1))
    assert job(made)['parallelism'] == job(made)['completions'] == hosts
    assert pod(made)['containers'][0]['resources'] == {'limits': {'google.com/tpu': chips}}
    assert pod(made)['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': accelerator,
        'cloud.google.com/gke-tpu-topology': topology,
    }
    assert made['metadata']['annotations'] == {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
    }


def test_all_start_again_unless_asked_wrongly(gke):
    made = jobset(gke, MAX_RESTARTS='7', GRACE='99', SPOT='1')
    assert made['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
    assert made['kind'] == 'JobSet'
    assert made['metadata']['name'] == 'digits'
    assert made['spec']['failurePolicy'] == {
        'maxRestarts': 7,
        'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
    }
    assert job(made)['backoffLimit'] == 0
    (rule,) = job(made)['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob'
    assert rule['onExitCodes'] == {'containerName': 'tarflow', 'operator': 'In', 'values': [2]}
    assert pod(made)['containers'][0]['name'] == 'tarflow'
    assert pod(made)['restartPolicy'] == 'Never'
    assert pod(made)['terminationGracePeriodSeconds'] == 99
    assert pod(made)['nodeSelector']['cloud.google.com/gke-spot'] == 'true'


@pytest.mark.parametrize(
    ('settings', 'annotations', 'volume'),
    [
        (
            {'SERVICE_ACCOUNT': 'me'},
            {'gke-gcsfuse/volumes': 'true'},
            {
                'csi': {
                    'driver': 'gcsfuse.csi.storage.gke.io',
                    'volumeAttributes': {
                        'bucketName': 'b',
                        'mountOptions': 'implicit-dirs,rename-dir-limit=200000,'
                        'metadata-cache:ttl-secs:0',
                    },
                }
            },
        ),
        (
            {'BUCKET': '', 'CLAIM': 'disk', 'MOUNT': '/my disk'},
            {},
            {'persistentVolumeClaim': {'claimName': 'disk'}},
        ),
    ],
)
def test_the_workdir_outlives_the_pods(gke, settings, annotations, volume):
    mount = settings.get('MOUNT', '/data')
    made = jobset(gke, f'--workdir={mount}/a', **settings)
    assert job(made)['template']['metadata'] == {'annotations': annotations}
    assert pod(made)['volumes'] == [{'name': 'workdirs', **volume}]
    (mounted,) = pod(made)['containers'][0]['volumeMounts']
    assert mounted == {'name': 'workdirs', 'mountPath': mount}
    assert pod(made)['serviceAccountName'] == settings.get('SERVICE_ACCOUNT', 'default')


def test_dry_run_prints_what_a_shell_would_ask(gke):
    for flags, mount in (FLAGS, '/data'), (['--workdir', '/data/a'], '/data/'):
        printed = gke.run('gke_jobset.sh', *flags, DRY_RUN='1', MOUNT=mount).out
        assert gke.records() == []
        gke.run('gke_jobset.sh', *flags, MOUNT=mount)
        (asked,) = gke.records()
        script = gke.checkout / 'launch/printed.sh'
        gke.add('printed.sh', text='#!/bin/bash\n' + printed, where=script.parent)
        gke.run('printed.sh')
        assert gke.records() == [asked]


def test_a_failure_of_kubectl_is_told(gke):
    gke.answer({'kubectl': [(1, 'AlreadyExists')]})
    assert 'AlreadyExists' in gke.run('gke_jobset.sh', *FLAGS, status=1).err


@pytest.mark.parametrize(
    ('settings', 'flags', 'words'),
    [
        ({'IMAGE': '', 'TPU': ''}, FLAGS, 'IMAGE and TPU must be set, for example: NAME=digits'),
        ({'BUCKET': ''}, FLAGS, 'BUCKET or CLAIM must be set'),
        ({'CLAIM': 'c'}, FLAGS, 'BUCKET and CLAIM are both set'),
        ({}, ['--config=x'], '--workdir must be given, below /data, where b is mounted'),
        ({}, ['--workdir=/home/a'], '--workdir must be given, below /data'),
        ({'MOUNT': '/a'}, FLAGS, '--workdir must be given, below /a,'),
        ({'MOUNT': '/'}, FLAGS, 'MOUNT must be a folder below /, such as /data'),
        ({'NAME': 'My_run'}, FLAGS, "got 'My_run'"),
        ({'TPU': 'v3'}, FLAGS, "TPU must be v4, v5e, v5p, v6e or tpu7x; got 'v3'"),
        ({'TOPOLOGY': '32'}, FLAGS, "TOPOLOGY of v6e must be of the form 4x8; got '32'"),
        ({'TOPOLOGY': '2x2x4'}, FLAGS, "TOPOLOGY of v6e must be of the form 4x8; got '2x2x4'"),
        ({'TPU': 'v5p'}, FLAGS, "TOPOLOGY of v5p must be of the form 2x2x4; got '4x8'"),
        ({'TOPOLOGY': '2x3'}, FLAGS, '2x3 has 6 chips, which 4 on a host do not divide'),
        ({'CHIPS_PER_HOST': '0'}, FLAGS, "CHIPS_PER_HOST .* at least 1; got '0'"),
        ({'NUM_SLICES': 'two'}, FLAGS, "NUM_SLICES .* got 'two'"),
        ({'GRACE': '1m'}, FLAGS, "GRACE .* got '1m'"),
        ({}, [*FLAGS, '--config.a=x\ty'], 'a line break or tab cannot be passed on'),
    ],
)
def test_what_it_refuses(gke, settings, flags, words):
    assert re.search(words, gke.refused('gke_jobset.sh', *flags, **settings))
