"""The surrogate objectives of a batch with their gradients, and the natural step on it (derivations, chapters 9, 11).

Rows i = 1, …, B hold a state, an action of the old policy and an estimate Â of its advantage. Every mean is over rows,
so states count as often as they were visited.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ._checks import is_number
from ._typing import Array, Inputs, Rng
from .features import rows
from .optimizers import kl_step
from .policies import Policy

MAX_LOG_RATIO = 700.0
"""Larger ratios would be infinite, and infinity times an advantage of 0 no number."""


@dataclass(frozen=True, eq=False)
class Surrogate:
    """L(θ) = (1/B) Σ ρ_i(θ) Â_i and D̄(θ_old, θ) = (1/B) Σ KL(π_old(·|s_i) ‖ π_θ(·|s_i)).

    ``surrogate[index]`` is that of some rows, given by an array of their numbers, a mask or a slice.

    Parameters
    ----------
    policy : Policy
    theta_old : (n,)
        The policy that chose the actions.
    x : B rows
        Features of the states.
    a : (B,) or (B, m)
    A : (B,)
        Â.

    Raises
    ------
    ValueError
        Unless there is at least one row and Â is one number for each.
    """

    policy: Policy
    theta_old: Array
    x: Inputs
    a: Array
    A: Array

    def __post_init__(self) -> None:
        if not len(self.a) or np.shape(self.A) != (len(self.a),):
            raise ValueError(
                f"A must have shape ({len(self.a)},) to go with a, at least one row, got {np.shape(self.A)}"
            )

    def __getitem__(self, index: Array) -> "Surrogate":
        return Surrogate(self.policy, self.theta_old, rows(self.x, index), self.a[index], self.A[index])

    @cached_property
    def _log_p(self) -> Array:
        return self.policy.log_prob(self.theta_old, self.x, self.a)

    def ratio(self, theta: Array) -> Array:
        """ρ_i(θ) = π_θ(a_i|s_i) / π_old(a_i|s_i), Eq. (11.1), at most about 1e304: (B,)."""
        return np.exp(np.minimum(self.policy.log_prob(theta, self.x, self.a) - self._log_p, MAX_LOG_RATIO))  # (11.1)

    def value(self, theta: Array, epsilon: float = np.inf) -> float:
        """L(θ), Eq. (11.2); with ε, L^clip(θ) = (1/B) Σ min(ρÂ, clip(ρ, 1 − ε, 1 + ε) Â), Eqs. (11.7), (11.8)."""
        _check_clip(epsilon)
        rho = self.ratio(theta)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.minimum(rho * self.A, rho.clip(1 - epsilon, 1 + epsilon) * self.A).mean()  # (11.2), (11.7)

    def gradient(self, theta: Array, epsilon: float = np.inf) -> Array:
        """∇L = (1/B) Σ ρ Â ∇log π, without the rows that are clipped, Eqs. (11.2), (11.9): (n,).

        A row is clipped if Â > 0 and ρ > 1 + ε, or Â < 0 and ρ < 1 − ε. At a kink, where ρ equals the bound, this is
        the one-sided derivative from inside.
        """
        _check_clip(epsilon)
        rho = self.ratio(theta)
        inside = np.where(self.A > 0, rho <= 1 + epsilon, rho >= 1 - epsilon)  # (11.8)
        with np.errstate(over="ignore"):
            weight = np.where(inside, rho, 0.0) * self.A / len(self.A)  # (11.9)
        return self.policy.weighted_score(theta, self.x, self.a, weight)

    def kl(self, theta: Array) -> float:
        """D̄(θ_old, θ) in nats, Eqs. (9.5), (11.6)."""
        return self.policy.kl(self.theta_old, theta, self.x).mean()  # (9.5)

    def kl_gradient(self, theta: Array) -> Array:
        """∇_θ D̄(θ_old, θ), Eq. (11.6): (n,)."""
        B = len(self.A)
        return self.policy.kl_grad(self.theta_old, theta, self.x, np.full(B, 1 / B))  # (11.6)


def natural_step(policy: Policy, theta: Array, x: Inputs, u: Array, delta: float | None, alpha: float) -> Array:
    """θ + Δ with Δ of radius δ along u, ½ΔᵀFΔ = δ, Eq. (9.7), F of the rows x; without δ, θ + αu, Eq. (9.6): (n,).

    (9.7) is of second order. Near a deterministic policy, where that says little, Δ is halved until the mean divergence
    KL(π_θ‖π_{θ+Δ}) is at most 2δ.
    """
    if delta is None:
        return theta + alpha * u
    step = kl_step(u, policy.fisher_vector_product(theta, x, u), delta)  # (9.7)
    with np.errstate(over="ignore", invalid="ignore"):
        while np.isfinite(step).all() and not policy.kl(theta, theta + step, x).mean() <= 2 * delta:
            step = step / 2
    return theta + step


def _check_clip(epsilon: float) -> None:
    if not (epsilon == np.inf or (is_number(epsilon) and epsilon > 0)):
        raise ValueError(f"epsilon must be a positive number or inf, got {epsilon!r}")


def minibatches(rng: Rng, n: int, size: int) -> Iterator[Array]:
    """The numbers 0, …, n − 1 in random order, in parts as equal as can be, of about ``size`` each."""
    yield from np.array_split(rng.permutation(n), max(round(n / size), 1))
