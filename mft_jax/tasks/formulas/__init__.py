"""Whether two formulas are the same: math-verify, and a numerical test that spares it most of the work.

Used by the grading process only (grader_worker.py), which loads this package by its path: it imports nothing of mft_jax.
"""
