"""Environments by name, with the time limit that every experiment needs."""

from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

DEFAULT_TIME_LIMIT = 1000
"""Steps after which an episode is truncated in environments that state no limit of their own (CliffWalking)."""


def _with_limit(env_id: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise ValueError(f"environment {env_id!r} is not registered with Gymnasium: {error}") from None
    if spec.max_episode_steps is None:
        kwargs = {"max_episode_steps": DEFAULT_TIME_LIMIT} | kwargs
    return kwargs


def make_env(env_id: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One Gymnasium environment; ``DEFAULT_TIME_LIMIT`` steps an episode where it states no limit.

    Parameters
    ----------
    env_id : str
        A registered id.
    **kwargs
        For ``gymnasium.make``.

    Raises
    ------
    ValueError
        If the id is not registered.
    """
    return gymnasium.make(env_id, **_with_limit(env_id, kwargs))


def make_vec(env_id: str, n: int, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """n copies of an environment as one ``VectorEnv``: Gymnasium's NumPy-vectorised one where it has one.

    Parameters
    ----------
    env_id : str
        A registered id.
    n : int
        Number of copies, at least 1.
    **kwargs
        For ``gymnasium.make_vec``.

    Raises
    ------
    ValueError
        If the id is not registered or n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return gymnasium.make_vec(env_id, num_envs=n, **_with_limit(env_id, kwargs))
