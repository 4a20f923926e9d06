"""Decides whether two formulas are equal: math-verify, with faster replacements for its slowest steps.

Only the grading process uses this package. It loads it by its path (see grader_worker.py), so nothing here imports
`mft_jax`.
"""
