"""The discounted linear-quadratic regulator, the continuous problem that is solved exactly (derivations, chapter 4).

    s' = A s + B a + ε,  ε ~ N(0, W)        r = −(sᵀQ s + aᵀR a)        a ~ N(K s, diag(σ²))

Shapes: states (d,), actions (m,), gain ``K`` (m, d), ``sigma`` (m,).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import linalg

from ._checks import has_shape, is_number
from ._typing import Array
from .features import Affine, Constant
from .policies import GaussianLinear, Policy


def _one() -> Array:
    return np.eye(1)


@dataclass(frozen=True, eq=False)
class LQR:
    """A discounted linear-quadratic problem with its closed forms, Eq. (4.18).

    Parameters
    ----------
    A : (d, d)
    B : (d, m)
    Q : (d, d)
        Cost of states, symmetric without negative eigenvalues.
    R : (m, m)
        Cost of actions, likewise.
    W : (d, d), optional
        Covariance of the noise; none by default.
    S0 : (d, d), optional
        Second moment of the first state, which is N(0, S0); the identity by default.
    gamma : float
        Discount γ in [0, 1).

    Raises
    ------
    ValueError
        If shapes disagree, Q, R, W or S0 is not symmetric or has a negative eigenvalue, or γ is out of range. Every
        method that takes ``K, sigma`` raises it unless γ ρ(A + BK)² < 1, Eq. (4.20), and unless σ is positive.

    Notes
    -----
    By default the problem of the lecture, s' = s + a and r = −s² − a², Eq. (4.25).
    """

    A: Array = field(default_factory=_one)
    B: Array = field(default_factory=_one)
    Q: Array = field(default_factory=_one)
    R: Array = field(default_factory=_one)
    W: Array = None  # type: ignore[assignment]
    S0: Array = None  # type: ignore[assignment]
    gamma: float = 0.9

    def __post_init__(self) -> None:
        if np.ndim(self.B) != 2 or 0 in np.shape(self.B):
            raise ValueError(f"B must have shape (d, m), got {np.shape(self.B)}")
        d, m = np.shape(self.B)
        defaults = {"W": np.zeros((d, d)), "S0": np.eye(d)}
        shapes = {"A": (d, d), "B": (d, m), "Q": (d, d), "R": (m, m), "W": (d, d), "S0": (d, d)}
        for name, shape in shapes.items():
            given = getattr(self, name)
            value = np.array(defaults[name] if given is None else given, dtype=float)
            has_shape(name, value, shape, "B")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite, got {value}")
            if name in ("Q", "R", "W", "S0") and (np.abs(value - value.T) > 1e-12 * np.abs(value)).any():
                raise ValueError(f"{name} must be symmetric, got {value}")
            if name in ("Q", "R", "W", "S0") and np.linalg.eigvalsh(value)[0] < -1e-12 * np.abs(value).max():
                raise ValueError(f"{name} must have no negative eigenvalues, got {value}")
            object.__setattr__(self, name, value)
        if not (is_number(self.gamma) and 0 <= self.gamma < 1):
            raise ValueError(f"gamma must be a number in [0, 1), got {self.gamma!r}")

    def policy(self) -> Policy:
        """Gaussian with mean K s and constant log σ; θ = [K.ravel(), log σ]."""
        d, m = self.B.shape
        return GaussianLinear(Affine(d, scale=1.0, bias=False), Constant(), m)

    def _closed_loop(self, K: Array, sigma: Array) -> tuple[Array, Array, Array, Array]:
        """K, σ, M = A + B K and the covariance B Σ Bᵀ + W of s' given s, checked."""
        K, sigma = np.asarray(K), np.asarray(sigma)
        m, d = self.B.T.shape
        if K.shape != (m, d) or sigma.shape != (m,):
            raise ValueError(f"K and sigma must have shapes {(m, d)} and {(m,)}, got {K.shape} and {sigma.shape}")
        if not np.isfinite(K).all():
            raise ValueError(f"K must be finite, got {K.tolist()}")
        if not (sigma.real > 0).all():
            raise ValueError(f"sigma must be positive, got {sigma}")
        M = self.A + self.B @ K  # (4.18)
        growth = self.gamma * np.abs(np.linalg.eigvals(M)).max() ** 2  # (4.20)
        if not growth < 1:
            raise ValueError(
                f"K = {K.tolist()} is unstable: γ ρ(A + BK)² must be below 1 for J to be finite, got {growth:g}"
            )
        return K, sigma, M, (self.B * sigma**2) @ self.B.T + self.W

    def _discounted(self, M: Array, C: Array) -> Array:
        """The solution of X = C + γ M X Mᵀ."""
        d = len(M)
        kron = (M.reshape(d, 1, d, 1) * M.reshape(1, d, 1, d)).reshape(d * d, d * d)  # np.kron(M, M), which is slow
        return linalg.solve(np.eye(d * d) - self.gamma * kron, C.ravel()).reshape(d, d)

    def value_matrix(self, K: Array, sigma: Array) -> tuple[Array, Any]:
        """V (d, d) and c of v(s) = −sᵀV s − c, Eq. (4.19)."""
        K, sigma, M, noise = self._closed_loop(K, sigma)
        V = self._discounted(M.T, self.Q + K.T @ self.R @ K)  # (4.19)
        return V, (np.diag(self.R) @ sigma**2 + self.gamma * np.trace(V @ noise)) / (1 - self.gamma)

    def second_moment(self, K: Array, sigma: Array) -> Array:
        """X = Σ_t γ^t E[s_t s_tᵀ], Eq. (4.21): (d, d)."""
        K, sigma, M, noise = self._closed_loop(K, sigma)
        return self._discounted(M, self.S0 + self.gamma / (1 - self.gamma) * noise)  # (4.21)

    def J(self, K: Array, sigma: Array) -> Any:
        """J = −tr(V S_0) − c, Eqs. (4.21), (4.25)."""
        V, c = self.value_matrix(K, sigma)
        return -np.trace(V @ self.S0) - c

    def gradient(self, K: Array, sigma: Array, *, log_sigma: bool = True) -> Array:
        """[∇_K J.ravel(), ∇ J with respect to log σ], or to σ, Eqs. (4.22), (4.23), (4.25): (m d + m,)."""
        E, curvature = self.action_value_matrices(K)
        by_K = -2 * E @ self.second_moment(K, sigma)  # (4.22)
        by_sigma = -2 * np.asarray(sigma) * np.diag(curvature) / (1 - self.gamma)  # (4.23)
        return np.append(by_K, by_sigma * sigma if log_sigma else by_sigma)

    def action_value_matrices(self, K: Array) -> tuple[Array, Array]:
        """E (m, d) and Γ (m, m) of q(s, K s + δ) = v(s) − 2δᵀE s − δᵀΓδ, of the policy a = K s, Eq. (13.4).

        So ∇_a q = −2E s at a = K s, and −2E is the natural gradient, Eq. (13.12). Exploration changes neither.
        """
        V, _ = self.value_matrix(K, np.ones(len(self.R)))
        curvature = self.R + self.gamma * self.B.T @ V @ self.B
        return self.R @ K + self.gamma * self.B.T @ V @ (self.A + self.B @ K), curvature  # (13.4)

    def deterministic_gradient(self, K: Array) -> Array:
        """∇_K J of the policy a = K s, Eqs. (13.3), (13.4): (m, d).

        It is what ``gradient`` has for K in the limit σ → 0, Eq. (13.7), and off from that by cσ², Eq. (13.8).
        """
        K, _, M, _ = self._closed_loop(K, np.ones(len(self.R)))
        X = self._discounted(M, self.S0 + self.gamma / (1 - self.gamma) * self.W)
        return -2 * self.action_value_matrices(K)[0] @ X

    def fisher(self, K: Array, sigma: Array, *, log_sigma: bool = True) -> Array:
        """F under the unnormalised discounted visitation, in the parameters of ``gradient``, Eq. (4.24): (n, n).

        F^{-1}∇J is the same field of policies in either, and the gradient is not, Eq. (9.15).
        """
        X, sigma = self.second_moment(K, sigma), np.asarray(sigma)
        by_sigma = 2 / (1 - self.gamma) * (np.ones_like(sigma) if log_sigma else 1 / sigma**2)
        return linalg.block_diag(np.kron(np.diag(1 / sigma**2), X), np.diag(by_sigma))  # (4.24)

    def optimal_gain(self) -> Array:
        """K of the best policy, from the Riccati equation; the best σ is 0: (m, d).

        Raises
        ------
        ValueError
            If the equation has no solution that makes J finite.
        """
        root = np.sqrt(self.gamma)
        try:
            V = linalg.solve_discrete_are(root * self.A, root * self.B, self.Q, self.R)
        except np.linalg.LinAlgError as error:
            raise ValueError(f"no gain is the best one: {error}") from None
        return -linalg.solve(self.R + self.gamma * self.B.T @ V @ self.B, self.gamma * self.B.T @ V @ self.A)
