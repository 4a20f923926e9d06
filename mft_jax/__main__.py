"""python -m mft_jax is the `mft` command."""

from mft_jax.cli import main

if __name__ == "__main__":
    main()
