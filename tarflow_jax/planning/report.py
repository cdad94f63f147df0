"""A plan in words."""

from tarflow_jax.quantities import format_duration


def table(plan: dict) -> str:
    """One topology of a plan, a line for each thing worth knowing."""
    return '\n'.join(
        [_title(plan), *(f'  {name:20} {value}' for name, value in _rows(plan) if value)]
    )


def _title(plan: dict) -> str:
    mesh = ', '.join(f'{axis} {size}' for axis, size in plan['mesh'].items())
    model = ', '.join(f'{key} {value}' for key, value in plan['model'].items())
    return f'{plan["topology"]}: {plan["devices"]} devices ({mesh}), {model}'


def _rows(plan: dict):
    yield 'parameters', f'{plan["parameters"]:,}'
    yield (
        'batch',
        f'{plan["global_batch"]} images, {plan["batch_per_device"]:g} a device'
        + (f', {plan["microbatches"]} microbatches' if plan['microbatches'] > 1 else ''),
    )
    yield 'state', f'{_size(plan["state_bytes_per_device"])} a device'
    yield 'memory', _memory(plan, plan['hbm_bytes_per_device'])
    if 'largest_global_batch' in plan:
        yield 'largest batch', _largest(plan)
    yield 'model FLOPs', f'{plan["flops_per_step"]:.3e} a step'
    yield from _speed(plan)
    yield from _collectives(plan)
    yield 'whole training', _training(plan)
    if pace := plan['images_per_second_per_host']:
        yield 'data', f'{pace:,.0f} images/s for each of {plan["hosts"]} hosts'
    yield 'sampler', _sampler(plan['sampler'], plan['hbm_bytes_per_device'])
    yield 'compiled in', _compilation(plan)


def _compilation(plan: dict) -> str:
    train, sampler = plan['train_step_compile_seconds'], plan['sampler']['compile_seconds']
    return f'{plan["compile_seconds"]:.0f} s: train step {train:.0f} s, sampler {sampler:.0f} s'


def _memory(of: dict, hbm_bytes: float) -> str:
    verdict = 'fits' if of['fits'] else 'DOES NOT FIT'
    return f'{_size(of["peak_hbm_bytes_per_device"])} of {_size(hbm_bytes)} a device: {verdict}'


def _largest(plan: dict) -> str:
    if not plan['largest_global_batch']:
        return 'none that was tried fits'
    too_large = plan['smallest_global_batch_too_large']
    limit = f'; {too_large} do not fit' if too_large else '; more were not tried'
    per_device = f'{plan["largest_batch_per_device"]:g} images a device'
    return f'{per_device}, {plan["largest_global_batch"]} in all{limit}'


def _speed(plan: dict):
    if not plan['roofline_step_seconds']:
        return
    terms = plan['roofline_terms_seconds'].items()
    yield 'roofline', ', '.join(f'{name} {1e3 * value:.4g} ms' for name, value in terms if value)
    yield (
        'step',
        (
            f'{1e3 * plan["roofline_step_seconds"]:.4g} ms with ideal overlap, '
            f'{1e3 * plan["step_seconds_without_overlap"]:.4g} ms with none'
        ),
    )
    if plan['compiler_step_seconds'] and not plan['is_quick']:
        yield (
            'as compiled',
            (
                f'{plan["compiled_hbm_traffic_bytes_per_device"] / 1e9:.3g} GB through HBM instead '
                f'of {plan["least_hbm_traffic_bytes_per_device"] / 1e9:.3g} GB: at best '
                f'{1e3 * plan["step_seconds_with_compiled_traffic"]:.4g} ms, utilisation '
                f'{plan["mfu_with_compiled_traffic"]:.1%}'
            ),
        )
        yield (
            'compiler',
            (
                f'{1e3 * plan["compiler_step_seconds"]:.4g} ms by its own estimate of its fusions, '
                'kernels and collectives not included'
            ),
        )
    yield (
        'FLOPs utilisation',
        (
            f'{plan["roofline_mfu"]:.1%} of {plan["peak_flops_per_device"] / 1e12:.3g} TFLOP/s '
            f'({plan["roofline_mfu_causal"]:.1%} counting the causal half of attention)'
        ),
    )
    yield 'bound by', f'{plan["bound_by"]}. {plan["advice"]}'


def _collectives(plan: dict):
    for row in (plan['collectives'] or [])[:6]:
        slices = f' in {row["slices"]} slices' if row['slices'] > 1 else ''
        seconds = row['interconnect_seconds'] + row['dcn_seconds']
        yield (
            row['kind'],
            (
                f'{row["bytes"] / 1e9:.4g} GB in {row["count"]} over {", ".join(row["axes"])} '
                f'({row["devices"]} devices{slices}), {1e3 * seconds:.4g} ms'
            ),
        )


def _training(plan: dict) -> str:
    if not plan['days']:
        return ''
    return (
        f'{plan["total_steps"]:,} steps, {plan["days"]:.3g} days, {plan["chip_hours"]:,.0f} '
        'chip-hours at the roofline'
    )


def _sampler(sampler: dict, hbm_bytes: float) -> str:
    text = f'{sampler["batch_size"]} at a time, {_memory(sampler, hbm_bytes)}'
    if sampler['roofline_batch_seconds']:
        text += (
            f'; {sampler["roofline_batch_seconds"]:.3g} s a batch, '
            f'{format_duration(sampler["roofline_seconds_of_50000"])} for 50,000 '
            f'({sampler["bound_by"]})'
        )
    return text


def why_not(plan: dict) -> str:
    """What does not fit, and what would help."""
    hbm = plan['hbm_bytes_per_device']
    if plan['peak_hbm_bytes_per_device'] is None or plan['peak_hbm_bytes_per_device'] > hbm:
        helps = [
            'a larger mesh.fsdp',
            "model.remat='full'" if plan['model']['remat'] != 'full' else '',
            f'train.microbatches above {plan["microbatches"]}',
            'a smaller train.batch_size',
            'more devices',
        ]
        return (
            f'The train step does not fit on {plan["topology"]}: it takes '
            f'{_size(plan["peak_hbm_bytes_per_device"])} of {_size(hbm)} a device. Would help: '
            f'{", ".join(filter(None, helps))}.'
        )
    return (
        f'The sampler does not fit on {plan["topology"]}: it takes '
        f'{_size(plan["sampler"]["peak_hbm_bytes_per_device"])} of {_size(hbm)} a device. Would '
        'help: a smaller sample.batch_size, a larger mesh.tensor, more devices.'
    )


def _size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return 'more'
    for unit, size in ('GiB', 2**30), ('MiB', 2**20):
        if num_bytes >= size:
            return f'{num_bytes / size:.3g} {unit}'
    return f'{num_bytes / 2**10:.3g} KiB'
