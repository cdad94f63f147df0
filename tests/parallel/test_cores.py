"""How many devices a CPU becomes."""

import pytest

from tarflow_jax.parallel.cores import count_devices


@pytest.mark.parametrize(
    ('sizes', 'num_rows', 'num_cores', 'expected'),
    [
        ((-1, 1, 1), 64, 2, 2),
        ((-1, 1, 1), 64, 6, 4),  # which share 64 rows
        ((-1, 1, 1), 1, 2, 1),
        ((-1, 1, 1), 7, 4, 1),
        ((1, 1, 1), 64, 4, 1),
        ((2, 1, 1), 64, 4, 2),
        ((8, 1, 1), 64, 4, 1),  # an error of the mesh, which tells the number of devices
        ((-1, 2, 1), 64, 5, 4),
        ((2, -1, 1), 64, 5, 4),
        ((0, 1, 1), 64, 4, 1),
    ],
)
def test_as_many_as_fill_the_mesh_and_share_the_rows(sizes, num_rows, num_cores, expected):
    assert count_devices(sizes, num_rows, num_cores) == expected
