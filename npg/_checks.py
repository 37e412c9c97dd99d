"""Checks of arguments at the public boundary."""

from typing import Any

import numpy as np

EPS = float(np.finfo(float).eps)
"""The distance from 1 to the next number."""


def is_number(value: Any, low: float = -np.inf, high: float = np.inf) -> bool:
    """Whether ``value`` is a finite real number in [low, high], and no boolean."""
    real = isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))
    return real and bool(low <= value <= high)


def is_integer(value: Any, least: int) -> bool:
    """Whether ``value`` is an integer of at least ``least``, and no boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def at_least(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``least``, and at most ``most``."""
    if not is_integer(value, least) or (most is not None and value > most):
        upper = f" and at most {most:,}" if most is not None else ""
        raise ValueError(f"{name} must be an integer of at least {least}{upper}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a positive number."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def non_negative(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a number of at least 0."""
    if not is_number(value, 0):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def unit_interval(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a number in [0, 1]."""
    if not is_number(value, 0, 1):
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")


def has_shape(name: str, array: Any, shape: tuple[int, ...], beside: str = "") -> None:
    """Raise ``ValueError`` unless ``array`` has this shape, that of what it goes with, ``beside``."""
    given = array.shape if isinstance(array, np.ndarray) else np.shape(array)
    if given != shape:
        raise ValueError(f"{name} must have shape {shape}{beside and f' to go with {beside}'}, got {given}")
