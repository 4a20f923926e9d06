"""Measures how fast sampling, finetuning, scoring, debates and grading are on the present devices (`mft bench`)."""

from mft_jax.bench.bench import run_bench
from mft_jax.bench.measurement import Limits, Measurement, Report

__all__ = ["Limits", "Measurement", "Report", "run_bench"]
