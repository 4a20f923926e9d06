"""Shows the metrics of a run in other programs while it runs: TensorBoard, and Weights & Biases.

metrics.jsonl and results.json stay the truth. What is here follows them, and can be lost without harm to the run.
"""

from mft_jax.tracking.trackers import Tracker, Trackers
from mft_jax.tracking.which import check_packages, check_place, open_trackers

__all__ = ["Tracker", "Trackers", "check_packages", "check_place", "open_trackers"]
