"""The compiled functions over the mesh: prefill, decode, score and train.

Each is a `Program`: a run calls it with arrays, a plan compiles the same function from shapes alone (`abstract`).
"""

from mft_jax.programs.programs import Programs

__all__ = ["Programs"]
