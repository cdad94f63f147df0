"""Models as folders that people hand on: weights, config and a card."""
