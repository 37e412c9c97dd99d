"""Baselines that do not depend on the episode they are subtracted in (derivations, chapters 1 and 5)."""

import numpy as np

from ._typing import Array
from .estimators import episode_scores
from .policies import Policy
from .trajectories import Trajectories


def leave_one_out_mean(t: Array, returns: Array, total: bool = False) -> Array:
    """b_{i,t}, the mean of the same return over the other episodes of the batch, Eq. (1.13).

    The mean over all episodes would shrink the gradient by 1 − 1/M, Eq. (1.12).

    Parameters
    ----------
    t : (B,) integers
        Time within the episode, one row per transition, all rows of each episode present.
    returns : (B,)
        The return of each row.
    total : bool
        Whether ``returns`` are total returns, the same on all rows of an episode; otherwise they are
        reward-to-go, and an episode that has ended before t counts with 0, its return from there on.

    Returns
    -------
    (B,)

    Raises
    ------
    ValueError
        If there is only one episode.
    """
    episodes = np.count_nonzero(t == 0)
    if episodes < 2:
        raise ValueError(f"a leave-one-out mean needs at least 2 episodes in a batch, got {episodes}")
    sums = np.bincount(t, weights=returns)
    return ((sums[0] if total else sums[t]) - returns) / (episodes - 1)  # (1.13)


def _sum_of_others(a: Array) -> Array:
    """Σ_{j≠i} a_j of each row, without subtracting: one large a_i would cancel the digits of the rest."""
    sums = np.zeros_like(a)
    sums[1:] += a[:-1].cumsum(axis=0)
    sums[:-1] += a[:0:-1].cumsum(axis=0)[::-1]
    return sums


def optimal_baseline(
    X: Array,
    Psi: Array,
    *,
    probabilities: Array | None = None,
    per_parameter: bool = False,
    leave_one_out: bool = False,
) -> Array:
    """b* = E[X·Ψ]/E‖Ψ‖², which minimises tr Cov(X − bΨ) over constants b where E Ψ = 0, Eq. (5.8).

    Parameters
    ----------
    X : (N, n)
        Estimates without a baseline.
    Psi : (N, n)
        What b multiplies: Σ_t γ^t ψ_t with ``reward_to_go``, Σ_t ψ_t with ``total_return``.
    probabilities : (N,), optional
        Of the trajectories, where they were enumerated; 1/N each by default.
    per_parameter : bool
        b*_j = E[X_j Ψ_j]/E[Ψ_j²], one for each component of θ, Eq. (5.9).
    leave_one_out : bool
        Estimate b_i from the other trajectories, which keeps X_i − b_i Ψ_i unbiased, Eq. (5.10).

    Returns
    -------
    () or (n,), with ``leave_one_out`` (N, 1) or (N, n)
        So that X − b Ψ broadcasts. 0 where the denominator is 0.

    Raises
    ------
    ValueError
        If shapes differ, or ``leave_one_out`` comes with ``probabilities`` or with one trajectory.
    """
    X, Psi = np.asarray(X, dtype=float), np.asarray(Psi, dtype=float)
    N = len(X)
    if X.ndim != 2 or X.shape != Psi.shape or N == 0:
        raise ValueError(f"X and Psi must have one shape (N, n), got {X.shape} and {Psi.shape}")
    if leave_one_out and N < 2:
        raise ValueError(f"leave_one_out needs at least 2 trajectories, got {N}")
    if leave_one_out and probabilities is not None:
        raise ValueError("probabilities must not be given with leave_one_out, which is for sampled trajectories")
    numerator, denominator = X * Psi, Psi * Psi
    if not per_parameter:
        numerator, denominator = (a.sum(axis=1, keepdims=True) for a in (numerator, denominator))
    if leave_one_out:
        numerator, denominator = map(_sum_of_others, (numerator, denominator))  # (5.10)
    else:
        p = np.full(N, 1 / N) if probabilities is None else np.asarray(probabilities)
        numerator, denominator = p @ numerator, p @ denominator
    b = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)  # (5.8), (5.9)
    return b if per_parameter or leave_one_out else b[0]


def optimal_constant(policy: Policy, theta: Array, traj: Trajectories, w: Array, G: Array) -> Array:
    """The constant of least variance for each row of a batch, estimated from the other episodes, Eq. (5.10): (B,).

    Parameters
    ----------
    policy, theta
    traj : Trajectories
        Whole episodes, with B valid rows.
    w, G : (B,)
        The estimate of an episode is Σ_t w_t ψ_t G_t, of which Σ_t w_t ψ_t b is subtracted.
    """
    x, a, episode = traj.rows(traj.episodes())
    X, Psi = (episode_scores(policy, theta, x, a, weight, episode) for weight in (w * G, w))
    return optimal_baseline(X, Psi, leave_one_out=True)[episode, 0]
