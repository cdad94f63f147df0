import pytest

from tarflow_jax.quantities import format_bytes, format_duration


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (-3, '0s'),
        (0.4, '0s'),
        (45, '45s'),
        (59.6, '1m 00s'),
        (80, '1m 20s'),
        (3599.7, '1h 00m'),
        (3 * 3600 + 5 * 60 + 59, '3h 05m'),
        (86_399, '23h 59m'),
        (2 * 86_400 + 4 * 3600, '2d 04h'),
    ],
)
def test_durations_read_aloud(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ('num_bytes', 'text'),
    [(0, '0 bytes'), (999, '999 bytes'), (1234, '1.2 kB'), (999_990, '1.0 MB'), (3e12, '3.0 TB'),
     (5.5e9, '5.5 GB'), (2e16, '20000.0 TB')],
)  # fmt: skip
def test_sizes_for_people(num_bytes, text):
    assert format_bytes(num_bytes) == text
