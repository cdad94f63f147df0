"""The likelihood of images under a model, and classification by likelihood."""
