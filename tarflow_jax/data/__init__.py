"""Data sets of images, and the batches that training and evaluation see."""
