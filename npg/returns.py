"""Returns: what followed each step of recorded trajectories (derivations, chapter 1).

All arrays are time-major (T, N): row t of column n is one transition S_t, A_t → R_{t+1}, S_{t+1}. A column may
hold several episodes one after another. ``terminated`` ends an episode with nothing to come; ``truncated`` cuts
it at a time limit, where more would have come; where both are set, termination wins. Pure functions of arrays.
"""

# mypy: disable-error-code="no-any-return"

import numpy as np

from ._typing import Array


def _check(gamma: float, **arrays: Array) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma!r}")
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"arrays must all have one shape (T, N), got {shapes}")
    for name in ("terminated", "truncated"):
        if np.asarray(arrays[name]).dtype != np.bool_:
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
    _check(gamma, rewards=rewards, terminated=terminated, truncated=truncated, bootstrap=bootstrap, ratios=ratios)
    cut = truncated.copy()
    cut[-1:] = True
    discount = gamma * ~(terminated | cut)
    returns = rewards + gamma * np.where(cut & ~terminated, bootstrap, 0.0)
    G = np.zeros(returns.shape[1])
    for t in reversed(range(len(returns))):
        G = returns[t] + discount[t] * G
        returns[t] = G
        G = ratios[t] * G
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
    return ((sums[0] if total else sums[t]) - returns) / (episodes - 1)
