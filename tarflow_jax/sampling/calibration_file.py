"""The calibration of a workdir's samples: made once, kept beside the checkpoints, found again."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from tarflow_jax.errors import InputError
from tarflow_jax.files import json_text, make_writable
from tarflow_jax.formats.npz import NpzArrays
from tarflow_jax.parallel import distributed
from tarflow_jax.parallel.fingerprints import digest
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.sampling.block_samples import GAIN_LAGS, LAGS
from tarflow_jax.sampling.calibrate import BlockReport, calibrate, may_pay
from tarflow_jax.sampling.guidance import GUIDANCE_KEYS
from tarflow_jax.sampling.parallel import Calibration

FILE = 'calibration.npz'
PICTURE = 'calibration.png'
MIN_BATCHES = 32  # of samples; a calibration takes as long as 7 to 31 on CPUs


def find_or_calibrate(workdir: Path, folders, model, params, mesh, sampling, before_block):
    """Returns a calibration from one of the folders, or makes one in `workdir` if that pays.

    A new calibration pays if the method is 'auto', many batches are drawn, these would take more
    than a minute, and windows may be faster on this device. Collective: every process must call it.

    Returns:
      A `Calibration`, or None to draw samples token by token.
    """
    fixed, batch_size = (model, params, mesh), batch_size_of(mesh, sampling)
    num_batches = math.ceil(sampling['num_samples'] / batch_size)
    many = sampling['method'] == 'auto' and num_batches >= MIN_BATCHES
    calibration = find_calibration(folders, *fixed, sampling, warns=not many)
    if calibration is not None or not many:
        return calibration
    settings = {key: sampling[key] for key in ('labels', 'prior_temperature', *GUIDANCE_KEYS)}
    batches = dict(batch_size=batch_size, num_batches=num_batches)
    if not may_pay(*fixed, **batches, before_block=before_block, **settings):
        return find_calibration(folders, *fixed, sampling)  # None, with a warning
    distributed.print_on_main('No calibration matches these samples on this device; creating one.')
    return calibrate_and_write(workdir, *fixed, sampling, before_block)


def calibrate_and_write(workdir: Path, model, params, mesh, sampling, before_block) -> Calibration:
    """Calibrates `sampling`, the arguments of `batches.sample_batches`, for a workdir's samples.

    Writes `calibration.npz` there, prints what was measured, and draws it if Matplotlib is there.
    """
    if distributed.is_main():
        make_writable(workdir)
    keys = ('labels', 'prior_temperature', 'tolerance', *GUIDANCE_KEYS)
    calibration, reports = calibrate(
        *(model, params, mesh),
        batch_size=batch_size_of(mesh, sampling),
        log=distributed.print_on_main,
        before_block=before_block,
        **{key: sampling[key] for key in keys},
    )
    identity = calibration_identity(model, params, mesh, sampling)  # collective
    if distributed.is_main():
        write(workdir / FILE, calibration, identity, reports)
        print(table(reports, model.token_flow().num_tokens))
        if find_spec('matplotlib'):
            from tarflow_jax.pictures import calibration as picture_of

            picture_of(reports, sampling['tolerance']).write(workdir / PICTURE)
            print(f'{workdir / PICTURE}: how each block converges.')
        else:
            print("For a picture of it: pip install 'tarflow_jax[pictures]'.")
    return calibration


def table(reports: list[BlockReport], num_tokens: int) -> str:
    """The report of each block on a line, the block next to the data first.

    `evaluations` are those of the network for each token, `time` is relative to the sequential
    solution, `image error` relative to the residual that a tolerance allows.
    """
    lines = ['block  window  sweeps  evaluations  time  image error  contraction    CRM    IGM']
    for block, report in enumerate(reports, start=1):
        window = report.window
        lines.append(
            f'{block:5}  {window:6}  {report.sweeps.get(window, num_tokens - 1):6}  '
            f'{report.evaluations.get(window, 1.0):11.2f}  '
            f'{report.times.get(window, 1.0):4.2f}  {report.amplification:11.1f}  '
            f'{report.contraction:11.2f}  {report.crm:5.1f}  {report.igm:5.1f}'
        )
    return '\n'.join(lines)


def write(path: Path, calibration: Calibration, identity: dict[str, Any], reports) -> None:
    """Writes a calibration with what it is of, see `calibration_identity`."""
    from tarflow_jax.imagefiles import write_npz  # a model is loaded without Pillow

    about = {'identity': identity, 'blocks': [dataclasses.asdict(report) for report in reports]}
    values = {**vars(calibration), 'windows': np.array(calibration.windows, np.int32)}
    write_npz(path, **jax.device_get(values), about=np.array(json_text(about)))


def find_calibration(
    folders: Iterable[Path], model, params, mesh, sampling, warns: bool = True
) -> Calibration | None:
    """Returns the calibration in one of the folders that fits this model, device and sampling.

    A calibration that does not fit is ignored, with a warning. Collective: every process must call
    this function.
    """
    if sampling['method'] == 'sequential':
        return None
    identity, reasons = calibration_identity(model, params, mesh, sampling), []
    for folder in dict.fromkeys(folders):
        calibration, reason = _read_matching(folder / FILE, identity)
        if distributed.all_true(calibration is not None):
            return calibration
        if reason:
            reasons.append(reason)
    if reasons and warns and distributed.is_main():
        flags = f'--config.sample.num_samples={identity["batch_size"]}'
        device = mesh.devices.flat[0]
        if mesh.size == 1 and device.platform == 'cpu':  # of which the program makes several
            flags += ' --config.mesh.data=1'
        logging.warning(
            'The calibration is not used: %s. Run --mode=calibrate with the same settings, and %s.',
            *(reasons[0], flags),
        )
    return None


def _read_matching(path: Path, identity: dict[str, Any]) -> tuple[Calibration | None, str]:
    """A calibration, or None and why: it is of something else or damaged; '' if there is none."""
    try:
        calibration, _, made_for = read(path)
        _check_shapes(calibration)
    except FileNotFoundError:
        return None, ''
    except InputError as damage:
        return None, str(damage).removesuffix('.')
    except Exception as misfit:  # of arrays that are anything
        return None, f'{path} is damaged ({misfit})'
    others = {'params_sha256': 'it was made for other parameters'}  # not by which hash
    differences = [
        others.get(key, f'{key} was {made_for.get(key)}, is {value}')
        for key, value in identity.items()
        if made_for.get(key) != value
    ]
    return (None, f'{"; ".join(differences)} ({path})') if differences else (calibration, '')


def read(path: Path) -> tuple[Calibration, list[BlockReport], dict[str, Any]]:
    """A calibration, what was measured of each block, and what it is of.

    For the last see `calibration_identity`.

    Raises:
      FileNotFoundError: there is no calibration.
      InputError: it is damaged.
    """
    try:
        with NpzArrays(path) as arrays:
            values = {name: arrays[name] for name in arrays.headers}
        about = json.loads(str(values.pop('about')))
        windows = tuple(int(window) for window in values.pop('windows'))
        values = {name: value.astype(np.float32) for name, value in values.items()}
        reports = [BlockReport(**block) for block in about['blocks']]
        for report in reports:  # JSON keys are strings
            for name in ('times', 'sweeps', 'evaluations'):
                by_window = getattr(report, name)
                setattr(report, name, {int(window): x for window, x in by_window.items()})
        return Calibration(windows, **values), reports, about['identity']
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f'there is no {path}') from error
    except Exception as error:  # of a file that is anything
        raise InputError(f'{path} is damaged ({error}).') from error


def _check_shapes(calibration: Calibration) -> None:
    """Raises ValueError for a calibration of another version, say, that sampling cannot use."""
    blocks, dim = calibration.offset.shape
    expected = dict(
        response=(blocks, len(LAGS) * dim, dim),
        gain=(blocks, GAIN_LAGS * dim, dim),
        amplification=(blocks,),
    )
    for name, shape in expected.items():
        if getattr(calibration, name).shape != shape:
            raise ValueError(f'{name} has another shape than {shape}')
    if len(calibration.windows) != blocks or min(calibration.windows) < 1:
        raise ValueError(f'windows are {calibration.windows}, for {blocks} blocks')


def batch_size_of(mesh, sampling) -> int:
    """How many samples are drawn at a time."""
    return padded_batch_size(sampling['batch_size'], sampling['num_samples'], mesh)


def calibration_identity(model, params, mesh, sampling) -> dict[str, Any]:
    """What a calibration is of: the model, its parameters, the device, and how it samples."""
    device = mesh.devices.flat[0]
    cores = os.cpu_count() if device.platform == 'cpu' else 0
    return {
        'device': f'{mesh.size} {device.device_kind}' + (f' of {cores} cores' if cores else ''),
        'dtype': model.dtype,
        'batch_size': batch_size_of(mesh, sampling),
        'params_sha256': digest(params),
        **{key: sampling[key] for key in ('tolerance', 'prior_temperature', *GUIDANCE_KEYS)},
    }
