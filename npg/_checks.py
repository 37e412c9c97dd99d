"""Checks of arguments at the public boundary."""

from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number, and no boolean."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


def is_integer(value: Any, least: int) -> bool:
    """Whether ``value`` is an integer of at least ``least``, and no boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def at_least(name: str, value: Any, least: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``least``."""
    if not is_integer(value, least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a positive number."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
