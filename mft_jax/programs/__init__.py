"""The compiled functions that run on the mesh: prefill, decode, score and train.

Each is a `Program`. A run calls it with arrays. The same function can be compiled from shapes, without arrays (`abstract`).
"""

from mft_jax.programs.programs import Programs

__all__ = ["Programs"]
