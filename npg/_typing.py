"""Type aliases shared by the package."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""A NumPy array; shapes are stated in the docstrings."""

Inputs = Array | tuple[Array, ...]
"""What features return and models take, one row per observation: opaque except for row indexing."""

Rng = np.random.Generator
