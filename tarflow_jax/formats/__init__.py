"""Files that others write, read without their programs."""
