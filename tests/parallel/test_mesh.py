import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ('axes', 'sizes'),
    [
        (dict(), (8, 1, 1)),
        (dict(data=-1, fsdp=2, tensor=2), (2, 2, 2)),
        (dict(data=1, fsdp=-1), (1, 8, 1)),
        (dict(data=2, fsdp=1, tensor=4), (2, 1, 4)),
    ],
)
def test_the_axes_share_all_devices(axes, sizes):
    mesh = make_mesh(**axes)
    assert tuple(mesh.shape.items()) == tuple(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))


@pytest.mark.parametrize(
    ('axes', 'message'),
    [
        (dict(data=3), r'data=3, fsdp=1, tensor=1 does not multiply to the 8 device'),
        (dict(data=8, tensor=2), 'data=8, fsdp=1, tensor=2'),
        (dict(data=-1, fsdp=3), 'data=-1, fsdp=3'),
        (dict(data=-1, fsdp=-1), 'data=-1, fsdp=-1'),
        (dict(data=-1, fsdp=0), 'fsdp=0'),
        (dict(data=-2, fsdp=-4), 'fsdp=-4'),
        (dict(data=-1, fsdp=16), 'fsdp=16'),
    ],
)
def test_axes_that_do_not_multiply_to_the_devices_are_refused(axes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(**axes)
