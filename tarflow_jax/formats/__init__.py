"""Reads and writes file formats of other programs without those programs."""
