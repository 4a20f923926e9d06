"""The arrays of programs' arguments: the host makes numpy's, compiled functions see JAX's."""

import numpy as np
from jaxtyping import Array

AnyArray = Array | np.ndarray
