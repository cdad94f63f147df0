"""A plan in words, and what would help one that does not fit."""

from tarflow_jax.quantities import format_count, format_duration

MAX_MESSAGES = 6  # rows of a table


def table(plan: dict) -> str:
    """One topology of a plan, a line for each quantity."""
    settings = ', '.join(f'{k} {v}' for k, v in (plan['mesh'] | plan['model']).items())
    rows = [f'  {name:18} {text}' for name, text in _rows(plan)]
    return '\n'.join(
        [f'{plan["topology"]}: {format_count(plan["devices"], "device")}, {settings}', *rows]
    )


def _rows(plan: dict):
    sampler, per_device = plan['sampler'], f'{plan["batch_per_device"]:g} per device'
    state = f'state {_size(plan["state_bytes_per_device"])} per device'
    yield 'parameters', f'{plan["parameters"]:,}, {state}'
    yield 'batch', f'{plan["global_batch"]} images, {per_device}, in {plan["microbatches"]} part(s)'
    yield 'memory', _memory(plan, plan)
    if 'largest_global_batch' in plan:
        yield 'largest batch', _largest(plan)
    if plan['step_seconds']:
        yield from _speed(plan)
    if plan['days']:
        hours = f'{plan["chip_hours"]:{",.0f" if plan["chip_hours"] >= 10 else ".2g"}}'
        cost = f'{plan["days"]:.3g} days, {hours} chip-hours as compiled'
        yield 'whole training', f'{plan["total_steps"]:,} steps, {cost}'
    yield 'sampler', f'{sampler["batch_size"]} at a time, {_memory(sampler, plan)}'
    if sampler['batch_seconds']:
        total = f'{format_duration(sampler["seconds_of_50000"])} for 50,000'
        yield '', f'{sampler["batch_seconds"]:.3g} s per batch as compiled, {total}'
    yield 'compiled in', f'{plan["compile_seconds"]:.0f} s'


def _memory(program: dict, plan: dict) -> str:
    verdict = 'fits' if program['fits'] else 'DOES NOT FIT'
    used, limit = program['peak_hbm_bytes_per_device'], plan['hbm_bytes_per_device']
    return f'{_size(used)} of {_size(limit)} per device: {verdict}'


def _largest(plan: dict) -> str:
    too_large = plan['smallest_global_batch_too_large']
    limit = f'{too_large} do not fit' if too_large else 'more were not tried'
    return f'{plan["largest_global_batch"]} images fit; {limit}'


def _speed(plan: dict):
    for name, whole, terms in (
        ('step as compiled', 'step_seconds', 'step_terms_seconds'),
        ('step at best', 'roofline_step_seconds', 'roofline_terms_seconds'),
    ):
        parts = ', '.join(f'{resource} {_ms(value)}' for resource, value in plan[terms].items())
        yield name, f'{_ms(plan[whole])}: {parts}'
    peak = f'{plan["peak_flops_per_device"] / 1e12:.3g} TFLOP/s'
    yield 'MFU', f'{plan["mfu"]:.1%} as compiled, {plan["roofline_mfu"]:.1%} at best, of {peak}'
    yield 'model FLOPs', f'{plan["flops_per_step"]:.3e} per step'
    traffic = f'{plan["compiled_hbm_traffic_bytes_per_device"] / 1e9:.3g} GB per step and device'
    yield 'HBM traffic', traffic + (', with --quick' if plan['is_quick'] else ', as compiled')
    share = plan['step_terms_seconds'][plan['bound_by']] / plan['step_seconds']
    yield 'bound by', f'{plan["bound_by"]}, {share:.0%} of the step as compiled'
    pace = plan['images_per_second_per_host']
    yield 'data', f'at most {pace:,.0f} images/s for each of {format_count(plan["hosts"], "host")}'
    for row in plan['collectives'][:MAX_MESSAGES]:
        text = f'{row["bytes"] / 1e9:.4g} GB of {"+".join(row["types"])} in {row["count"]}'
        axes = f'over {", ".join(row["axes"])} ({row["devices"]} devices)'
        yield row['kind'], f'{text} {axes}, {_ms(row["seconds"])}'


def misfit(plan: dict) -> str:
    """What does not fit, and what would help."""
    limit, peak = plan['hbm_bytes_per_device'], plan['peak_hbm_bytes_per_device']
    if peak is None or peak > limit:
        program = 'train step'
        full = "model.remat='full', " if plan['model']['remat'] != 'full' else ''
        parts = f'train.microbatches above {plan["microbatches"]}'
        split, helps = 'a larger mesh.fsdp', f'{full}{parts}, a smaller train.batch_size'
    else:
        program, peak = 'sampler', plan['sampler']['peak_hbm_bytes_per_device']
        split, helps = 'a larger mesh.tensor', 'a smaller sample.batch_size'
    if plan['devices'] > 1:
        helps = f'{split}, {helps}, more devices'
    return (
        f'The {program} does not fit on {plan["topology"]}: it takes {_size(peak)} of '
        f'{_size(limit)} per device. What would help: {helps}.'
    )


def _ms(seconds: float) -> str:
    return f'{1e3 * seconds:.4g} ms'


def _size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return 'more'
    unit, size = ('GiB', 2**30) if num_bytes >= 2**30 else ('MiB', 2**20)
    return f'{num_bytes / size:.3g} {unit}'
