"""Flows of every kind, so small that they compile in a moment."""

from tarflow_jax.flow import TarFlow

TINY = dict(width=8, head_dim=4, layers_per_block=2)
FLOWS = {
    'conditional': TarFlow((4, 4, 2), 2, num_blocks=3, num_classes=3, **TINY),
    'one_block': TarFlow((4, 4, 1), 2, num_blocks=1, num_classes=2, **TINY),
    'pixels': TarFlow((3, 5, 1), 1, num_blocks=4, **TINY),
    'one_token': TarFlow((2, 2, 3), 2, num_blocks=2, num_classes=2, **TINY),
    'unrolled': TarFlow((2, 6, 1), 2, num_blocks=2, num_classes=3, unroll='all', **TINY),
    'volume_preserving': TarFlow((4, 12, 1), 4, num_blocks=2, volume_preserving=True, **TINY),
    'conditional_volume_preserving': TarFlow(
        (6, 4, 1), 2, num_blocks=3, num_classes=4, volume_preserving=True, **TINY
    ),
}
