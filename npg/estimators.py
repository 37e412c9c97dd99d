"""Gradient estimators, one estimate per trajectory (derivations, chapters 5 and 6).

Each function returns X (N, n), the estimates of ∇J_H from N trajectories; their mean over trajectories is the
estimate, with mean squared error ‖bias‖² + tr Cov(X)/N, Eq. (5.1). Over the columns of
``exact.enumerate_trajectories``, the bias and the covariance are exact. This form is for reading, tests and
statistics per episode: an update of a method needs only the sum, which ``Policy.weighted_score`` makes without
a matrix of scores.

Shapes: T steps, N trajectories, each a column that begins at t = 0 and holds one episode; n parameters.
``psi`` (T, N, n) are the ``scores``, zero after the end, as are rewards; a ``baseline`` broadcasts to (T, N).
"""

import numpy as np

from ._checks import has_shape, unit_interval
from ._typing import Array, Inputs
from .features import rows
from .policies import Policy
from .returns import discounted_returns
from .trajectories import Trajectories


def _on_valid(traj: Trajectories, values: Array, fill: float = 0.0) -> Array:
    """``values``, one per valid row, as (T, N, …).

    Raises
    ------
    ValueError
        Unless each column holds one episode from its first step, which all of this module takes for granted.
    """
    if not np.array_equal(traj.t, np.arange(len(traj.t))[:, None] * traj.valid):
        raise ValueError("an estimator needs one episode in each column, from its first step")
    full = np.full((*traj.valid.shape, *values.shape[1:]), fill)
    full[traj.valid] = values
    return full


def scores(policy: Policy, theta: Array, traj: Trajectories) -> Array:
    """ψ_t = ∇log π_θ(A_t|S_t): (T, N, n).

    Raises
    ------
    ValueError
        Unless each column holds one episode from its first step.
    """
    return _on_valid(traj, policy.score(theta, *traj.rows()))


def _discount(traj: Trajectories, gamma: float) -> Array:
    """γ^t: (T, 1)."""
    unit_interval("gamma", gamma)
    return gamma ** np.arange(len(traj.t))[:, None]


def _returns(traj: Trajectories, gamma: float, ratios: Array | float = 1.0) -> Array:
    return discounted_returns(traj.rewards, traj.terminated, traj.truncated, gamma, ratios=ratios)


def _check_scores(psi: Array, weights: Array) -> None:
    if np.ndim(psi) != 3 or np.shape(weights) != psi.shape[:2]:
        raise ValueError(
            f"psi must have shape (T, N, n) with the trajectories' T and N, {np.shape(weights)}, got {np.shape(psi)}"
        )


def score_sums(psi: Array, weights: Array) -> Array:
    """X = Σ_t w_t ψ_t: (N, n).

    With w_t = γ^t q(S_t, A_t) the return is replaced by its mean given state and action; that cannot raise the
    variance of one term, Eq. (5.11), but can raise that of the sum.

    Parameters
    ----------
    psi : (T, N, n)
    weights : (T, N)
    """
    _check_scores(psi, weights)
    return np.einsum("tn,tnk->nk", weights, psi)


def episode_scores(policy: Policy, theta: Array, x: Inputs, a: Array, w: Array, episode: Array) -> Array:
    """Σ_t w_t ψ_t of each episode, ψ_t = ∇log π_θ(a_t|s_t), without a matrix of all scores: (M, n).

    Parameters
    ----------
    policy, theta
    x, a, w : B rows
        With a weight for each.
    episode : (B,) integers
        The number of each row's episode, 0, …, M − 1.
    """
    sums = np.empty((episode.max() + 1, policy.n_params))
    for i in range(len(sums)):
        of_i = episode == i
        sums[i] = policy.weighted_score(theta, rows(x, of_i), a[of_i], w[of_i])
    return sums


def total_return(psi: Array, traj: Trajectories, gamma: float, baseline: Array | float = 0.0) -> Array:
    """X = (G_0 − b) Σ_t ψ_t, Eqs. (1.5), (5.2): (N, n).

    The baseline is one number for all or one per trajectory, (N,), that depends on nothing after S_0.
    """
    G = _returns(traj, gamma)
    return score_sums(psi, np.broadcast_to(G[0] - baseline, G.shape))  # (1.5), (5.2)


def reward_to_go(psi: Array, traj: Trajectories, gamma: float, baseline: Array | float = 0.0) -> Array:
    """X = Σ_t γ^t ψ_t (G_t − b_t), Eqs. (1.7), (5.3): (N, n).

    Unbiased for every b_t that depends on nothing after S_t, Eq. (1.11). Neither this form nor the total return
    has always the smaller variance, Eq. (5.7).
    """
    return score_sums(psi, _discount(traj, gamma) * (_returns(traj, gamma) - baseline))  # (1.7), (5.3)


def gpomdp(psi: Array, traj: Trajectories, gamma: float, baseline: Array | float = 0.0) -> Array:
    """X = Σ_k γ^k (R_{k+1} − b_k) z_k, z_k = z_{k−1} + ψ_k, Eqs. (5.4), (5.5): (N, n).

    Without b it is ``reward_to_go``, summed as rewards come in (Baxter & Bartlett 2001). A b_k that depends on S_k,
    or is subtracted only until the episode ends, biases it by −∇E[Σ γ^k b_k], Eq. (5.6); constants do not.
    """
    r = _discount(traj, gamma) * (traj.rewards - baseline)
    _check_scores(psi, r)
    X, z = np.zeros((2, *psi.shape[1:]))
    for k in range(len(psi)):
        z += psi[k]
        X += r[k, :, None] * z  # (5.4), (5.5)
    return X


def all_actions(policy: Policy, theta: Array, traj: Trajectories, gamma: float, q: Array) -> Array:
    """X = Σ_t γ^t Σ_a ∇π(a|S_t) q(S_t, a), Eq. (5.14): (N, n).

    Unbiased where q is q_π of the steps to go. For one sampled state, its covariance is at most that of
    ∇log π(A|S) q(S, A), whatever q, Eq. (5.15).

    Parameters
    ----------
    policy, theta, traj, gamma
    q : (T, N, A)
        A value for each action in each visited state.
    """
    x, _, q = traj.rows(q)
    expected = _on_valid(traj, policy.all_actions(theta, x, q))
    return score_sums(expected, np.broadcast_to(_discount(traj, gamma), traj.valid.shape))  # (5.14)


def action_baseline(
    policy: Policy, theta: Array, traj: Trajectories, gamma: float, b: Array, *, corrected: bool = True
) -> Array:
    """X = Σ_t γ^t [ψ_t (G_t − b(S_t, A_t)) + Σ_a ∇π(a|S_t) b(S_t, a)], Eq. (5.13): (N, n).

    Parameters
    ----------
    policy, theta, traj, gamma
    b : (T, N, A)
        The baseline for each action in each visited state.
    corrected : bool
        False leaves the last sum out, and with it the mean is off by Eq. (5.12).
    """
    taken = np.take_along_axis(b, traj.actions[..., None], axis=2)[..., 0]
    X = reward_to_go(scores(policy, theta, traj), traj, gamma, taken)
    return X + all_actions(policy, theta, traj, gamma, b) if corrected else X  # (5.13)


def importance_ratios(policy: Policy, theta: Array, traj: Trajectories, behaviour_log_prob: Array) -> Array:
    """ρ_t = π_θ(A_t|S_t) / b(A_t|S_t), 1 after the end: (T, N).

    The ratio of the probabilities of two trajectories is the product of these, Eq. (6.15). The mean of a product
    is 1, Eq. (6.14), and its second moment grows exponentially with its length, Eq. (6.19).

    Parameters
    ----------
    policy, theta
        The target π_θ.
    traj : Trajectories
        Of a behaviour policy b that is positive wherever π_θ is.
    behaviour_log_prob : (T, N)
        log b(A_t|S_t); read on valid rows.
    """
    x, a, log_b = traj.rows(behaviour_log_prob)
    return _on_valid(traj, np.exp(policy.log_prob(theta, x, a) - log_b), fill=1.0)


def importance_sampled(psi: Array, traj: Trajectories, gamma: float, ratios: Array) -> Array:
    """ρ_{0:T−1} Σ_t γ^t ψ_t G_t, ψ the scores of the target, Eq. (6.16); unbiased for its ∇J_H: (N, n).

    Parameters
    ----------
    psi : (T, N, n)
    traj : Trajectories
        Of the behaviour policy.
    gamma : float
    ratios : (T, N)
        ``importance_ratios``.
    """
    has_shape("ratios", ratios, traj.rewards.shape)
    return ratios.prod(axis=0)[:, None] * reward_to_go(psi, traj, gamma)  # (6.16)


def per_decision(psi: Array, traj: Trajectories, gamma: float, ratios: Array) -> Array:
    """Σ_t γ^t ρ_{0:t} ψ_t G^ρ_t, G^ρ the ``discounted_returns`` with ratios, Eqs. (6.17), (6.18); unbiased: (N, n)."""
    weights = _discount(traj, gamma) * ratios.cumprod(axis=0) * _returns(traj, gamma, ratios)  # (6.15)
    return score_sums(psi, weights)  # (6.17)


def first_order(psi: Array, traj: Trajectories, gamma: float, ratios: Array) -> Array:
    """Σ_t γ^t ρ_t ψ_t G_t, Eq. (6.21): states and returns stay those of the behaviour policy, Eq. (6.23): (N, n).

    Its mean is the gradient of the surrogate, not of J; the bias, Eq. (6.22), vanishes with the difference of the
    policies.
    """
    has_shape("ratios", ratios, traj.rewards.shape)
    return score_sums(psi, _discount(traj, gamma) * ratios * _returns(traj, gamma))  # (6.21)


def self_normalized(X: Array, ratios: Array) -> Array:
    """Σ_i ρ_i X_i / Σ_i ρ_i, the weighted form of whole-trajectory importance sampling, Eq. (6.20): (n,).

    One estimate from all N trajectories: biased, and consistent as N grows.

    Parameters
    ----------
    X : (N, n)
        Estimates without ratios, with the scores of the target.
    ratios : (T, N)
    """
    rho = ratios.prod(axis=0)
    if rho.sum() == 0:
        raise ValueError("ratios must not all be 0: no trajectory is possible under the target")
    return rho @ X / rho.sum()  # (6.20)
