"""What is read of a Gymnasium environment, scalar or vectorised: spaces, normalisation, how it takes actions."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.vector import VectorEnv, VectorWrapper

from .._typing import Array
from ..trajectories import DivergenceError

Env = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]


def single_spaces(env: Env) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Observation and action space of one environment, or of each one in a vector.

    Raises
    ------
    TypeError
        If ``env`` is no environment.
    """
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"env must be a Gymnasium environment, scalar or vectorised, got {env!r}")
    return env.observation_space, env.action_space


def normalizers(env: Env) -> dict[str, Any]:
    """Gymnasium's ``NormalizeObservation`` and ``NormalizeReward`` around ``env``, those that there are.

    Returns
    -------
    dict
        The wrappers by what they normalise, ``"observation"`` and ``"reward"``.

    Raises
    ------
    ValueError
        If there are two of a kind.
    """
    found: dict[str, Any] = {}
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        for name, kinds in (
            ("observation", (wrappers.NormalizeObservation, wrappers.vector.NormalizeObservation)),
            ("reward", (wrappers.NormalizeReward, wrappers.vector.NormalizeReward)),
        ):
            if isinstance(env, kinds):
                if name in found:
                    raise ValueError(f"the {name}s of env must be normalised once, got two wrappers: {found[name]}")
                found[name] = env
        env = env.env
    return found


def all_finite(a: Array) -> bool:
    """Whether no element of ``a`` is infinite or NaN."""
    # One BLAS call finds nearly every finite array finite; the exact test is for squares that overflow.
    return a.dtype.kind != "f" or math.isfinite(np.vdot(a, a)) or bool(np.isfinite(a).all())


def to_env(space: spaces.Space[Any], vector: bool) -> Callable[[Array], Any]:
    """From sampled actions (N, …) to what the environment takes: shifted by its start, or clipped to its Box."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return (lambda a: a + start) if vector else (lambda a: int(a[0]) + start)
    if not isinstance(space, spaces.Box):
        raise TypeError(f"action space must be Box or Discrete, got {space}")
    shape = (-1, *space.shape) if vector else space.shape
    low, high = space.low.astype(float), space.high.astype(float)
    dtype = space.dtype
    integers = dtype.kind in "iu"

    def clipped(a: Array) -> Array:
        if not all_finite(a):
            raise DivergenceError(f"the policy chose the action {a}, which is not finite")
        a = a.reshape(shape).clip(low, high)
        return np.asarray(np.rint(a) if integers else a, dtype=dtype)

    return clipped
