"""From an experiment to a trained model, in a workdir."""
