"""Type aliases and protocols shared by the package."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""A NumPy array; shapes are stated in the docstrings."""

Inputs = Array | tuple[Array, ...]
"""What features return and models take, one row per observation: opaque except for row indexing."""

Rng = np.random.Generator


@runtime_checkable
class BoxSpace(Protocol):
    """What is read of a space of real vectors, such as ``gymnasium.spaces.Box``."""

    low: Any
    high: Any
    shape: Any


@runtime_checkable
class DiscreteSpace(Protocol):
    """What is read of a space of the integers start, …, start + n − 1, such as ``gymnasium.spaces.Discrete``."""

    n: Any
    start: Any
