"""The text of --help: what the program is, its modes, examples, and where the keys are listed."""

import textwrap

from tarflow_jax import configfile
from tarflow_jax.commands import command

MODES = {
    'train': 'train on a data set; the same command resumes (the default)',
    'sample': 'draw images into samples/',
    'evaluate': 'bits per dimension, classification, FID, into evaluation.json',
    'calibrate': 'measure how samples are drawn fastest on this machine',
    'prepare_fid': 'statistics of the training images, which FID needs',
    'convert': 'a published checkpoint into a workdir, or back',
    'plan': 'memory and time on other hardware (--topology=h100)',
    'report': 'all that is known about a workdir, on one page',
    'info': 'describe a workdir or an experiment; changes nothing',
}


def help_text() -> str:
    """The text of --help, of at most 80 columns."""
    modes = [f'  {mode:12} {words}' for mode, words in MODES.items()]
    examples = [
        command('--config=digits', '--workdir=runs/digits'),
        command('--workdir=runs/digits', '--mode=sample'),
        command('--config=afhq256:one_gpu', '--mode=info'),
    ]
    return '\n'.join(
        [
            'TarFlow in JAX: train, sample and score images with a normalizing flow.',
            '',
            f'  {command()} --config=EXPERIMENT --workdir=FOLDER [--mode=MODE]',
            '      [--checkpoint=PATH] [--config.section.key=value ...]',
            '',
            'Modes:',
            *modes,
            '',
            'Examples:',
            *(f'  {line}' for line in examples),
            '',
            'EXPERIMENT is a name or a Python file. A trained workdir needs no --config.',
            textwrap.fill(f'Names: {" ".join(configfile.names())}', 80, subsequent_indent=7 * ' '),
            configfile.every_key(),
            'Data: python -m tarflow_jax.data.prepare --help',
            f'Several hosts, and all flags: {command("--helpfull")}',
        ]
    )
