"""The small base model that is included in the package, and the scripts that trained it."""

import pathlib

CHECKPOINT = pathlib.Path(__file__).parent / "checkpoint"
