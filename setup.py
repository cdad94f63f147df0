"""What setup.cfg cannot say: the experiments of `configs/` ship inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['tarflow_jax', 'tarflow_jax.*']), 'tarflow_jax.configs'],
    package_dir={'tarflow_jax.configs': 'configs'},
)
