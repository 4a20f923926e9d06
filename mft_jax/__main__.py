"""The `mft` command and `python -m mft_jax`. Sets the signal handlers before it imports other modules."""

import io
import sys

from mft_jax.startup import exit_at_once, use_huge_pages


def main() -> None:
    """Runs the command. The exit code is 0 only on success."""
    exit_at_once()
    use_huge_pages()
    from mft_jax.cli import main as run_command

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # print "?" for characters that the terminal cannot show
    try:
        run_command()
    finally:
        if sys.stdout is not None:  # None if the shell closed it
            sys.stdout.flush()  # a signal during shutdown would drop buffered output


if __name__ == "__main__":
    main()
