"""Environments by name, with the time limit that every experiment needs."""

from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from .._checks import at_least

DEFAULT_TIME_LIMIT = 1000
"""Steps after which an episode is truncated in environments that state no limit of their own (CliffWalking)."""


def _made(make: Callable[..., Any], env_id: str, kwargs: dict[str, Any]) -> Any:
    try:
        limit = gymnasium.spec(env_id).max_episode_steps
    except gymnasium.error.Error as error:
        raise ValueError(f"environment {env_id!r} is not registered with Gymnasium: {error}") from None
    if limit is None:
        kwargs = {"max_episode_steps": DEFAULT_TIME_LIMIT} | kwargs
    try:
        return make(env_id, **kwargs)
    except gymnasium.error.Error as error:
        raise ValueError(f"environment {env_id!r} cannot be made: {error}") from None


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
        If Gymnasium cannot make it, for one because the id is not registered.
    """
    env: gymnasium.Env[Any, Any] = _made(gymnasium.make, env_id, kwargs)
    return env


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
        If Gymnasium cannot make it, for one because the id is not registered, or n < 1.
    """
    at_least("n", n, 1)
    env: VectorEnv[Any, Any, Any] = _made(gymnasium.make_vec, env_id, kwargs | {"num_envs": n})
    return env
