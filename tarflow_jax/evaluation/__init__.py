"""Exact scores: likelihood, and classification by likelihood."""
