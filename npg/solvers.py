"""Conjugate gradient, a direct solution for comparison, and a backtracking line search (chapters 10 and 11).

The first and the last take closures, so that neither a matrix nor a policy need be known here. Shapes: vectors (n,).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ._checks import EPS, at_least, has_shape, is_number, positive
from ._typing import Array

CG_TOL = 1e-8
"""The relative tolerance of the methods that use conjugate gradient."""
SUFFICIENT, SHRINK, MAX_BACKTRACKS = 0.1, 0.5, 10
"""η, c and the largest j of a line search."""


@dataclass(frozen=True)
class CGResult:
    """Where ``conjugate_gradient`` ended.

    Attributes
    ----------
    x : (n,)
        The last iterate.
    residual_norm : float
        ‖b − A x‖, as the recursion carries it; computed from x where that met the tolerance.
    iterations : int
        Steps taken.
    converged : bool
        Whether the tolerance was met by the recursion, and √tol by x itself.
    nonpositive_curvature : bool
        Whether it ended because A has no positive curvature along the next direction, Eq. (10.11).
    """

    x: Array
    residual_norm: float
    iterations: int
    converged: bool
    nonpositive_curvature: bool = False


def damped(matvec: Callable[[Array], Array], kappa: float) -> Callable[[Array], Array]:
    """v -> A v + κ v, Eq. (10.14)."""
    return lambda v: matvec(v) + kappa * v  # (10.14)


def conjugate_gradient(
    matvec: Callable[[Array], Array],
    b: Array,
    *,
    max_iter: int,
    tol: float,
    preconditioner: Callable[[Array], Array] | None = None,
) -> CGResult:
    """Solve A x = b from x = 0 with products A v alone (Hestenes & Stiefel 1952), Eqs. (10.1)–(10.8).

        α_k = r_kᵀz_k / p_kᵀA p_k     x_{k+1} = x_k + α_k p_k     r_{k+1} = r_k − α_k A p_k     z = M^{-1} r
        β_k = r_{k+1}ᵀz_{k+1} / r_kᵀz_k                           p_{k+1} = z_{k+1} + β_k p_k

    until ‖r‖ ≤ tol ‖b‖, Eq. (10.9). Every iterate but the first has bᵀx > 0, Eq. (10.13). A singular A with b in its
    range converges to the smallest solution, Eq. (10.10).

    Parameters
    ----------
    matvec : callable
        v (n,) -> A v (n,), A symmetric and positive semidefinite.
    b : (n,)
    max_iter : int
        Most steps, at least 1; rank(A) are enough in exact arithmetic, Eq. (10.7).
    tol : float
        Relative tolerance, positive.
    preconditioner : callable, optional
        r (n,) -> M^{-1} r (n,), M symmetric and positive definite, Eq. (10.12); the identity by default.

    Returns
    -------
    CGResult
        If a direction p has no positive curvature, that is pᵀA p / pᵀM p ≤ n ε times the largest such quotient
        before, ε the rounding unit, A is indefinite, or b is not in its range: the iterate before that step, marked.
        Where b is not in the range of A, it may instead end after ``max_iter`` steps, or when rounding makes the
        recursion small; it is then not converged either.

    Raises
    ------
    ValueError
        If ``b`` is no vector, ``max_iter`` or ``tol`` is out of range, a product has another shape, or M is
        found not to be positive definite.
    FloatingPointError
        If b or a product is not finite.
    """
    b = np.asarray(b, dtype=float)
    if b.ndim != 1:
        raise ValueError(f"b must be a vector, got shape {b.shape}")
    if not np.isfinite(b).all():
        raise FloatingPointError("the right-hand side of a linear system is not finite")
    at_least("max_iter", max_iter, 1)
    positive("tol", tol)

    def product(name: str, of: Callable[[Array], Array], v: Array) -> Array:
        result = np.asarray(of(v))
        if result.shape != b.shape:
            raise ValueError(f"{name} must return shape {b.shape}, that of b, got {result.shape}")
        if not np.isfinite(result).all():
            raise FloatingPointError(f"{name} returned numbers that are not finite")
        return result

    def precondition(r: Array) -> Array:
        return r if preconditioner is None else product("preconditioner", preconditioner, r)

    scale = float(np.abs(b).max(initial=0.0)) or 1.0  # the squares of a tiny or huge b would not be numbers
    x, r = np.zeros(b.shape), b / scale
    norm = b_norm = float(np.linalg.norm(r))
    largest, iterations, nonpositive = 0.0, 0, False
    p, Mp, rz = np.zeros(b.shape), np.zeros(b.shape), np.inf
    while norm > tol * b_norm and iterations < max_iter:  # (10.9)
        z = precondition(r)
        rz, rz_before = float(r @ z), rz
        if not rz > 0:
            raise ValueError(f"preconditioner must be positive definite, got rᵀM⁻¹r = {rz:g}")
        p, Mp = z + rz / rz_before * p, r + rz / rz_before * Mp  # (10.12)
        Ap = product("matvec", matvec, p)
        curvature = float(p @ Ap)
        quotient = curvature / float(p @ Mp)
        largest = max(largest, quotient)
        nonpositive = quotient <= len(b) * EPS * largest  # (10.11)
        if nonpositive:
            break
        alpha = rz / curvature  # (10.2)
        x, r = x + alpha * p, r - alpha * Ap  # (10.4)
        norm = float(np.linalg.norm(r))
        iterations += 1
    converged = norm <= tol * b_norm
    if converged and iterations:  # rounding can end the recursion on an inconsistent system, far from any solution
        norm = float(np.linalg.norm(b / scale - product("matvec", matvec, x)))
        converged = norm <= tol**0.5 * b_norm
    return CGResult(scale * x, scale * norm, iterations, converged, nonpositive)


def cholesky_solve(A: Array, b: Array) -> Array:
    """Solve A x = b by the Cholesky factor of a positive definite A, as the damped Fisher matrix is, Eq. (10.16).

    Parameters
    ----------
    A : (n, n)
        Symmetric; its upper triangle is read.
    b : (n,)

    Returns
    -------
    (n,)

    Raises
    ------
    ValueError
        If shapes disagree, or A is not positive definite to working precision.
    FloatingPointError
        If A or b is not finite.
    """
    if np.ndim(b) != 1 or np.shape(A) != 2 * np.shape(b):
        raise ValueError(f"A and b must have shapes (n, n) and (n,), got {np.shape(A)} and {np.shape(b)}")
    if not (np.isfinite(A).all() and np.isfinite(b).all()):
        raise FloatingPointError("the matrix or the right-hand side of a linear system is not finite")
    try:
        return linalg.cho_solve(linalg.cho_factor(A), b)
    except linalg.LinAlgError:
        raise ValueError("A must be positive definite to be factored, got one that is not: add more damping") from None


@dataclass(frozen=True)
class LineSearchResult:
    """Where ``backtracking_line_search`` ended.

    Attributes
    ----------
    x : (n,)
        The point accepted, or the one it began at.
    improvement : float
        f there less f at the beginning.
    constraint : float
        The constraint there.
    backtracks : int
        How often the step was shortened.
    accepted : bool
    """

    x: Array
    improvement: float
    constraint: float
    backtracks: int
    accepted: bool


def backtracking_line_search(
    f: Callable[[Array], float],
    x: Array,
    step: Array,
    slope: float,
    *,
    constraint: Callable[[Array], float],
    radius: float,
    sufficient: float = SUFFICIENT,
    shrink: float = SHRINK,
    max_backtracks: int = MAX_BACKTRACKS,
) -> LineSearchResult:
    """The first x + c^j Δ that raises f by enough and keeps to the constraint, Eq. (11.5).

        f(x + c^j Δ) − f(x) ≥ η c^j gᵀΔ,  and > 0;   constraint(x + c^j Δ) ≤ radius;   j = 0, 1, …

    Parameters
    ----------
    f : callable
        (n,) -> number, to be raised.
    x, step : (n,)
        Where to begin, and Δ.
    slope : float
        gᵀΔ, the derivative of f along the step; where it is not positive nothing is accepted.
    constraint : callable
        (n,) -> number.
    radius : float
        The most that the constraint may be, at least 0.
    sufficient, shrink : float
        η and c, in (0, 1).
    max_backtracks : int
        The largest j.

    Returns
    -------
    LineSearchResult

    Raises
    ------
    ValueError
        If η, c or the radius is out of range, or the shapes of x and Δ differ.
    """
    for name, value in (("sufficient", sufficient), ("shrink", shrink)):
        if not (is_number(value) and 0 < value < 1):
            raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
    if not (is_number(radius) and radius >= 0):
        raise ValueError(f"radius must be a number of at least 0, got {radius!r}")
    has_shape("step", step, np.shape(x), "x")
    at_least("max_backtracks", max_backtracks, 0)
    before, fraction = f(x), 1.0
    if slope > 0:
        for j in range(max_backtracks + 1):
            candidate = x + fraction * step
            improvement, bound = f(candidate) - before, constraint(candidate)
            enough = improvement > 0 and improvement >= sufficient * fraction * slope  # (11.5)
            if enough and bound <= radius and np.isfinite(improvement):
                return LineSearchResult(candidate, float(improvement), float(bound), j, True)
            fraction *= shrink
    return LineSearchResult(x, 0.0, float(constraint(x)), max_backtracks if slope > 0 else 0, False)
