"""Folders of images as data sets: `prepare` writes one, in steps that survive a kill."""
