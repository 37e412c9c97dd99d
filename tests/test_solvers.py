"""Conjugate gradient, the direct solution and the line search: exact arithmetic, theorems, SciPy, and breakdowns."""

import tracemalloc
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import strategies as S
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.sparse.linalg import cg as scipy_cg

from npg.distributions import Categorical
from npg.gradcheck import check_gradient
from npg.models import Linear
from npg.optimizers import kl_step
from npg.policies import Policy
from npg.solvers import backtracking_line_search, cholesky_solve, conjugate_gradient
from npg.surrogates import Surrogate

MANY = S.examples(100)
EPS = np.finfo(float).eps
NEVER = 1e-300  # a tolerance that is not met before max_iter

# Systems whose eigenvalues are a few of 1, 2, 3, 5, 8 (and 0), each part of b at least a tenth of it. The residual of
# such a system stays above ‖b‖ / 1000 until it ends: with weights ℓ_i(0) of Lagrange's interpolation at Λ,
# 1 = P(0) = Σ P(λ_i) ℓ_i(0), so some |P(λ_i)| ≥ 1 / Σ |ℓ_i(0)| ≥ 1/28. Rounding (some n ε = 1e-15 a step) is magnified
# by no more than such ratios and by the condition number 8, over five steps: far less than 1e-10.
LEVELS = (1, 2, 3, 5, 8)
TIGHT = 1e-10


class System(NamedTuple):
    """A = Q diag(λ) Q and b = Q parts with the reflection Q = I − 2uuᵀ/uᵀu; u, λ and the parts are integers."""

    A: np.ndarray
    b: np.ndarray
    Q: np.ndarray
    u: np.ndarray
    lam: np.ndarray
    parts: np.ndarray

    @property
    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """A and b as fractions."""
        square = int(self.u @ self.u)
        Q = np.array(
            [
                [int(i == j) - Fraction(2 * int(u * v), square) for j, v in enumerate(self.u)]
                for i, u in enumerate(self.u)
            ]
        )
        return (Q * self.lam) @ Q, Q @ self.parts

    @property
    def visited(self) -> list[int]:
        """Λ, the distinct nonzero eigenvalues that b has a part in."""
        return sorted({int(v) for v, part in zip(self.lam, self.parts, strict=True) if v and part})

    @property
    def solution(self) -> np.ndarray:
        """A⁺ b."""
        return self.Q @ np.divide(self.parts, self.lam, out=np.zeros(len(self.b)), where=self.lam > 0)

    def error(self, x: np.ndarray) -> float:
        """‖x − A⁺b‖ in the norm of A."""
        return float(np.linalg.norm(np.sqrt(self.lam) * (self.Q @ (x - self.solution))))


@st.composite
def systems(draw: Any, consistent: bool = True) -> System:
    """b has a part in at least one nonzero eigenvalue, and, unless ``consistent``, in the null space."""
    n = draw(st.integers(1 if consistent else 2, 6))
    u = np.array(draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n).filter(any)))
    lam = np.array(draw(st.lists(st.sampled_from((0, *LEVELS)), min_size=n, max_size=n)))
    parts = np.array(draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n)))
    lam[0], parts[0] = draw(st.sampled_from(LEVELS)), draw(st.sampled_from((-2, -1, 1, 2)))
    if consistent:
        parts[lam == 0] = 0
    else:
        lam[1], parts[1] = 0, draw(st.sampled_from((-1, 1)))
    Q = np.eye(n) - 2 * np.outer(u, u) / (u @ u)
    return System((Q * lam) @ Q, Q @ parts, Q, u, lam, parts)


def spectral(rng: np.random.Generator, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A = Q diag(λ) Qᵀ with random orthogonal Q, and Q."""
    Q = np.linalg.qr(rng.normal(size=(len(lam), len(lam))))[0]
    A = (Q * lam) @ Q.T
    return (A + A.T) / 2, Q


def log_uniform(rng: np.random.Generator, n: int, condition: float) -> np.ndarray:
    """n eigenvalues between 1 and ``condition``, both among them if n > 1."""
    lam = condition ** rng.uniform(size=n)
    lam[0], lam[-1] = 1.0, condition if n > 1 else 1.0
    return lam


def solve(A, b, *, max_iter=1000, tol=1e-9, **more):
    return conjugate_gradient(lambda v: A @ v, b, max_iter=max_iter, tol=tol, **more)


def iterates(A, b, steps, **more):
    """x_1, …, x_steps."""
    return [solve(A, b, max_iter=k, tol=NEVER, **more).x for k in range(1, steps + 1)]


def recorded(A, b, **more):
    """The result, and the directions p_0, p_1, … that it took (the last one refused if marked), in the scale of b."""
    asked = []

    def matvec(v):
        asked.append(v * np.abs(b).max())
        return A @ v

    result = conjugate_gradient(matvec, b, **{"max_iter": 1000, "tol": 1e-9} | more)
    return result, asked[: result.iterations + result.nonpositive_curvature]


def quadratic(A, b):
    """q(x) = ½xᵀAx − bᵀx."""
    return lambda x: x @ A @ x / 2 - b @ x


def textbook(A, b, steps):
    """(x_k, r_k, p_k) for k = 0, …, steps, line by line as in the box; of floats or of fractions."""
    x, r, p = 0 * b, b, b
    history = [(x, r, p)]
    for _ in range(steps):
        alpha = (r @ r) / (p @ (A @ p))
        x, r_next = x + alpha * p, r - alpha * (A @ p)
        beta = (r_next @ r_next) / (r @ r)
        r, p = r_next, r_next + beta * p
        history.append((x, r, p))
    return history


def agree(actual, expected, size, tol=TIGHT):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tol * size)


# The quadratic and its minimisation


@pytest.mark.equation("10.1", defining=True)
@MANY
@given(systems(), S.generators)
def test_the_solution_is_the_minimum_of_the_quadratic_whose_gradient_is_minus_the_residual(s, rng):
    q, size = quadratic(s.A, s.b), s.b @ s.b
    point = rng.normal(size=len(s.b))
    assert check_gradient(q, s.A @ point - s.b, point, floor=1.0).passed
    x = solve(s.A, s.b).x
    agree(s.A @ x, s.b, size, 1e-8)  # the tolerance of the solution
    d = rng.normal(size=len(s.b))
    agree(q(x + d) - q(x), d @ s.A @ d / 2, size + d @ d, 1e-8)
    assert len(s.b) != (s.lam > 0).sum() or d @ s.A @ d > 0  # a positive definite A has no other minimum
    null = s.Q @ np.where(s.lam == 0, s.Q @ d, 0.0)
    agree(q(x + null), q(x), size + d @ d)  # a singular one has


@pytest.mark.equation("10.1")
@MANY
@given(systems(consistent=False))
def test_the_quadratic_of_an_inconsistent_system_falls_for_ever_along_the_part_in_the_null_space(s):
    null = s.Q @ np.where(s.lam == 0, s.parts, 0)
    for t in (1.0, 10.0, 100.0):
        agree(quadratic(s.A, s.b)(t * null), -t * null @ null, t * t * s.b @ s.b)


@pytest.mark.equation("10.2", defining=True)
@MANY
@given(systems())
def test_each_step_is_the_minimum_along_its_direction_and_the_residual_there_is_orthogonal_to_it(s):
    _, p = recorded(s.A, s.b)
    x = [np.zeros_like(s.b), *iterates(s.A, s.b, len(s.visited))]
    q, size = quadratic(s.A, s.b), s.b @ s.b
    for k in range(len(s.visited)):
        r = s.b - s.A @ x[k]
        alpha = (r @ p[k]) / (p[k] @ s.A @ p[k])
        agree(x[k + 1], x[k] + alpha * p[k], np.sqrt(size))
        agree(p[k] @ (s.b - s.A @ x[k + 1]), 0, np.linalg.norm(p[k]) * np.sqrt(size))
        assert q(x[k + 1]) < min(q(x[k + 1] + h * p[k]) for h in (-0.1, 0.1))
        agree(q(x[k]) - q(x[k + 1]), alpha * (r @ p[k]) / 2, size)


@pytest.mark.equation("10.3", defining=True)
@MANY
@given(systems(), S.generators)
def test_an_iterate_is_the_minimum_over_the_span_of_all_directions_so_far(s, rng):
    p, q = recorded(s.A, s.b)[1], quadratic(s.A, s.b)
    for k, x in enumerate(iterates(s.A, s.b, len(s.visited)), start=1):
        P = np.array(p[:k]).T / np.linalg.norm(p[:k], axis=1)
        agree(x, P @ np.linalg.solve(P.T @ s.A @ P, P.T @ s.b), np.linalg.norm(s.b))
        agree(P.T @ (s.b - s.A @ x), 0, np.linalg.norm(s.b))
        assert q(x) < q(x + P @ rng.normal(size=k))


# The method


@pytest.mark.equation("10.4")
def test_two_steps_by_hand():
    # r_0 = (1, 2), α_0 = 5/20, r_1 = (−1/2, 1/4), β_0 = 1/16, p_1 = (−7/16, 3/8).
    A, b = np.array([[4.0, 1.0], [1.0, 3.0]]), np.array([1.0, 2.0])
    first = solve(A, b, max_iter=1)
    np.testing.assert_allclose(first.x, [1 / 4, 1 / 2], rtol=4 * EPS)
    assert first.residual_norm == pytest.approx(np.sqrt(5) / 4, rel=4 * EPS)
    assert (first.iterations, first.converged, first.nonpositive_curvature) == (1, False, False)
    result, p = recorded(A, b)
    np.testing.assert_allclose(p, [[1, 2], [-7 / 16, 3 / 8]], rtol=8 * EPS)
    np.testing.assert_allclose(result.x, [1 / 11, 7 / 11], rtol=16 * EPS)
    assert (result.iterations, result.converged, result.nonpositive_curvature) == (2, True, False)


@pytest.mark.equation("10.4", defining=True)
@pytest.mark.equation("10.7")
@MANY
@given(systems())
def test_iterates_residuals_and_directions_are_those_of_exact_arithmetic(s):
    m = len(s.visited)
    history = textbook(*s.exact, m)
    assert not any(history[m][1])  # the residual, a fraction, is zero
    assert all(any(r) for _, r, _ in history[:m])
    result, p = recorded(s.A, s.b)
    assert result.iterations == len(p) == m
    for k, (x, r, _) in enumerate(history[1:], start=1):
        mine = solve(s.A, s.b, max_iter=k, tol=NEVER)
        agree(mine.x, x.astype(float), np.linalg.norm(s.b))
        agree(mine.residual_norm, np.linalg.norm(r.astype(float)), np.linalg.norm(s.b))
    for mine, (_, _, exact) in zip(p, history, strict=False):
        agree(mine, exact.astype(float), np.linalg.norm(s.b))


@pytest.mark.equation("10.4")
@MANY
@given(S.generators, st.integers(1, 40), st.floats(0, 3))
def test_the_first_steps_are_those_of_the_textbook(rng, n, exponent):
    A, _ = spectral(rng, log_uniform(rng, n, 10.0**exponent))
    b = rng.normal(size=n)
    steps = min(n - 1, 4)  # before orthogonality is lost
    for k, (x, r, _) in enumerate(textbook(A, b, steps)[1:], start=1):
        result = solve(A, b, max_iter=k, tol=NEVER)
        assert result.iterations == k
        agree(result.x, x, np.linalg.norm(x), 1e-9)
        agree(result.residual_norm, np.linalg.norm(r), np.linalg.norm(b) * 10.0**exponent, 1e-11)


@pytest.mark.equation("10.5", defining=True)
@MANY
@given(systems())
def test_residuals_are_orthogonal_directions_conjugate_and_both_span_the_krylov_space(s):
    m = len(s.visited)
    p = np.array(recorded(s.A, s.b)[1])
    x = [np.zeros_like(s.b), *iterates(s.A, s.b, m - 1)]
    r = np.array([s.b - s.A @ y for y in x])
    for gram in (r @ r.T, p @ s.A @ p.T):
        agree(gram - np.diag(np.diag(gram)), 0, 8 * np.abs(np.diag(gram)).max())
    krylov = np.array([np.linalg.matrix_power(s.A / 8, j) @ s.b for j in range(m)])
    for k in range(1, m + 1):
        basis = np.linalg.qr(krylov[:k].T)[0]
        for vectors in (r[:k], p[:k]):
            agree(vectors - vectors @ basis @ basis.T, 0, 8 * np.linalg.norm(s.b))
            assert np.linalg.matrix_rank(vectors, tol=1e-6) == k


@pytest.mark.equation("10.6")
@MANY
@given(systems())
def test_an_iterate_has_the_least_error_over_the_krylov_space(s):
    root = np.sqrt(s.lam)[:, None] * s.Q
    for k, x in enumerate(iterates(s.A, s.b, len(s.visited)), start=1):
        K = np.array([np.linalg.matrix_power(s.A / 8, j) @ s.b for j in range(k)]).T
        best = K @ np.linalg.lstsq(root @ K, root @ s.solution, rcond=None)[0]
        agree(s.error(x), s.error(best), s.error(0 * x))
        agree(x, best, np.linalg.norm(s.b), 1e-8)  # the powers of A are nearly parallel


@pytest.mark.equation("10.6", defining=True)
@MANY
@given(systems(), S.generators)
def test_the_error_is_that_of_the_best_polynomial_and_no_polynomial_bounds_it_from_below(s, rng):
    initial = s.error(np.zeros_like(s.b))
    weights = np.sqrt(s.lam) * (s.Q @ s.solution)  # √λ_i ε_i
    for k, x in enumerate(iterates(s.A, s.b, len(s.visited)), start=1):
        powers = (s.lam[:, None] / 8) ** np.arange(1, k + 1)
        c = np.linalg.lstsq(weights[:, None] * powers, -weights, rcond=None)[0]
        agree(s.error(x), np.linalg.norm(weights * (1 + powers @ c)), initial)
        roots = rng.uniform(0.5, 9.0, size=k)  # P(λ) = Π (1 − λ / root)
        P = np.prod([1 - np.array(s.visited) / root for root in roots], axis=0)
        assert s.error(x) <= np.abs(P).max() * initial + TIGHT * initial


@pytest.mark.equation("10.7", defining=True)
@MANY
@given(systems())
def test_it_takes_as_many_steps_as_b_has_parts_in_distinct_nonzero_eigenvalues(s):
    result = solve(s.A, s.b)
    assert result.iterations == len(s.visited) <= (s.lam > 0).sum() <= len(s.b)
    assert result.converged
    assert not result.nonpositive_curvature
    agree(result.x, s.solution, np.linalg.norm(s.b))


@pytest.mark.equation("10.7", "10.8")
def test_the_second_difference_ends_after_fifty_of_a_hundred_steps():
    n = 100
    A, b = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1), np.ones(n)
    exact = np.arange(1, n + 1) * np.arange(n, 0, -1) / 2
    np.testing.assert_allclose(A @ exact, b, atol=1e-12)
    lam = 2 - 2 * np.cos(np.arange(1, n + 1) * np.pi / (n + 1))
    c = lam[::2].max() / lam[::2].min()  # b is symmetric: it has no part in the others
    assert c == pytest.approx(4130.6, abs=0.05)

    def error(x):
        return np.sqrt((x - exact) @ A @ (x - exact) / (exact @ A @ exact))

    def bound(k):
        return 2 * ((np.sqrt(c) - 1) / (np.sqrt(c) + 1)) ** k

    result = solve(A, b)
    assert (result.iterations, result.converged) == (50, True)
    np.testing.assert_allclose(result.x, exact, rtol=1e-10)
    assert error(solve(A, b, max_iter=25).x) == pytest.approx(0.359, abs=5e-4)
    assert error(solve(A, b, max_iter=49).x) == pytest.approx(0.0048, abs=5e-5)
    assert bound(49) == pytest.approx(0.435, abs=5e-4)
    assert solve(A, b, max_iter=1).residual_norm == pytest.approx(70)
    assert solve(A, b, max_iter=49).residual_norm == pytest.approx(2)


@pytest.mark.equation("10.8", defining=True)
@MANY
@given(S.generators, st.integers(1, 30), st.integers(0, 10), st.floats(0, 4), st.booleans())
def test_the_error_is_within_the_bound_of_the_condition_number_over_the_eigenvalues_that_b_has_a_part_in(
    rng, n, others, exponent, diagonal
):
    # Others: zero eigenvalues, and smaller ones; in the eigenvectors, where b has exactly no part in them, larger ones.
    visited = log_uniform(rng, n, 10.0**exponent)
    lam = np.concatenate([visited, rng.choice([0.0, 0.01, 1e6 if diagonal else 1.0], others)])
    A, Q = (np.diag(lam), np.eye(len(lam))) if diagonal else spectral(rng, lam)
    parts = np.concatenate([rng.normal(size=n), np.zeros(others)])
    b, exact = Q @ parts, Q[:, :n] @ (parts[:n] / visited)
    c = visited.max() / visited.min()
    rho = (np.sqrt(c) - 1) / (np.sqrt(c) + 1)

    def error(x):
        return np.linalg.norm(np.sqrt(visited) * (Q[:, :n].T @ (x - exact)))

    # The residual drifts from the true one by about n ε ‖A‖ ‖x‖ a step, with ‖A‖ over what x has a part in: relative
    # to ‖exact‖_A that is n ε c.
    for k in (1, 2, 3, 5, 8, 13, 21):
        result = solve(A, b, max_iter=k, tol=1e-15)
        assert error(result.x) <= (2 * rho**k + 10 * k * len(lam) * EPS * c) * error(0 * exact)


# Stopping


@pytest.mark.equation("10.9", defining=True)
@MANY
@given(S.generators, st.integers(1, 30), st.integers(0, 5), st.floats(0, 4), st.floats(1, 8))
def test_a_small_residual_bounds_the_error_by_the_condition_number(rng, n, zeros, exponent, digits):
    lam = log_uniform(rng, n, 10.0**exponent)
    A, Q = spectral(rng, np.concatenate([lam, np.zeros(zeros)]))
    exact = Q[:, :n] @ rng.normal(size=n)
    b, c, tol = A @ exact, lam.max() / lam.min(), 10.0**-digits
    result = solve(A, b, tol=tol)
    assert result.converged
    assert result.residual_norm == pytest.approx(np.linalg.norm(b - A @ result.x), rel=1e-3, abs=1e-13 * c)
    tol += 10 * (result.iterations + 1) * len(b) * EPS * c  # what rounding adds to the residual, relative to ‖b‖
    assert np.linalg.norm(b - A @ result.x) <= tol * np.linalg.norm(b)
    d = result.x - exact
    assert np.linalg.norm(d) <= c * tol * np.linalg.norm(exact)
    assert np.linalg.norm(np.sqrt(lam) * (Q[:, :n].T @ d)) <= np.sqrt(c) * tol * np.sqrt(exact @ A @ exact)


@pytest.mark.equation("10.9")
@MANY
@given(S.generators, st.integers(1, 30), st.floats(0, 4), st.floats(1, 8))
def test_it_ends_at_the_first_residual_within_the_tolerance_or_at_max_iter(rng, n, exponent, digits):
    A, _ = spectral(rng, log_uniform(rng, n, 10.0**exponent))
    b, tol = rng.normal(size=n), 10.0**-digits
    result, p = recorded(A, b, tol=tol)
    assert result.converged
    assert len(p) == result.iterations
    for k in range(1, result.iterations):
        before = solve(A, b, max_iter=k, tol=tol)
        assert (before.iterations, before.converged, before.nonpositive_curvature) == (k, False, False)
        assert before.residual_norm > tol * np.linalg.norm(b)
    np.testing.assert_array_equal(solve(A, b, max_iter=result.iterations, tol=tol).x, result.x)


@pytest.mark.equation("10.9")
def test_the_recursive_residual_goes_on_falling_where_the_true_one_stays():
    # What depends on rounding is compared with the chapter's numbers to a factor of ten.
    n = 24
    H, D = np.eye(n) - 2 / n, 10.0 ** (-8 * np.arange(n) / (n - 1))
    A, b = (H * D) @ H, np.ones(n)
    A = (A + A.T) / 2

    def residuals(k):
        result = solve(A, b, max_iter=k, tol=NEVER)
        return result.residual_norm / np.sqrt(n), np.linalg.norm(b - A @ result.x) / np.sqrt(n)

    recursive, true = residuals(24)
    assert 12 < true < 1240
    assert recursive == pytest.approx(true, rel=1e-6)
    recursive, true = residuals(300)
    assert recursive < 1e-15
    assert 2e-10 < true < 2e-8
    assert EPS * np.linalg.norm(H @ ((H @ b) / D)) / np.sqrt(n) == pytest.approx(5e-9, rel=0.1)
    assert 100 < solve(A, b, tol=1e-8).iterations < 250


# SciPy, and a direct solution


class Compared(NamedTuple):
    A: np.ndarray
    b: np.ndarray
    lam: np.ndarray


def comparison() -> list[Compared]:
    """500 positive definite systems of 1 to 40 unknowns, their condition numbers log-uniform from 1 to 1e8."""
    rng = np.random.default_rng(10)
    found = []
    for _ in range(500):
        n = int(rng.integers(1, 41))
        lam = 10.0 ** rng.uniform(-3, 3) * log_uniform(rng, n, 10.0 ** rng.uniform(0, 8))
        A, _ = spectral(rng, lam)
        found.append(Compared(A, 10.0 ** rng.uniform(-3, 3) * rng.normal(size=n), lam))
    return found


@pytest.mark.equation("10.4", "10.9")
def test_500_systems_are_solved_to_the_tolerance_as_by_scipy_and_directly():
    tol = 1e-8
    systems = comparison()
    assert max(s.lam.max() / s.lam.min() for s in systems) > 5e7
    for A, b, lam in systems:
        result = solve(A, b, max_iter=100 * len(b), tol=tol)
        theirs, info = scipy_cg(A, b, rtol=tol, atol=0.0, maxiter=100 * len(b))
        assert result.converged
        assert info == 0
        assert not result.nonpositive_curvature
        size = np.linalg.norm(b)
        # The true residual drifts from the recursive one by at most a moderate multiple of ε ‖A‖ max ‖x_j‖ a step, and
        # ‖x_j‖ grows to that of the solution: here no multiple is needed.
        drift = EPS * (result.iterations + 1) * lam.max() * np.linalg.norm(result.x)
        assert np.linalg.norm(b - A @ result.x) <= tol * size + drift
        assert result.residual_norm <= tol * size + drift
        assert np.linalg.norm(b - A @ theirs) <= tol * size + drift
        # x − x* = −A⁻¹r; the direct solution has a relative error of n ε c itself.
        direct = np.linalg.solve(A, b)
        c = lam.max() / lam.min()
        allowed = (tol * size + drift) / lam.min() + 10 * len(b) * EPS * c * np.linalg.norm(direct)
        assert np.linalg.norm(result.x - direct) <= allowed
        assert np.linalg.norm(result.x - theirs) <= 2 * allowed


@pytest.mark.equation("10.4")
def test_500_systems_have_the_residuals_of_scipy_step_by_step_until_orthogonality_is_lost():
    # Two runs that round differently (b is scaled here) stay together only while the residuals are orthogonal, up to
    # which their coefficients are those of exact arithmetic (Simon 1984); afterwards one run lags. With residuals
    # orthogonal to 1e-10, four ways of rounding were seen to differ by 6e-13 in the lengths of the residuals and by
    # 8e-9 in the residuals, relative to the largest so far: a thousand times as much is allowed.
    compared = 0
    for A, b, _ in comparison():
        xs = [np.zeros_like(b)]
        scipy_cg(A, b, rtol=1e-8, atol=0.0, maxiter=100 * len(b), callback=lambda x, xs=xs: xs.append(x.copy()))
        units, largest = [], 0.0
        for k, x in enumerate(xs):
            r = b - A @ x
            norm = float(np.linalg.norm(r))
            largest = max(largest, norm)
            if norm <= 1e-8 * np.linalg.norm(b) or any(abs(u @ r) > 1e-10 * norm for u in units):
                break
            units.append(r / norm)
            if k:
                result = solve(A, b, max_iter=k, tol=1e-8)
                assert result.iterations == k
                assert abs(result.residual_norm - norm) <= 1e-9 * largest
                assert np.linalg.norm(A @ (result.x - x)) <= 1e-5 * largest
                compared += 1
    assert compared > 3000


@pytest.mark.equation("10.12")
def test_100_systems_with_a_preconditioner_have_the_iterates_of_scipy():
    rng = np.random.default_rng(12)
    for _ in range(100):
        n = int(rng.integers(2, 20))
        A, _ = spectral(rng, log_uniform(rng, n, 100.0))
        inverse, _ = spectral(rng, log_uniform(rng, n, 10.0))
        b, xs = rng.normal(size=n), []
        scipy_cg(
            A, b, rtol=1e-10, atol=0.0, maxiter=min(n - 1, 5), M=inverse, callback=lambda x, xs=xs: xs.append(1 * x)
        )
        for mine, x in zip(iterates(A, b, len(xs), preconditioner=lambda r, W=inverse: W @ r), xs, strict=True):
            agree(mine, x, np.linalg.norm(x), 1e-9)


# Right-hand sides of every size


@pytest.mark.parametrize("A", [np.eye(3), np.zeros((3, 3)), -np.eye(3)], ids=["one", "zero", "minus one"])
def test_a_zero_right_hand_side_is_solved_by_zero_without_a_product(A):
    result, p = recorded(A, np.zeros(3))
    np.testing.assert_array_equal(result.x, 0)
    assert (result.residual_norm, result.iterations, result.converged) == (0, 0, True)
    assert not result.nonpositive_curvature
    assert p == []


@MANY
@given(systems(), st.integers(-664, 664), st.integers(-300, 300))
def test_powers_of_two_before_a_and_b_change_neither_steps_nor_digits(s, of_b, of_A):
    # 2^664 ≈ 1e200; the scale of b is divided out.
    plain, scaled = solve(s.A, s.b), solve(2.0**of_A * s.A, 2.0**of_b * s.b)
    np.testing.assert_array_equal(scaled.x, 2.0 ** (of_b - of_A) * plain.x)
    assert scaled.residual_norm == 2.0**of_b * plain.residual_norm
    assert scaled.iterations == plain.iterations
    assert scaled.converged


@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e160, 1e200])
def test_huge_and_tiny_right_hand_sides_are_solved_like_others(size):
    A, b = np.array([[4.0, 1.0], [1.0, 3.0]]), np.array([1.0, 2.0])
    result = solve(A, size * b)
    np.testing.assert_allclose(result.x / size, [1 / 11, 7 / 11], rtol=1e-14)
    assert (result.iterations, result.converged) == (2, True)
    assert solve(A, size * b, max_iter=1).residual_norm / size == pytest.approx(np.sqrt(5) / 4)
    assert solve(np.diag([1.0, 0.0]), size * np.ones(2)).nonpositive_curvature


def test_a_product_may_return_its_argument_and_b_is_left_alone():
    b = np.array([1.0, -2.0, 3.0])
    result = conjugate_gradient(lambda v: v, b, max_iter=3, tol=1e-12, preconditioner=lambda r: r)
    np.testing.assert_array_equal(result.x, [1, -2, 3])
    assert (result.iterations, result.converged) == (1, True)
    result.x[:] = 0
    np.testing.assert_array_equal(b, [1, -2, 3])


def test_the_right_hand_side_may_be_a_list_of_integers():
    np.testing.assert_allclose(solve(np.diag([1.0, 2.0]), [1, 4]).x, [1, 2], rtol=1e-14)


# Singular and indefinite matrices


@pytest.mark.equation("10.10", defining=True)
@MANY
@given(S.generators, st.integers(1, 20), st.integers(1, 20), st.floats(0, 4))
def test_a_singular_consistent_system_converges_to_the_smallest_solution_within_the_range(rng, rank, zeros, exponent):
    lam = log_uniform(rng, rank, 10.0**exponent)
    A, Q = spectral(rng, np.concatenate([lam, np.zeros(zeros)]))
    exact = Q[:, :rank] @ rng.normal(size=rank)
    b, c, tol = A @ exact, lam.max() / lam.min(), 1e-10
    result = solve(A, b, tol=tol)
    assert result.converged
    assert not result.nonpositive_curvature
    # Rounding adds n ε ‖A‖ ‖x‖ to the residual a step.
    rounding = 10 * (result.iterations + 1) * len(b) * EPS * c
    pseudo = np.linalg.pinv(A, rcond=1e-9, hermitian=True) @ b
    assert np.linalg.norm(result.x - pseudo) <= c * (tol + rounding) * np.linalg.norm(exact)
    for k in {1, 2, result.iterations}:
        x = solve(A, b, max_iter=k, tol=tol).x
        assert np.linalg.norm(Q[:, rank:].T @ x) <= c * rounding * np.linalg.norm(exact)


@pytest.mark.equation("10.10")
@MANY
@given(systems())
def test_a_singular_consistent_system_has_its_smallest_solution_exactly_in_exact_arithmetic(s):
    A, b = s.exact
    x = textbook(A, b, len(s.visited))[-1][0]
    agree(x.astype(float), s.solution, np.linalg.norm(s.b), 1e-13)
    assert not any(A @ x - b)


@pytest.mark.equation("10.10", "10.11")
def test_the_inconsistent_example_ends_marked_at_two_two():
    result, p = recorded(np.diag([1.0, 0.0]), np.ones(2))
    np.testing.assert_array_equal(result.x, [2, 2])
    np.testing.assert_array_equal(p, [[1, 1], [0, 2]])
    assert (result.iterations, result.converged, result.nonpositive_curvature) == (1, False, True)
    assert result.residual_norm == pytest.approx(np.sqrt(2))


@pytest.mark.equation("10.10", "10.11")
@MANY
@given(systems(consistent=False))
def test_a_singular_inconsistent_system_never_converges_and_ends_marked_after_its_nonzero_eigenvalues(s):
    # In the eigenvectors, where zero eigenvalues are zeros in floating point too.
    A, b, size = np.diag(s.lam.astype(float)), s.parts.astype(float), np.linalg.norm(s.parts)
    result, p = recorded(A, b)
    assert (result.converged, result.nonpositive_curvature) == (False, True)
    assert result.iterations == len(s.visited) == len(p) - 1
    null = np.where(s.lam == 0, b, 0)
    for k, x in enumerate([0 * b, *iterates(A, b, len(s.visited))]):
        r = b - A @ x
        np.testing.assert_array_equal(np.where(s.lam == 0, r, 0), null)
        assert np.linalg.norm(r) >= np.linalg.norm(null)
        assert solve(A, b, max_iter=max(k, 1)).residual_norm >= np.linalg.norm(null) * (1 - TIGHT)
    r = b - A @ result.x
    agree(A @ p[-1], 0, size)
    agree(r @ p[-1], r @ r, size**2)
    np.testing.assert_array_equal(solve(A, b, max_iter=result.iterations).x, result.x)


@pytest.mark.equation("10.10", "10.11")
@MANY
@given(S.generators, st.integers(0, 10), st.integers(1, 10), st.floats(-6, 0))
def test_an_inconsistent_system_of_products_with_a_factor_never_converges(rng, rank, zeros, exponent):
    # A = GᵀG by two products, as Fisher products are: rounding has no part in the null space of G. ``exponent``: down
    # to a part in the range of 1e-6.
    n = rank + zeros
    G = spectral(rng, np.ones(n))[1][:rank] * rng.uniform(0.5, 2.0, size=(rank, 1))
    null = spectral(rng, np.ones(n))[1][0]
    null -= G.T @ np.linalg.lstsq(G.T, null, rcond=None)[0] if rank else 0.0
    assume(np.linalg.norm(null) > 1e-3)
    b = 10.0**exponent * G.T @ rng.normal(size=rank) + null / np.linalg.norm(null)
    result = conjugate_gradient(lambda v: G.T @ (G @ v), b, max_iter=20 * n, tol=1e-10)
    assert (result.converged, result.nonpositive_curvature) == (False, True)
    assert result.residual_norm >= 1 - 1e-6


@pytest.mark.equation("10.9", "10.10", "10.11")
@MANY
@given(S.generators, st.integers(1, 10), st.integers(1, 10))
def test_a_dense_inconsistent_system_never_converges_and_is_marked_unless_x_is_as_long_as_rounding(rng, rank, zeros):
    # The entries of A are rounded, so that a zero eigenvalue is ± ε ‖A‖, and is missed now and then, where the first
    # quotients are small. The recursion may then "converge" to a solution of the rounded system.
    A, Q = spectral(rng, np.concatenate([rng.uniform(0.5, 4.0, rank), np.zeros(zeros)]))
    b = Q @ np.concatenate([10.0 ** rng.uniform(-3, 0) * rng.normal(size=rank), rng.normal(size=zeros)])
    result = solve(A, b, max_iter=20 * len(b), tol=1e-10)
    assert not result.converged
    if not result.nonpositive_curvature:
        part = np.linalg.norm(Q[:, rank:].T @ b)
        assert 100 * len(b) * EPS * np.linalg.norm(A, 2) * np.linalg.norm(result.x) > part


@pytest.mark.equation("10.9", "10.10")
@pytest.mark.parametrize("d", [0.1, 0.01, 0.001, 1e-6])
@pytest.mark.parametrize("v", [(1.0, 3.0), (2.0, 3.0), (3.0, 4.0)])
def test_an_inconsistent_system_that_rounding_makes_solvable_does_not_converge(v, d):
    v = np.array(v)
    A, b = 0.3 * np.outer(v, v), np.array([v[1], -v[0]]) + d * v
    assert not solve(A, b, max_iter=40, tol=1e-10).converged


@pytest.mark.equation("10.9")
def test_a_solution_is_checked_by_one_more_product_to_the_root_of_the_tolerance():
    # The matrix seen by the check differs from that of the steps by ``off``, and so does the true residual.
    d, b, asked = np.array([1.0, 2.0]), np.array([1.0, 2.0]), []

    def matvec(v, off):
        asked.append(v)
        return (d + (off if len(asked) == 3 else 0.0)) * v

    for off, converged in [(0.0, True), (1.5e-4, True), (1.7e-4, False), (10.0, False)]:
        asked.clear()
        result = conjugate_gradient(lambda v, off=off: matvec(v, off), b, max_iter=9, tol=1e-8)
        assert len(asked) == 3
        np.testing.assert_allclose(result.x, [1, 1], rtol=1e-14)
        assert (result.iterations, result.converged, result.nonpositive_curvature) == (2, converged, False)
        assert result.residual_norm == pytest.approx(np.sqrt(2) * off, rel=1e-9, abs=1e-15)
    asked.clear()
    assert conjugate_gradient(lambda v: matvec(v, 1.0), b, max_iter=1, tol=1e-8).residual_norm > 0.1
    assert len(asked) == 1  # nothing to check


@pytest.mark.equation("10.11", defining=True)
@MANY
@given(S.generators, st.integers(1, 6), st.integers(1, 6))
def test_an_indefinite_system_ends_marked_at_the_last_iterate_and_its_quadratic_falls_for_ever(rng, positive, negative):
    lam = np.concatenate([rng.uniform(0.5, 4.0, positive), -rng.uniform(0.5, 4.0, negative)])
    A, Q = spectral(rng, lam)
    b = Q @ (rng.choice([-1, 1], len(lam)) * rng.uniform(0.5, 1.5, len(lam)))
    result, p = recorded(A, b)
    assert (result.converged, result.nonpositive_curvature) == (False, True)
    assert len(p) == result.iterations + 1 <= len(b)
    r, last, q = b - A @ result.x, p[-1], quadratic(A, b)
    assert last @ A @ last <= 0 < r @ last
    assert all(earlier @ A @ earlier > 0 for earlier in p[:-1])
    values = [q(result.x + t * last) for t in (0.0, 1.0, 10.0, 100.0)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    if result.iterations:
        np.testing.assert_array_equal(result.x, solve(A, b, max_iter=result.iterations).x)
        assert not solve(A, b, max_iter=result.iterations).nonpositive_curvature
    else:
        np.testing.assert_array_equal(result.x, 0)


@pytest.mark.equation("10.11")
def test_the_hessian_of_a_divergence_away_from_equality_is_found_to_be_indefinite_after_one_step():
    result, p = recorded(np.array([[1.0, -4.0], [-4.0, 10.0]]), np.array([1.0, 0.0]))
    np.testing.assert_array_equal(result.x, [1, 0])
    np.testing.assert_array_equal(p, [[1, 0], [16, 4]])
    assert (result.residual_norm, result.iterations, result.converged) == (4, 1, False)
    assert result.nonpositive_curvature


@pytest.mark.equation("10.11")
@pytest.mark.parametrize("A", [-np.eye(3), -np.diag([1.0, 2.0, 3.0]), np.zeros((3, 3))], ids=["-I", "negative", "zero"])
def test_a_matrix_without_positive_curvature_is_left_at_zero_marked(A):
    b = np.array([1.0, -2.0, 2.0])
    result, p = recorded(A, b)
    np.testing.assert_array_equal(result.x, 0)
    assert (result.iterations, result.converged, result.nonpositive_curvature) == (0, False, True)
    assert result.residual_norm == pytest.approx(3, rel=4 * EPS)
    np.testing.assert_allclose(p, [b], rtol=4 * EPS)


@pytest.mark.equation("10.11")
@pytest.mark.parametrize(("small", "marked"), [(1e-8, False), (1e-14, False), (1e-17, True), (-1e-8, True)])
def test_a_curvature_counts_as_zero_below_n_epsilon_of_the_largest_so_far(small, marked):
    # The quotients are about 1/2 and ``small``; 2ε/2 = 2.2e-16.
    A = np.diag([1.0, small])
    result = solve(A, np.ones(2), tol=1e-6)
    assert (result.converged, result.nonpositive_curvature) == (not marked, marked)
    np.testing.assert_allclose(result.x, [2, 2] if marked else [1, 1 / small], rtol=1e-6 if marked else 0.1)


@pytest.mark.equation("10.11")
def test_no_positive_definite_system_of_condition_1e8_is_marked():
    rng = np.random.default_rng(11)
    for _ in range(100):
        n = int(rng.integers(2, 41))
        A, _ = spectral(rng, log_uniform(rng, n, 1e8))
        assert not solve(A, rng.normal(size=n), tol=1e-12, max_iter=400).nonpositive_curvature


# Preconditioning


@pytest.mark.equation("10.12", defining=True)
@MANY
@given(systems(), S.generators)
def test_preconditioning_is_the_method_on_the_transformed_system(s, rng):
    n = len(s.b)
    scale = rng.uniform(0.5, 2.0, size=n)  # eigenvalues of M^{-1/2}: the condition number is at most 16 · 8
    root, V = spectral(rng, scale)
    inverse = (V * scale**2) @ V.T
    A, b = root @ s.A @ root, root @ s.b
    size = np.linalg.norm(s.b)
    for k in range(1, len(s.b) + 1):
        mine = solve(s.A, s.b, max_iter=k, tol=1e-7, preconditioner=lambda r: inverse @ r)
        other = solve(A, b, max_iter=k, tol=NEVER)
        if mine.iterations < k:
            break
        agree(mine.x, root @ other.x, size, 1e-7)  # parts of transformed b may be small: no bound as for TIGHT
        agree(mine.residual_norm, np.linalg.norm(s.b - s.A @ mine.x), size, 1e-9)
    result = solve(s.A, s.b, preconditioner=lambda r: inverse @ r)
    assert result.converged
    limit = root @ np.linalg.pinv(A, rcond=1e-9, hermitian=True) @ b  # of least xᵀMx
    agree(result.x, limit, size, 1e-6)


@pytest.mark.equation("10.12")
def test_the_limit_of_a_singular_preconditioned_system_is_shortest_in_the_norm_of_the_preconditioner():
    inverse = np.linalg.inv([[2.0, 1.0], [1.0, 2.0]])
    result = solve(np.diag([1.0, 0.0]), np.array([1.0, 0.0]), preconditioner=lambda r: inverse @ r)
    np.testing.assert_allclose(result.x, [1, -0.5], rtol=1e-14)
    assert result.converged


@pytest.mark.equation("10.12")
@MANY
@given(systems(), S.generators)
def test_the_identity_and_its_multiples_as_preconditioners_change_nothing(s, rng):
    plain = solve(s.A, s.b)
    np.testing.assert_array_equal(solve(s.A, s.b, preconditioner=lambda r: r).x, plain.x)
    multiple = solve(s.A, s.b, preconditioner=lambda r: 7 * r)
    agree(multiple.x, plain.x, np.linalg.norm(s.b))
    assert multiple.iterations == plain.iterations


@pytest.mark.equation("10.12")
@MANY
@given(S.generators, st.integers(2, 30))
def test_jacobi_solves_a_diagonal_system_of_condition_1e20_in_one_step(rng, n):
    d = 10.0 ** rng.permutation(np.linspace(-10, 10, n))
    b = rng.normal(size=n)
    result = conjugate_gradient(lambda v: d * v, b, max_iter=50, tol=1e-12, preconditioner=lambda r: r / d)
    assert (result.iterations, result.converged, result.nonpositive_curvature) == (1, True, False)
    np.testing.assert_allclose(result.x, b / d, rtol=100 * EPS)
    assert n < 5 or not conjugate_gradient(lambda v: d * v, b, max_iter=50, tol=1e-12).converged


@pytest.mark.equation("10.11", "10.12")
def test_the_curvature_of_a_badly_scaled_system_is_judged_in_the_metric_of_the_preconditioner():
    # pᵀAp / pᵀp falls from 1 to 1e-18, pᵀAp / pᵀMp only to the smallest eigenvalue 1 − √2/2 of D^{-1/2}AD^{-1/2}.
    B, d = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]), np.array([1.0, 1e-9, 1e-9])
    A, b = d[:, None] * B * d, np.array([1.0, 0.0, 0.0])
    result = solve(A, b, tol=1e-14, preconditioner=lambda r: r / np.diag(A))
    assert (result.iterations, result.converged, result.nonpositive_curvature) == (3, True, False)
    np.testing.assert_allclose(d * result.x, np.linalg.solve(B, b / d), rtol=1e-10)


@pytest.mark.equation("10.11", "10.12")
@MANY
@given(S.generators, st.integers(1, 6), st.integers(1, 6))
def test_an_indefinite_system_ends_marked_with_a_preconditioner_too(rng, positive, negative):
    A, Q = spectral(rng, np.concatenate([rng.uniform(0.5, 4.0, positive), -rng.uniform(0.5, 4.0, negative)]))
    inverse, _ = spectral(rng, rng.uniform(0.5, 2.0, positive + negative))
    result = solve(A, Q @ rng.choice([-1.0, 1.0], len(A)), tol=1e-7, preconditioner=lambda r: inverse @ r)
    assert (result.converged, result.nonpositive_curvature) == (False, True)


@pytest.mark.equation("10.12")
@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_a_preconditioner_that_is_not_positive_definite_is_an_error(factor):
    with pytest.raises(ValueError, match="preconditioner must be positive definite, got rᵀM⁻¹r = "):
        solve(np.eye(2), np.ones(2), preconditioner=lambda r: factor * r)


@pytest.mark.equation("10.12")
def test_an_indefinite_preconditioner_is_found_at_the_first_residual_that_shows_it():
    # r_0 = (1, 0) does not, r_1 = (0, −1/2) does.
    A, asked = np.array([[2.0, 1.0], [1.0, 2.0]]), []

    def preconditioner(r):
        asked.append(r)
        return r * [1.0, -1.0]

    with pytest.raises(ValueError, match="preconditioner must be positive definite"):
        solve(A, np.array([1.0, 0.0]), preconditioner=preconditioner)
    np.testing.assert_allclose(asked, [[1, 0], [0, -0.5]], atol=1e-15)


# Ascent, damping


@pytest.mark.equation("10.13", defining=True)
@MANY
@given(systems(), st.booleans())
def test_every_iterate_ascends_by_its_curvature_and_more_than_the_one_before(s, preconditioned):
    # Consistent systems; the sum on the right is that of α_i r_iᵀz_i.
    W = 1.0 + np.arange(len(s.b)) / 10
    more = {"preconditioner": lambda r: r / W} if preconditioned else {}
    size = s.b @ s.b
    steps = solve(s.A, s.b, **more).iterations
    p = recorded(s.A, s.b, **more)[1]
    before = total = 0.0
    x = np.zeros_like(s.b)
    for k, x_next in enumerate(iterates(s.A, s.b, steps, **more)):
        r = s.b - s.A @ x
        rz = r @ (r / W if preconditioned else r)
        total += rz**2 / (p[k] @ s.A @ p[k])
        x = x_next
        slope = s.b @ x
        agree([slope, x @ s.A @ x, -2 * quadratic(s.A, s.b)(x)], total, size, 1e-8)
        assert slope > before
        before = slope


@pytest.mark.equation("10.13")
@MANY
@given(S.generators, st.integers(1, 8), st.integers(0, 8), st.integers(0, 8))
def test_iterates_of_any_symmetric_matrix_ascend_until_curvature_ends(rng, positive, zero, negative):
    lam = np.concatenate([rng.uniform(0.5, 4.0, positive), np.zeros(zero), -rng.uniform(0.5, 4.0, negative)])
    A, b = np.diag(lam), rng.normal(size=len(lam))
    steps = solve(A, b, tol=1e-7).iterations
    before = 0.0
    for x in iterates(A, b, steps):
        slope = b @ x
        # x_k is as long as its curvature is small, so that rounding is measured by ‖A‖ ‖x‖².
        agree(x @ A @ x, slope, 4 * (x @ x) + b @ b, 1e-9)
        assert slope > before
        before = slope


@pytest.mark.equation("10.14", defining=True)
@MANY
@given(st.booleans().flatmap(systems), st.floats(-3, 3))
def test_damping_divides_each_part_by_its_eigenvalue_plus_kappa(s, exponent):
    kappa, n = 10.0**exponent, len(s.b)
    damped = s.A + kappa * np.eye(n)
    result = conjugate_gradient(lambda v: s.A @ v + kappa * v, s.b, max_iter=100, tol=1e-12)
    assert result.converged
    u = s.Q @ (s.parts / (s.lam + kappa))
    c = (s.lam.max() + kappa) / (s.lam.min() + kappa)
    assert np.linalg.norm(result.x - u) <= 2 * c * (1e-12 + 100 * n * EPS) * np.linalg.norm(u)
    assert np.linalg.norm(cholesky_solve(damped, s.b) - u) <= 100 * n * EPS * c * np.linalg.norm(u)
    assert np.linalg.cond(damped) == pytest.approx(c, rel=1e-9)
    assert c <= 1 + s.lam.max() / kappa + 1e-12
    assert s.b @ result.x > 0
    assert s.b @ result.x == pytest.approx((s.parts**2 / (s.lam + kappa)).sum(), rel=1e-8)


@pytest.mark.equation("10.14")
@MANY
@given(systems(), st.floats(-4, 4))
def test_damped_solutions_go_from_the_smallest_solution_to_the_direction_of_b(s, exponent):
    kappa = 10.0**exponent
    u = conjugate_gradient(lambda v: s.A @ v + kappa * v, s.b, max_iter=100, tol=1e-13).x
    smallest = s.lam[s.lam > 0].min()
    short = np.linalg.norm(u - s.solution)
    assert short <= (kappa / (smallest + kappa) + 1e-10) * np.linalg.norm(s.solution)
    largest = s.lam.max()
    assert np.linalg.norm(kappa * u - s.b) <= (largest / (largest + kappa) + 1e-10) * np.linalg.norm(s.b)


@pytest.mark.equation("10.14")
@MANY
@given(systems(consistent=False), st.floats(-6, 0))
def test_damping_solves_an_inconsistent_system_by_its_null_part_over_kappa(s, exponent):
    kappa = 10.0**exponent
    u = conjugate_gradient(lambda v: s.A @ v + kappa * v, s.b, max_iter=100, tol=1e-14).x
    null = np.where(s.lam == 0, s.parts, 0)
    agree(np.where(s.lam == 0, s.Q @ u, 0) * kappa, null, np.linalg.norm(null), 1e-7)


@pytest.mark.equation("10.14")
def test_damping_of_a_hundredth_by_a_tenth():
    F, g = np.diag([1.0, 0.01]), np.ones(2)
    assert np.linalg.cond(F) == pytest.approx(100)
    assert np.linalg.cond(F + 0.1 * np.eye(2)) == pytest.approx(10)
    np.testing.assert_allclose(solve(F, g).x, [1, 100], rtol=1e-9)
    for u in (solve(F + 0.1 * np.eye(2), g).x, cholesky_solve(F + 0.1 * np.eye(2), g)):
        np.testing.assert_allclose(u, [1 / 1.1, 1 / 0.11], rtol=1e-9)


# Fisher products


def softmax(k: int, d: int) -> Policy:
    """A linear softmax of k actions on d features that are the observations."""
    return Policy(lambda x: x, Linear(d, k), Categorical(k))


@dataclass(frozen=True)
class Multiplied:
    """A number that counts its multiplications."""

    value: float
    count: list[int]

    def __mul__(self, other: Any) -> "Multiplied":
        self.count[0] += 1
        return Multiplied(self.value * getattr(other, "value", other), self.count)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> "Multiplied":
        return Multiplied(self.value + getattr(other, "value", other), self.count)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Multiplied":
        return Multiplied(self.value - getattr(other, "value", other), self.count)


def counting(v):
    """``v`` as numbers that count, and their common count."""
    count = [0]
    return np.array([Multiplied(value, count) for value in v.ravel()], dtype=object).reshape(v.shape), count


def plain(v):
    return np.array([number.value for number in v])


@pytest.mark.equation("10.15", defining=True)
@pytest.mark.parametrize(("B", "k", "d"), [(7, 3, 5), (14, 3, 5), (7, 3, 10), (1, 2, 1), (4, 6, 3)])
def test_a_fisher_product_takes_as_many_multiplications_as_a_gradient_up_to_2_b_k(B, k, d):
    rng = np.random.default_rng(15)
    policy, n = softmax(k, d), k * d
    theta, v, x, w = rng.normal(size=n), rng.normal(size=n), rng.normal(size=(B, d)), rng.normal(size=B)
    a = rng.integers(k, size=B)
    counted, product = counting(v)
    result = policy.fisher_vector_product(theta, x, counted, w)  # its forward pass is of plain numbers: not counted
    np.testing.assert_allclose(plain(result), policy.fisher_vector_product(theta, x, v, w), rtol=1e-12, atol=1e-14)
    assert product[0] == B * n + 3 * B * k + B * n

    counted, forward = counting(theta)
    policy.model.forward(counted, x)
    counted, backward = counting(w)
    result = policy.weighted_score(theta, x, a, counted)
    np.testing.assert_allclose(plain(result), policy.weighted_score(theta, x, a, w), rtol=1e-12, atol=1e-14)
    assert forward[0] + backward[0] == B * n + B * k + B * n


@dataclass(frozen=True)
class CountingLinear(Linear):
    """A linear model that notes which of its products are asked for."""

    def noted(self, name: str, *args: Any) -> Any:
        self.__dict__.setdefault("calls", []).append(name)
        return getattr(Linear, name)(self, *args)

    def vjp(self, *args: Any) -> Any:
        return self.noted("vjp", *args)

    def jvp(self, *args: Any) -> Any:
        self.__dict__.setdefault("calls", []).append("jvp")
        return Linear.forward(self, args[2], args[1])

    def jacobian(self, *args: Any) -> Any:
        raise AssertionError("no Jacobian is formed")


@pytest.mark.equation("10.15")
def test_conjugate_gradient_takes_one_jvp_and_one_vjp_a_step_and_no_jacobian():
    rng = np.random.default_rng(16)
    model = CountingLinear(4, 3)
    policy, x, theta = Policy(lambda x: x, model, Categorical(3)), rng.normal(size=(50, 4)), rng.normal(size=12)
    a = rng.integers(3, size=50)
    g = policy.weighted_score(theta, x, a, rng.normal(size=50) / 50)
    model.__dict__["calls"].clear()
    result = conjugate_gradient(lambda v: policy.fisher_vector_product(theta, x, v), g, max_iter=20, tol=1e-8)
    assert model.__dict__["calls"] == (result.iterations + 1) * ["jvp", "vjp"]  # the last checks the solution
    # Rank (k − 1) d = 8 of n = 12: as many steps, for g is a sum of scores at the rows of F.
    assert (result.iterations, result.converged) == (8, True)
    F = sum(
        np.kron(np.diag(p) - np.outer(p, p), np.outer(row, row)) / 50
        for row, p in ((row, np.exp(theta.reshape(3, 4) @ row)) for row in x)
        for p in (p / p.sum(),)
    )
    np.testing.assert_allclose(F @ result.x, g, atol=1e-7 * np.linalg.norm(g))
    np.testing.assert_allclose(result.x.reshape(3, 4).sum(axis=0), 0, atol=1e-10 * np.linalg.norm(result.x))


@pytest.mark.equation("10.15")
@pytest.mark.parametrize(("B", "d"), [(1000, 100), (1000, 800), (8000, 100)])
def test_the_memory_of_conjugate_gradient_is_a_few_arrays_of_b_k_and_of_n_numbers(B, d):
    rng = np.random.default_rng(17)
    k = 4
    policy, n = softmax(k, d), k * d
    x, theta, v = rng.normal(size=(B, d)), rng.normal(size=n) / np.sqrt(d), rng.normal(size=n)
    g = policy.fisher_vector_product(theta, x, v)
    tracemalloc.start()
    result = conjugate_gradient(
        lambda v: policy.fisher_vector_product(theta, x, v) + 0.01 * v, g, max_iter=10, tol=1e-15
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.iterations == 10
    few = 12 * (B * k + n) * 8
    assert peak < few
    assert few < B * n * 8 / 4  # what a matrix of scores takes, and a Fisher matrix
    assert n < 1000 or few < n * n * 8 / 4


# The direct solution


@pytest.mark.equation("10.16")
@given(S.instances(), st.floats(-3, 1))
def test_cholesky_and_converged_conjugate_gradient_solve_the_same_damped_fisher_system(i, exponent):
    p, kappa, tol = i.policy, 10.0**exponent, 1e-13
    n = p.n_params
    g = p.weighted_score(i.theta, i.x, i.a, i.w / len(i.w))
    damped = p.fisher(i.theta, i.x) + kappa * np.eye(n)
    direct = cholesky_solve(damped, g)
    result = conjugate_gradient(
        lambda v: p.fisher_vector_product(i.theta, i.x, v) + kappa * v, g, max_iter=100 * n, tol=tol
    )
    assert result.converged
    c = np.linalg.cond(damped)
    allowed = c * (tol + 10 * (result.iterations + n) * n * EPS * max(c, 1)) * np.linalg.norm(direct)
    assert np.linalg.norm(direct - result.x) <= allowed
    assert np.linalg.norm(damped @ direct - g) <= 100 * n * EPS * np.linalg.norm(damped, 2) * np.linalg.norm(direct)


@pytest.mark.equation("10.10", "10.16")
def test_undamped_conjugate_gradient_is_the_solution_through_the_eigenvalues_of_the_fisher_matrix():
    rng = np.random.default_rng(18)
    for _ in range(50):
        k, d = int(rng.integers(2, 5)), int(rng.integers(1, 5))
        policy, B = softmax(k, d), 50
        x, theta = rng.normal(size=(B, d)), rng.normal(size=k * d)
        g = policy.weighted_score(theta, x, policy.sample(theta, x, rng), rng.normal(size=B) / B)
        F = policy.fisher(theta, x)
        lam, V = np.linalg.eigh(F)
        nonzero = lam > 1e-12 * lam.max()
        assert nonzero.sum() == (k - 1) * d
        natural = V[:, nonzero] @ ((V[:, nonzero].T @ g) / lam[nonzero])
        result = conjugate_gradient(
            lambda v, x=x, theta=theta, policy=policy: policy.fisher_vector_product(theta, x, v),
            g,
            max_iter=200,
            tol=1e-11,
        )
        assert result.converged
        c = lam.max() / lam[nonzero].min()
        agree(result.x, natural, np.linalg.norm(natural), c * 1e-11 + 1e-13 * c)
        with pytest.raises(ValueError, match="A must be positive definite"):
            cholesky_solve(F - 1e-12 * lam.max() * np.eye(k * d), g)
        # A pull on the parameters themselves is no sum of scores: it takes the system out of the range.
        pulled = g - 0.1 * (1 + theta)
        inconsistent = conjugate_gradient(
            lambda v, x=x, theta=theta, policy=policy: policy.fisher_vector_product(theta, x, v),
            pulled,
            max_iter=200,
            tol=1e-10,
        )
        assert (inconsistent.converged, inconsistent.nonpositive_curvature) == (False, True)
        assert inconsistent.residual_norm >= np.linalg.norm(V[:, ~nonzero].T @ pulled) * (1 - 1e-9)


@pytest.mark.equation("10.16", defining=True)
@pytest.mark.parametrize(("B", "k", "d"), [(500, 40, 30), (2000, 40, 30), (10_000, 40, 25)])
def test_forming_and_factoring_costs_as_much_as_n_over_4_plus_n_squared_over_12_b_products(B, k, d):
    n = k * d
    blocks = k * (k + 1) // 2 * B * d * d
    # Column j divides n − j numbers by the pivot and updates the triangle to its right.
    factoring = sum((n - j) + (n - j) * (n - j + 1) // 2 for j in range(1, n + 1))
    steps = (blocks + factoring) / (2 * B * n)
    assert steps == pytest.approx(n / 4 + n**2 / (12 * B), rel=2 / k)  # to leading order
    assert (B, n) != (10_000, 1000) or round(n / 4 + n**2 / (12 * B)) == 258


@MANY
@given(S.generators, st.integers(1, 20), st.floats(0, 8))
def test_cholesky_solves_to_the_condition_number_and_leaves_its_arguments_alone(rng, n, exponent):
    A, _ = spectral(rng, log_uniform(rng, n, 10.0**exponent))
    exact = rng.normal(size=n)
    b = A @ exact
    A_before, b_before = A.copy(), b.copy()
    x = cholesky_solve(A, b)
    assert np.linalg.norm(x - exact) <= 10 * n * EPS * 10.0**exponent * np.linalg.norm(exact)
    np.testing.assert_array_equal(A, A_before)
    np.testing.assert_array_equal(b, b_before)


@pytest.mark.parametrize(
    "A", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]]], ids=["±", "singular", "-"]
)
def test_a_matrix_that_is_not_positive_definite_is_not_factored(A):
    with pytest.raises(ValueError, match=r"A must be positive definite .* add more damping"):
        cholesky_solve(np.array(A), np.ones(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_direct_solution_of_numbers_that_are_not_finite_is_an_error(bad):
    for A, b in [(np.diag([1.0, bad]), np.ones(2)), (np.eye(2), np.array([1.0, bad]))]:
        with pytest.raises(FloatingPointError, match="not finite"):
            cholesky_solve(A, b)


# Errors of conjugate gradient


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_product_that_is_not_finite_is_an_error_at_once(bad, at):
    d = np.array([1.0, 2.0, 3.0])

    def failing(of):
        calls = []

        def product(v):
            calls.append(v)
            return of(v) if len(calls) <= at else of(v) * [1.0, bad, 1.0]

        return product

    with pytest.raises(FloatingPointError, match="matvec returned numbers that are not finite"):
        conjugate_gradient(failing(lambda v: d * v), np.ones(3), max_iter=9, tol=1e-12)
    with pytest.raises(FloatingPointError, match="preconditioner returned numbers that are not finite"):
        conjugate_gradient(
            lambda v: d * v, np.ones(3), max_iter=9, tol=1e-12, preconditioner=failing(lambda r: r / (1 + d))
        )


@pytest.mark.parametrize("wrong", [lambda v: v[:1], lambda v: v[:, None], lambda v: 1.0, lambda v: np.append(v, 0.0)])
def test_a_product_of_another_shape_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"matvec must return shape \(2,\), that of b, got "):
        conjugate_gradient(wrong, np.ones(2), max_iter=1, tol=1e-9)
    with pytest.raises(ValueError, match=r"preconditioner must return shape \(2,\), that of b, got "):
        conjugate_gradient(lambda v: v, np.ones(2), max_iter=1, tol=1e-9, preconditioner=wrong)


@pytest.mark.parametrize("b", [1.0, np.ones((2, 1)), np.ones((1, 2))])
def test_a_right_hand_side_that_is_no_vector_is_an_error(b):
    with pytest.raises(ValueError, match="b must be a vector, got shape"):
        conjugate_gradient(lambda v: v, b, max_iter=1, tol=1e-9)


@pytest.mark.parametrize("b", [[1.0, np.nan], [np.inf, 1.0]])
def test_a_right_hand_side_that_is_not_finite_is_told_from_a_bad_argument(b):
    with pytest.raises(FloatingPointError, match=r"right-hand side .* not finite"):
        conjugate_gradient(lambda v: v, b, max_iter=1, tol=1e-9)


@pytest.mark.parametrize(("A", "b"), [(np.eye(3), np.ones(2)), (np.eye(2), np.ones((2, 1))), (np.ones(2), np.ones(2))])
def test_a_matrix_and_a_right_hand_side_that_do_not_go_together_are_an_error(A, b):
    with pytest.raises(ValueError, match=r"A and b must have shapes \(n, n\) and \(n,\)"):
        cholesky_solve(A, b)


@pytest.mark.parametrize("max_iter", [0, -1, 2.0, True, None, "3", np.inf])
def test_max_iter_is_a_positive_integer(max_iter):
    with pytest.raises(ValueError, match="max_iter must be an integer of at least 1"):
        conjugate_gradient(lambda v: v, np.ones(2), max_iter=max_iter, tol=1e-9)


@pytest.mark.parametrize("tol", [0, -1e-9, np.nan, np.inf, True, None, "1e-9"])
def test_tol_is_a_positive_number(tol):
    with pytest.raises(ValueError, match="tol must be a positive number"):
        conjugate_gradient(lambda v: v, np.ones(2), max_iter=1, tol=tol)


# The line search

X, STEP = np.array([0.0, 0.0]), np.array([1.0, -2.0])
UNUSUAL = [np.nan, np.inf, -np.inf]


def search(f, slope=1.0, constraint=lambda x: 0.0, radius=1.0, x=X, step=STEP, **more):
    return backtracking_line_search(f, x, step, slope, constraint=constraint, radius=radius, **more)


class Table(NamedTuple):
    """What f and the constraint are at x, and at x + c^j Δ for j = 0, 1, …"""

    f: list[float]
    constraint: list[float]
    shrink: float

    def of(self, column: list[float]):
        points = [X, *(X + self.shrink**j * STEP for j in range(len(column) - 1))]
        return lambda x: next(value for value, point in zip(column, points, strict=True) if np.array_equal(x, point))


@st.composite
def tables(draw: Any) -> Table:
    length = draw(st.integers(1, 6))
    values = st.lists(st.floats(-2, 2) | st.sampled_from(UNUSUAL), min_size=length, max_size=length)
    bounds = st.lists(st.floats(0, 1.5) | st.sampled_from(UNUSUAL), min_size=length, max_size=length)
    shrink = draw(st.sampled_from([0.25, 0.5, 0.75]))  # their powers are exact
    return Table([draw(st.floats(-2, 2)), *draw(values)], [0.0, *draw(bounds)], shrink)


def first_accepted(table, slope, radius, sufficient):
    """j, by the definition; None if there is none."""
    for j, (value, bound) in enumerate(zip(table.f[1:], table.constraint[1:], strict=True)):
        gain = value - table.f[0]
        tests = [np.isfinite(value), gain > 0, gain >= sufficient * table.shrink**j * slope, bound <= radius, slope > 0]
        if all(tests):
            return j
    return None


@pytest.mark.equation("11.5", defining=True)
@MANY
@given(tables(), st.floats(-0.5, 3) | st.just(np.nan), st.floats(0, 1.5), st.floats(0.01, 0.99))
def test_the_first_fraction_that_meets_all_three_tests_is_taken(table, slope, radius, sufficient):
    most = len(table.f) - 2
    found = search(
        table.of(table.f),
        slope,
        table.of(table.constraint),
        radius,
        sufficient=sufficient,
        shrink=table.shrink,
        max_backtracks=most,
    )
    j = first_accepted(table, slope, radius, sufficient)
    assert found.accepted == (j is not None)
    if j is None:
        np.testing.assert_array_equal(found.x, X)
        tried = most if slope > 0 else 0
        assert (found.improvement, found.constraint, found.backtracks) == (0.0, table.constraint[0], tried)
    else:
        np.testing.assert_array_equal(found.x, X + table.shrink**j * STEP)
        expected = (table.f[j + 1] - table.f[0], table.constraint[j + 1], j)
        assert (found.improvement, found.constraint, found.backtracks) == expected
        assert found.improvement > 0
        assert found.constraint <= radius


@pytest.mark.equation("11.5")
@MANY
@given(S.generators, st.integers(1, 5), st.floats(0.05, 0.95), st.floats(0.1, 0.9), st.floats(-4, 1))
def test_a_smooth_function_accepts_as_soon_as_the_step_is_small_enough(rng, n, sufficient, shrink, exponent):
    # For f = gᵀd − ½dᵀHd and ½dᵀFd ≤ δ at d = tΔ the tests are t ≤ 2(1 − η) gᵀΔ / ΔᵀHΔ and t ≤ √(2δ / ΔᵀFΔ).
    H, F = spectral(rng, rng.normal(size=n))[0], spectral(rng, rng.uniform(0.1, 3.0, n))[0]
    x, g, step, delta = rng.normal(size=n), rng.normal(size=n), rng.normal(size=n), 10.0**exponent
    step *= np.sign(g @ step)
    assume(g @ step > 1e-3)
    found = search(
        lambda y: g @ (y - x) - (y - x) @ H @ (y - x) / 2,
        g @ step,
        lambda y: (y - x) @ F @ (y - x) / 2,
        delta,
        x,
        step,
        sufficient=sufficient,
        shrink=shrink,
        max_backtracks=500,
    )
    bounds = [np.sqrt(2 * delta / (step @ F @ step))]
    if step @ H @ step > 0:
        bounds.append(2 * (1 - sufficient) * (g @ step) / (step @ H @ step))
    ideal = max(0.0, np.log(min(bounds)) / np.log(shrink))
    assert found.accepted
    assert found.backtracks == pytest.approx(np.ceil(ideal), abs=1e-9) or abs(ideal - round(ideal)) < 1e-6
    np.testing.assert_allclose(found.x, x + shrink**found.backtracks * step, rtol=1e-11, atol=1e-13)


@pytest.mark.equation("11.5")
@given(S.instances(), st.floats(-3, 0))
def test_a_natural_step_of_a_policy_is_accepted_within_the_radius(i, exponent):
    L, delta = Surrogate(i.policy, i.theta, i.x, i.a, i.w), 10.0**exponent
    g = L.gradient(i.theta)
    assume(np.linalg.norm(g) > 1e-3)
    u = conjugate_gradient(
        lambda v: i.policy.fisher_vector_product(i.theta, i.x, v) + 0.01 * v, g, max_iter=10, tol=1e-8
    ).x
    step = kl_step(u, i.policy.fisher_vector_product(i.theta, i.x, u), delta)
    found = search(L.value, float(g @ step), L.kl, delta, i.theta, step, max_backtracks=40)
    assert found.accepted
    assert L.kl(found.x) == found.constraint <= delta
    assert L.value(found.x) - L.value(i.theta) == found.improvement
    assert found.improvement >= 0.1 * 0.5**found.backtracks * (g @ step) > 0


@pytest.mark.equation("11.5")
@pytest.mark.parametrize(
    ("p", "full", "backtracks", "taken"),
    [
        (0.05, 0.01221, 1, 0.00276),
        (0.5, 0.00997, 0, 0.00997),
        (0.95, 0.00829, 0, 0.00829),
        (0.001, 0.0787, 1, 0.00609),
        (0.24, 0.01056, 1, 0.00257),
    ],
)
def test_two_actions_and_a_radius_of_a_hundredth(p, full, backtracks, taken):
    # The logit of the action whose advantage is 1; F = p(1 − p), the surrogate is the new probability.
    def probability(theta):
        return 1 / (1 + np.exp(-theta[0]))

    def kl(theta):
        q = probability(theta)
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    theta, step = np.log([p / (1 - p)]), np.sqrt([0.02 / (p * (1 - p))])
    assert kl(theta + step) == pytest.approx(full, rel=1e-3)
    found = search(probability, p * (1 - p) * step[0], kl, 0.01, theta, step)
    assert (found.accepted, found.backtracks) == (True, backtracks)
    assert found.constraint == pytest.approx(taken, rel=2e-3)
    if p == 0.24:
        assert probability(found.x) == pytest.approx(0.27148, abs=5e-6)
        assert found.improvement / (0.5 * p * (1 - p) * step[0]) == pytest.approx(1.042, abs=5e-4)


@pytest.mark.equation("11.5")
@pytest.mark.parametrize("slope", [0.0, -1.0, np.nan, -np.inf])
def test_nothing_is_tried_along_a_step_that_does_not_ascend(slope):
    asked = []

    def f(x):
        asked.append(x)
        return float(x @ x)  # higher everywhere else

    found = search(f, slope, lambda x: 0.25)
    assert (found.accepted, found.improvement, found.constraint) == (False, 0.0, 0.25)
    np.testing.assert_array_equal(found.x, X)
    assert all(np.array_equal(x, X) for x in asked)


@pytest.mark.equation("11.5")
def test_a_candidate_that_is_no_better_is_refused_where_the_sufficient_improvement_rounds_to_zero():
    assert not search(lambda x: 1.0, 5e-324, sufficient=0.1).accepted
    assert not search(lambda x: 1.0, 1e-17).accepted
    assert search(lambda x: 1.0 + (x[0] > 0) * 1e-15, 5e-324, sufficient=0.1).accepted


@pytest.mark.equation("11.5")
def test_the_constraint_may_be_met_with_equality_and_is_not_exceeded():
    assert search(lambda x: x[0], constraint=lambda x: x[0], radius=1.0).backtracks == 0
    assert search(lambda x: x[0], constraint=lambda x: x[0], radius=np.nextafter(1.0, 0)).backtracks == 1
    assert not search(lambda x: x[0], constraint=lambda x: x[0], radius=0.0).accepted
    assert search(lambda x: x[0], constraint=lambda x: 0.0, radius=0.0).accepted


@pytest.mark.equation("11.5")
@pytest.mark.parametrize("most", [0, 1, 7])
def test_a_search_tries_as_many_fractions_as_it_may_and_then_stays(most):
    asked = []

    def f(x):
        asked.append(x.copy())
        return -float(x[0])

    found = search(f, max_backtracks=most, shrink=0.25)
    np.testing.assert_array_equal(asked[0], X)
    np.testing.assert_array_equal(asked[1:], [0.25**j * STEP for j in range(most + 1)])
    assert (found.accepted, found.backtracks, found.improvement) == (False, most, 0.0)
    np.testing.assert_array_equal(found.x, X)


def test_settings_of_the_search_are_one_tenth_one_half_and_ten():
    assert search(lambda x: 0.1 * x[0]).accepted
    assert not search(lambda x: 0.0999 * x[0]).accepted
    assert search(lambda x: x[0], constraint=lambda x: x[0], radius=0.5**10).backtracks == 10
    assert not search(lambda x: x[0], constraint=lambda x: x[0], radius=0.4**10).accepted


@pytest.mark.parametrize("name", ["sufficient", "shrink"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, np.nan, np.inf, None, "0.5", True])
def test_fractions_lie_between_zero_and_one(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in \(0, 1\), got "):
        search(lambda x: 0.0, **{name: value})


@pytest.mark.parametrize("radius", [-1e-9, np.nan, np.inf, None, "1", True])
def test_the_radius_is_a_number_of_at_least_zero(radius):
    with pytest.raises(ValueError, match="radius must be a number of at least 0, got "):
        search(lambda x: 0.0, radius=radius)


@pytest.mark.parametrize("step", [np.ones(3), np.ones((2, 1)), 1.0])
def test_a_step_of_another_shape_is_an_error(step):
    with pytest.raises(ValueError, match=r"step must have shape \(2,\) to go with x, got "):
        search(lambda x: 0.0, step=step)


@pytest.mark.parametrize("most", [-1, 1.0, None, True])
def test_max_backtracks_is_an_integer_of_at_least_zero(most):
    with pytest.raises(ValueError, match="max_backtracks must be an integer of at least 0"):
        search(lambda x: 0.0, max_backtracks=most)
