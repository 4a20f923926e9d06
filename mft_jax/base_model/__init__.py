"""The small base model that ships with the package, and the scripts that made it."""

import pathlib

CHECKPOINT = pathlib.Path(__file__).parent / "checkpoint"
