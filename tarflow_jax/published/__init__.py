"""Checkpoints of the published PyTorch code: read by their names, converted, written back."""
