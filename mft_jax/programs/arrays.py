"""The array type of program arguments: the host passes numpy arrays, the compiled functions receive JAX arrays."""

import numpy as np
from jaxtyping import Array

AnyArray = Array | np.ndarray
