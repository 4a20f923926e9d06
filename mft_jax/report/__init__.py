"""What a person sees: progress, tables, the state of a run. Foreign text is shown literally (`text.py`)."""
