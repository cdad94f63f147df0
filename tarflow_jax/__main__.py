"""`python -m tarflow_jax`, which is the command `tarflow`."""

from tarflow_jax.main import main

if __name__ == '__main__':
    main()
