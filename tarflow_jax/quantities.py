"""Quantities in human-readable form."""


def format_duration(seconds: float) -> str:
    """A time in its two largest units: 45s, 1m 20s, 3h 05m, 2d 04h. Less than nothing is 0s."""
    seconds = max(0, round(seconds))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f'{days}d {hours % 24:02d}h'
    if hours:
        return f'{hours}h {minutes % 60:02d}m'
    if minutes:
        return f'{minutes}m {seconds % 60:02d}s'
    return f'{seconds}s'


def format_count(number: int, noun: str) -> str:
    """A number of things: '1 file', '1,234 files'."""
    return f'{number:,} {noun}' if number == 1 else f'{number:,} {noun}s'


def format_bytes(num_bytes: float) -> str:
    """A human-readable size: '512 bytes', '12.3 MB', '1.2 TB'."""
    if num_bytes < 1000:
        return f'{num_bytes:.0f} bytes'
    for unit in ('kB', 'MB', 'GB'):
        num_bytes /= 1000
        if num_bytes < 999.95:
            return f'{num_bytes:.1f} {unit}'
    return f'{num_bytes / 1000:.1f} TB'


def shorten(number: float) -> str:
    """A number in three digits: 986, 12.3k, 463M."""
    for unit in ('', 'k', 'M', 'G', 'T'):
        if number < 999.5 or unit == 'T':
            break
        number /= 1000
    return f'{number:.3g}{unit}'
