"""The `mft` command, and `python -m mft_jax`: signals first, then everything that takes time to import."""

import io
import sys

from mft_jax import signals


def main() -> None:
    """Entry point: exit code 0 only on success."""
    signals.exit_at_once()
    from mft_jax.cli import main as run_command

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding still shows all that it can
    try:
        run_command()
    finally:
        if sys.stdout is not None:  # it was closed by the shell
            sys.stdout.flush()  # a signal during the shutdown that follows would drop what is still buffered


if __name__ == "__main__":
    main()
