"""A plan in words: what decides, what holds it down, and what would help."""

from tarflow_jax.quantities import format_duration

_RESOURCES = {
    'compute': 'products take',
    'hbm': 'HBM takes',
    'interconnect': 'the interconnect takes',
    'dcn': 'the network between slices takes',
}
_OTHER_LAYOUTS = {
    'tensor': 'a smaller mesh.tensor',
    'fsdp': 'a smaller mesh.fsdp, if the state fits',
    'data': 'train.microbatches=1, so that gradients are summed once a step',
}
MAX_MESSAGES = 6  # rows of a table


def table(plan: dict) -> str:
    """One topology of a plan, a line for each thing worth knowing."""
    mesh, model = (
        ', '.join(f'{key} {value}' for key, value in plan[section].items())
        for section in ('mesh', 'model')
    )
    title = f'{plan["topology"]}: {plan["devices"]} devices ({mesh}), {model}'
    return '\n'.join([title, *(f'  {name:18} {text}' for name, text in _rows(plan))])


def _rows(plan: dict):
    hbm_bytes, sampler = plan['hbm_bytes_per_device'], plan['sampler']
    state = _size(plan['state_bytes_per_device'])
    yield 'parameters', f'{plan["parameters"]:,}; with optimizer and average {state} a device'
    per_device = f'{plan["batch_per_device"]:g} a device'
    yield 'batch', f'{plan["global_batch"]} images, {per_device}, in {plan["microbatches"]} part(s)'
    yield 'memory', _memory(plan, hbm_bytes)
    if 'largest_global_batch' in plan:
        yield 'largest batch', _largest(plan)
    if plan['step_seconds']:
        yield from _speed(plan)
    for row in (plan['collectives'] or [])[:MAX_MESSAGES]:
        text = f'{row["bytes"] / 1e9:.4g} GB of {"+".join(row["types"])} in {row["count"]}'
        axes = f'over {", ".join(row["axes"])} ({row["devices"]} devices)'
        yield row['kind'], f'{text} {axes}, {_ms(row["seconds"])}'
    if plan['days']:
        cost = f'{plan["days"]:.3g} days, {plan["chip_hours"]:,.0f} chip-hours as compiled'
        yield 'whole training', f'{plan["total_steps"]:,} steps, {cost}'
    yield 'sampler', f'{sampler["batch_size"]} at a time, {_memory(sampler, hbm_bytes)}'
    if sampler['batch_seconds']:
        total = f'{format_duration(sampler["seconds_of_50000"])} for 50,000'
        yield '', f'{sampler["batch_seconds"]:.3g} s a batch as compiled, {total}'
    yield 'compiled in', f'{plan["compile_seconds"]:.0f} s'


def _memory(program: dict, hbm_bytes: float) -> str:
    verdict = 'fits' if program['fits'] else 'DOES NOT FIT'
    used = _size(program['peak_hbm_bytes_per_device'])
    return f'{used} of {_size(hbm_bytes)} a device: {verdict}'


def _largest(plan: dict) -> str:
    if not plan['largest_global_batch']:
        return 'none that was tried fits'
    too_large = plan['smallest_global_batch_too_large']
    limit = f'{too_large} do not fit' if too_large else 'more were not tried'
    per_device = f'{plan["largest_batch_per_device"]:g} images a device'
    return f'{per_device}, {plan["largest_global_batch"]} in all; {limit}'


def _speed(plan: dict):
    for name, prefix in ('step as compiled', ''), ('step at best', 'roofline_'):
        terms = plan[f'{prefix or "step_"}terms_seconds'].items()
        parts = ', '.join(f'{term} {_ms(value)}' for term, value in terms if value)
        yield name, f'{_ms(plan[f"{prefix}step_seconds"])}: {parts}'
    yield (
        'MFU',
        f'{plan["mfu"]:.1%} as compiled, {plan["roofline_mfu"]:.1%} at best, '
        f'of {plan["peak_flops_per_device"] / 1e12:.3g} TFLOP/s',
    )
    yield 'model FLOPs', f'{plan["flops_per_step"]:.3e} a step'
    traffic = f'{plan["compiled_hbm_traffic_bytes_per_device"] / 1e9:.3g} GB a step and device'
    yield 'HBM traffic', f'{traffic} as compiled{", quickly" if plan["is_quick"] else ""}'
    yield 'bound by', advice(plan)
    pace = plan['images_per_second_per_host']
    yield 'data', f'at most {pace:,.0f} images/s for each of {plan["hosts"]} hosts'


def advice(plan: dict) -> str:
    """The resource that takes most of a step as compiled, and what would help."""
    model, bound, helps = plan['model'], plan['bound_by'], []
    if bound == 'compute' and model['remat'] == 'full':
        helps = ["model.remat='dots' or 'none', if it fits"]
    elif bound == 'hbm' and model['attention'] == 'xla' and model['dtype'] == 'bfloat16':
        helps = ["model.attention='splash' (TPUs)"]
    elif bound in ('interconnect', 'dcn'):
        longest = next(row for row in plan['collectives'] if row['network'] == bound)
        helps = ['more images a device', *(_OTHER_LAYOUTS[axis] for axis in longest['axes'])]
    share = plan['step_terms_seconds'][bound] / plan['step_seconds']
    text = f'{_RESOURCES[bound]} {share:.0%} of the step as compiled'
    return f'{text}. Would help: {"; ".join(helps)}.' if helps else f'{text}.'


def misfit(plan: dict) -> str:
    """What does not fit, and what would help."""
    hbm_bytes, peak = plan['hbm_bytes_per_device'], plan['peak_hbm_bytes_per_device']
    if peak is None or peak > hbm_bytes:
        program = 'train step'
        full = "model.remat='full', " if plan['model']['remat'] != 'full' else ''
        parts = f'train.microbatches above {plan["microbatches"]}'
        helps = f'a larger mesh.fsdp, {full}{parts}, a smaller train.batch_size'
    else:
        program, peak = 'sampler', plan['sampler']['peak_hbm_bytes_per_device']
        helps = 'a smaller sample.batch_size, a larger mesh.tensor'
    return (
        f'The {program} does not fit on {plan["topology"]}: it takes {_size(peak)} of '
        f'{_size(hbm_bytes)} a device. Would help: {helps}, more devices.'
    )


def _ms(seconds: float) -> str:
    return f'{1e3 * seconds:.4g} ms'


def _size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return 'more'
    unit, size = ('GiB', 2**30) if num_bytes >= 2**30 else ('MiB', 2**20)
    return f'{num_bytes / size:.3g} {unit}'
