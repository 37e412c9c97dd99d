"""Returns and advantages: what followed each step of recorded trajectories (derivations, chapters 1 and 7).

All arrays are time-major (T, N): row t of column n is one transition S_t, A_t → R_{t+1}, S_{t+1}. A column may
hold several episodes one after another. ``terminated`` ends an episode with nothing to come; ``truncated`` cuts
it at a time limit, where more would have come; where both are set, termination wins. ``values`` are v̂(S_t), and
``next_values`` v̂(S_{t+1}) of the true successor, also at a time limit; those of a terminated row are not read.
The window of row t has the L_t rows from t up to the next that terminates, is truncated, or ends the segment. Rows
that are padding hold numbers without meaning. Pure functions of arrays.
"""

import numpy as np

from ._checks import at_least, unit_interval
from ._typing import Array


def check_segment(gamma: float, lam: float = 1.0, **arrays: Array) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless γ and λ lie in [0, 1], and arrays are (T, N), flags boolean."""
    unit_interval("gamma", gamma)
    unit_interval("lam", lam)
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"arrays must all have one shape (T, N), got {shapes}")
    for name in ("terminated", "truncated", "valid"):
        if name in arrays and np.asarray(arrays[name]).dtype != np.bool_:
            raise TypeError(f"{name} must be boolean, got {np.asarray(arrays[name]).dtype}")


def discounted_returns(
    rewards: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    bootstrap: Array | float = 0.0,
    ratios: Array | float = 1.0,
) -> Array:
    """Discounted reward-to-go G_t, Eq. (1.8); at the start of an episode a sample of the objective, Eq. (1.1).

        G_t = R_{t+1} + γ · { 0                if the step terminated
                              B_t              if it was truncated, or is the last of the segment
                              ρ_{t+1} G_{t+1}  otherwise }

    Parameters
    ----------
    rewards : (T, N)
        R_{t+1}.
    terminated, truncated : (T, N) boolean
    gamma : float
        γ in [0, 1].
    bootstrap : (T, N) or 0
        B_t, the value of the true successor S_{t+1}; read only where a row is cut.
    ratios : (T, N) or 1
        ρ_t = π(A_t|S_t)/b(A_t|S_t), for returns of π from episodes of b, Eq. (6.18).

    Returns
    -------
    (T, N)
        Rows that are padding hold numbers without meaning.

    Raises
    ------
    ValueError, TypeError
        For γ outside [0, 1], for shapes that differ, for flags that are not boolean.
    """
    rewards, terminated, truncated = map(np.asarray, (rewards, terminated, truncated))
    bootstrap, ratios = (np.full(rewards.shape, a) if np.ndim(a) == 0 else np.asarray(a) for a in (bootstrap, ratios))
    check_segment(
        gamma, rewards=rewards, terminated=terminated, truncated=truncated, bootstrap=bootstrap, ratios=ratios
    )
    cut = truncated.copy()
    cut[-1:] = True
    discount = gamma * ~(terminated | cut)
    returns = rewards + gamma * np.where(cut & ~terminated, bootstrap, 0.0)
    G = np.zeros(returns.shape[1])
    for t in reversed(range(len(returns))):
        G = returns[t] + discount[t] * G  # (1.8), backwards
        returns[t] = G
        G = ratios[t] * G  # (6.18)
    return returns


def total_returns(start: Array, returns: Array) -> Array:
    """G_0 of the episode that each row belongs to, the weight of the total-return form Eq. (1.5).

    Parameters
    ----------
    start : (T, N) boolean
        True on the first row of an episode; the first row of each column must be one.
    returns : (T, N)
        Reward-to-go, as ``discounted_returns`` gives it.

    Returns
    -------
    (T, N)
    """
    T, N = returns.shape
    first_row = np.maximum.accumulate(np.where(start, np.arange(T)[:, None], 0), axis=0)
    return returns[first_row, np.arange(N)]


def n_step_returns(
    rewards: Array, next_values: Array, terminated: Array, truncated: Array, gamma: float, n: int
) -> Array:
    """n-step returns, Eq. (7.6); how wrong they are when v̂ is wrong, Eq. (7.7).

        G_{t:t+n} = R_{t+1} + … + γ^{m−1} R_{t+m} + γ^m v̂(S_{t+m}),  m = min(n, L_t)

    with v̂(S_{t+m}) = 0 if step t + m − 1 terminated.

    Parameters
    ----------
    rewards : (T, N)
        R_{t+1}.
    next_values : (T, N)
        v̂(S_{t+1}).
    terminated, truncated : (T, N) boolean
    gamma : float
        γ in [0, 1].
    n : int
        At least 1.

    Returns
    -------
    (T, N)

    Raises
    ------
    ValueError, TypeError
        For γ outside [0, 1], for n < 1, for shapes that differ, for flags that are not boolean.
    """
    rewards, next_values, terminated, truncated = map(np.asarray, (rewards, next_values, terminated, truncated))
    check_segment(gamma, rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated)
    at_least("n", n, 1)
    successor = np.where(terminated, 0.0, next_values)
    inside = ~(terminated | truncated)[:-1]
    returns = rewards + gamma * successor
    for _ in range(min(n, len(rewards)) - 1):  # G_{t:t+n} = R_{t+1} + γ G_{t+1:t+n}
        later = successor.astype(returns.dtype)
        later[:-1][inside] = returns[1:][inside]
        returns = rewards + gamma * later  # (7.6)
    return returns


def lambda_returns(
    rewards: Array, next_values: Array, terminated: Array, truncated: Array, gamma: float, lam: float
) -> Array:
    """λ-returns, the means of n-step returns with the weights of Eq. (7.8), by the recursion Eq. (7.9).

        G_t^λ = { R_{t+1}                                         if the step terminated
                  R_{t+1} + γ v̂(S_{t+1})                          if it was truncated, or is the last of the segment
                  R_{t+1} + γ [(1 − λ) v̂(S_{t+1}) + λ G_{t+1}^λ]  otherwise }

    Minus v̂(S_t), with the same v̂ in all rows, they are the sums of TD errors of Eq. (7.10), which ``gae`` computes.

    Parameters
    ----------
    rewards : (T, N)
        R_{t+1}.
    next_values : (T, N)
        v̂(S_{t+1}).
    terminated, truncated : (T, N) boolean
    gamma, lam : float
        γ and λ in [0, 1].

    Returns
    -------
    (T, N)

    Raises
    ------
    ValueError, TypeError
        For γ or λ outside [0, 1], for shapes that differ, for flags that are not boolean.
    """
    check_segment(gamma, lam, rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated)
    successor = np.where(terminated, 0.0, next_values)
    # A return with the discount γλ, of the rewards R_{t+1} + γ(1 − λ) v̂(S_{t+1}).
    r = np.asarray(rewards) + gamma * (1 - lam) * successor
    return discounted_returns(r, terminated, truncated, gamma * lam, successor)  # (7.9)


def gae(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    lam: float,
) -> Array:
    """Generalised advantage estimates (Schulman et al. 2016), Eq. (7.20).

        δ_t = R_{t+1} + γ v̂(S_{t+1}) − v̂(S_t),  v̂(S_{t+1}) = 0 if the step terminated, Eqs. (7.1), (8.10)
        Â_t = { δ_t               if the step terminated, was truncated, or is the last of the segment
                δ_t + γλ Â_{t+1}  otherwise }

    λ = 0 gives δ_t, λ = 1 the return minus v̂(S_t), and every λ a mean of a_π(s, a) if v̂ = v_π, Eq. (7.21). With the
    same v̂ in all rows this is the λ-return minus v̂(S_t), Eq. (7.10).

    Parameters
    ----------
    rewards : (T, N)
        R_{t+1}.
    values, next_values : (T, N)
        v̂(S_t) and v̂(S_{t+1}).
    terminated, truncated : (T, N) boolean
    gamma, lam : float
        γ and λ in [0, 1].

    Returns
    -------
    (T, N)

    Raises
    ------
    ValueError, TypeError
        For γ or λ outside [0, 1], for shapes that differ, for flags that are not boolean.
    """
    arrays = {"rewards": rewards, "values": values, "next_values": next_values}
    check_segment(gamma, lam, **arrays, terminated=terminated, truncated=truncated)
    delta = rewards + gamma * np.where(terminated, 0.0, next_values) - values  # (7.1), (8.10)
    return discounted_returns(delta, terminated, truncated, gamma * lam)  # (7.10), (7.20)


def weighted_advantages(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    lam: float,
) -> Array:
    """Exponentially weighted n-step advantages, Eqs. (7.19), (7.20), for reading and tests; ``gae`` is faster.

        Â_t = (1 − λ) Σ_{n<L} λ^{n−1} A_t^{(n)} + λ^{L−1} A_t^{(L)},  A_t^{(n)} = G_{t:t+n} − v̂(S_t),  L = L_t

    Without the residual weight λ^{L−1} on the longest window, the weights would not sum to one.

    Parameters
    ----------
    rewards, values, next_values, terminated, truncated, gamma, lam
        As ``gae`` has them.

    Returns
    -------
    (T, N)
    """
    arrays = {"rewards": rewards, "values": values, "next_values": next_values}
    check_segment(gamma, lam, **arrays, terminated=terminated, truncated=truncated)
    L = discounted_returns(np.ones(np.shape(rewards)), terminated, truncated, 1.0)
    advantages = np.zeros(L.shape)
    for n in range(1, len(L) + 1):
        weight = np.where(n < L, (1 - lam) * lam ** (n - 1), np.where(n == L, lam ** (n - 1), 0.0))  # (7.8)
        G = n_step_returns(rewards, next_values, terminated, truncated, gamma, n)
        advantages += weight * (G - values)  # (7.19)
    return advantages


def normalized_advantages(A: Array, how: str | None, scale: float) -> Array:
    """Â / std over the batch, or (Â − mean) / std, Eq. (11.15), unless the deviation is rounding.

    Where it is rounding of Â or of ``scale``, Â stays as it is in the first case, and is 0 in the second.

    Parameters
    ----------
    A : (B,)
    how : {None, "scale", "standardize"}
        None leaves Â as it is.
    scale : float
        The largest magnitude of what Â is a difference of.

    Returns
    -------
    (B,)
    """
    if how is None:
        return A
    spread, centre = A.std(), A.mean() if how == "standardize" else 0.0
    if spread <= 1e-9 * max(np.abs(A).max(), scale):
        return np.zeros(len(A)) if how == "standardize" else A
    return (A - centre) / spread  # (11.15)
