"""Models as folders to share: weights, config and a model card."""
