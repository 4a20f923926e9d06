"""Shows the metrics of a run in other programs while it runs: TensorBoard, and Weights & Biases.

The run itself depends on metrics.jsonl and results.json only; what the other programs have can be lost without harm.
"""

from mft_jax.tracking.trackers import Tracker, Trackers
from mft_jax.tracking.which import check_packages, check_place, open_trackers

__all__ = ["Tracker", "Trackers", "check_packages", "check_place", "open_trackers"]
