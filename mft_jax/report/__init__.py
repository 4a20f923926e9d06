"""Terminal output (progress, tables, the state of a run), and the HTML report. Text from outside is shown literally."""
