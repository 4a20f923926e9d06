"""The HTML report of runs: one file that needs no network, with charts and an explorer of all debates.

`write_report` reads the runs (`sources`, `run_page`, `debates`), and puts their data, the scripts, the style and the
libraries of this folder into one file (`document`).
"""

from mft_jax.report.page.write import write_grid_report, write_own_report, write_report

__all__ = ["write_grid_report", "write_own_report", "write_report"]
