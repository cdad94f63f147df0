"""The job under Slurm: how it is submitted, and when it is queued again."""

import re
import shutil
import signal
import time

import pytest

FLAGS = ['--config=configs/a.py', "--workdir=/mnt/it's a, b", '--config.sample.text=$HOME "x"']
SETTINGS = dict(NODES='2', GPUS_PER_NODE='8')

# Runs until it is told that its processes have left.
SRUN = """#!/bin/bash
echo up
while ! [[ -f $STAND_INS/left ]]; do sleep 0.05; done
exit 143
"""


@pytest.fixture
def slurm(launch):
    launch.add('sbatch', 'srun', 'scontrol')
    launch.environment |= SETTINGS
    return launch


@pytest.fixture
def job(slurm):
    """As Slurm runs the script: a copy alone in a folder of the node."""
    spool = slurm.folder / 'spool'
    spool.mkdir()
    shutil.move(slurm.checkout / 'launch/slurm_gpu.sh', spool / 'slurm_script')
    slurm.checkout = slurm.folder
    slurm.environment['SLURM_JOB_ID'] = '123'
    return slurm


def run_job(job, **how):
    return job.run('../spool/slurm_script', *FLAGS, **how)


@pytest.fixture(autouse=True)
def _folder(launch):
    (launch.folder / 'launch').mkdir()


@pytest.mark.parametrize('options', [[], ['--partition=gpu', '--comment=a b'], ['-p', 'gpu']])
def test_submits_itself(slurm, options):
    arguments = [*options, '--', *FLAGS] if options else FLAGS
    dry = slurm.run('slurm_gpu.sh', *arguments, DRY_RUN='1')
    assert slurm.recorded() == []
    slurm.run('slurm_gpu.sh', *arguments)
    (command,) = slurm.recorded()
    assert dry.commands == [command]
    assert command == [
        *('sbatch', '--nodes=2', '--gpus-per-node=8', '--ntasks-per-node=8'),
        *options,
        str(slurm.checkout / 'launch/slurm_gpu.sh'),
        *FLAGS,
    ]


def test_a_failure_of_sbatch_is_told(slurm):
    slurm.answer({'sbatch': [(1, 'no such partition')]})
    assert 'no such partition' in slurm.run('slurm_gpu.sh', *FLAGS, status=1).err


def test_directives(slurm):
    """sbatch reads them up to the first command."""
    head = (slurm.checkout / 'launch/slurm_gpu.sh').read_text().partition('\nset -e')[0]
    assert set(re.findall('^#SBATCH (.*)$', head, re.MULTILINE)) == {
        *('--job-name=tarflow_jax', '--requeue', '--open-mode=append', '--signal=TERM@120')
    }


@pytest.mark.parametrize('status', [0, 1, 2, 130, 134, 137, 143])
def test_queued_again_when_it_was_stopped_and_only_then(job, status):
    job.answer({'srun': [(status, '')]})
    run_job(job, status=status)
    srun, *after = job.recorded()
    assert after == ([['scontrol', 'requeue', '123']] if status == 143 else [])
    command = srun.index('python')
    assert srun[command:] == ['python', '-m', 'tarflow_jax.main', *FLAGS, '--distributed=on']
    assert srun[:command] == [*('srun', '--kill-on-bad-exit=0', '--wait=120', '--gpu-bind=none')]


def test_cpus_of_a_process_are_passed_on(job):
    run_job(job, SLURM_CPUS_PER_TASK='12')
    assert '--cpus-per-task=12' in job.recorded()[0]


def test_slurm_decides_about_a_job_that_it_ends(job):
    job.add('srun', text=SRUN)
    process = job.start('../spool/slurm_script', *FLAGS)
    assert process.stdout.readline() == 'up\n'
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None  # it waits: the processes are saving
    (job.folder / 'left').touch()
    assert job.finish(process).status == 143
    assert job.recorded() == []


@pytest.mark.parametrize(
    ('arguments', 'settings', 'words'),
    [
        (FLAGS, {'NODES': ''}, 'NODES must be set, for example: NODES=2 GPUS_PER_NODE=8'),
        (FLAGS, {'GPUS_PER_NODE': '0'}, "GPUS_PER_NODE .* at least 1; got '0'"),
        (['--partition=gpu', '--'], {}, 'no flags of the run after --'),
    ],
)
def test_what_it_refuses(slurm, arguments, settings, words):
    assert re.search(words, slurm.refused('slurm_gpu.sh', *arguments, **settings))
