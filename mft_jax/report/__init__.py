"""Terminal output: progress, tables and the state of a run. Text from outside is shown literally (`text.py`)."""
