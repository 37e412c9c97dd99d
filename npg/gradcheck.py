"""Numerical checks of hand-derived gradients: central differences, or the complex step, of values alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import EPS
from ._typing import Array

RTOL = {"central": 1e-6, "complex": 1e-10}
"""Largest relative error that passes, by method."""
ULPS = 100
"""Rounding errors, in units of ε max|f|, that the evaluation of f is allowed."""


@dataclass(frozen=True)
class GradCheck:
    """Result of a check.

    Attributes
    ----------
    max_abs_error : float
        ‖g − ĝ‖∞.
    max_rel_error : float
        ‖g − ĝ‖∞ / max(‖g‖∞, ‖ĝ‖∞, floor).
    worst_index : int
        The component where they differ most.
    passed : bool
        Whether ``max_rel_error`` is at most ``rtol``; False where anything is not finite.
    """

    max_abs_error: float
    max_rel_error: float
    worst_index: int
    passed: bool


def numerical_gradient(f: Callable[[Array], Any], theta: Array, method: str = "central") -> tuple[Array, float]:
    """∇f(θ) from values of f alone, and the largest error to expect in a component.

    ``"central"`` is the five-point difference (f₋₂ − 8f₋₁ + 8f₁ − f₂)/(12h), whose truncation error is
    h⁴f⁽⁵⁾/30 and whose rounding error is at most 1.5 δ/h for values that are δ off; h = ε^{1/5} max(1, |θ_i|)
    balances the two. ``"complex"`` is Im f(θ + ih)/h with h = 1e-30, which subtracts nothing; f must be analytic
    and keep complex numbers.

    Parameters
    ----------
    f : callable
        (n,) -> float.
    theta : (n,)
    method : {"central", "complex"}

    Returns
    -------
    (n,), float
    """
    if method not in RTOL:
        raise ValueError(f"method must be one of {', '.join(RTOL)}, got {method!r}")
    gradient = np.empty(len(theta))
    value = complex(f(theta))
    largest, smallest_step, truncation = abs(value), 1.0, 0.0
    for i in range(len(theta)):
        direction = np.zeros(len(theta))
        direction[i] = 1
        if method == "complex":
            gradient[i] = complex(f(theta + 1e-30j * direction)).imag / 1e-30
        else:
            h = EPS**0.2 * max(1.0, abs(theta[i]))
            values = np.array([float(f(theta + k * h * direction)) for k in (-2, -1, 1, 2)])
            gradient[i] = values @ [1, -8, 8, -1] / (12 * h)
            largest, smallest_step = max(largest, np.abs(values).max()), min(smallest_step, h)
            # h⁴ f⁽⁵⁾ of an f whose derivatives are alike in units of max(1, |θ_i|): matters at stationary points only.
            second_difference = abs(values[1] - 2 * value.real + values[2])
            truncation = max(truncation, EPS**0.4 * second_difference / max(1.0, abs(theta[i])))
    noise = ULPS * EPS * largest
    return gradient, float(noise if method == "complex" else 1.5 * noise / smallest_step + truncation)


def check_gradient(
    f: Callable[[Array], Any],
    grad: Array,
    theta: Array,
    *,
    method: str = "central",
    rtol: float | None = None,
    floor: float | None = None,
) -> GradCheck:
    """Compare ``grad`` with a numerical gradient of ``f`` at ``theta``.

    Parameters
    ----------
    f : callable
        (n,) -> float.
    grad : (n,)
        The gradient to check.
    theta : (n,)
    method : {"central", "complex"}
        As ``numerical_gradient`` has them.
    rtol : float, optional
        1e-6 for central differences, 1e-10 for the complex step.
    floor : float, optional
        Gradients smaller than this are compared absolutely. By default the size below which the expected
        error of the numerical gradient is more than ``rtol``.

    Returns
    -------
    GradCheck

    Raises
    ------
    ValueError
        If ``grad`` and ``theta`` are not vectors of one length.
    """
    theta, grad = np.asarray(theta, dtype=float), np.asarray(grad)
    if theta.ndim != 1 or theta.size == 0 or grad.shape != theta.shape:
        raise ValueError(f"grad and theta must be vectors of one length, got {grad.shape} and {theta.shape}")
    numerical, expected_error = numerical_gradient(f, theta, method)
    rtol = RTOL[method] if rtol is None else rtol
    floor = expected_error / rtol if floor is None else floor
    finite = np.isfinite(grad) & np.isfinite(numerical)
    if not finite.all():
        return GradCheck(np.inf, np.inf, int(np.argmin(finite)), passed=False)
    error = np.abs(grad - numerical)
    worst = int(np.argmax(error))
    scale = max(np.abs(grad).max(), np.abs(numerical).max(), floor)
    relative = float(error[worst] / scale) if scale > 0 else 0.0
    return GradCheck(float(error[worst]), relative, worst, relative <= rtol)
