"""Environments by name, with the time limit that every experiment needs.

The problems of this package are registered with Gymnasium: ``npg/ShortCorridor-v0``, ``npg/RandomWalk-v0``,
``npg/TwoState-v0``, ``npg/FourRooms-v0``, ``npg/Garnet-v0``, ``npg/Baird-v0``, ``npg/Collision-v0``, ``npg/Imani-v0``,
``npg/ContinuousImani-v0`` and ``npg/LQR-v0``. What their functions in ``npg.problems``, or ``npg.lqr.LQR``, take are
keyword arguments of ``make_env`` and ``make_vec``. So are Gymnasium's classic control tasks, with vector environments
in NumPy: ``npg/CartPole-v1``, ``npg/MountainCar-v0``, ``npg/MountainCarContinuous-v0``, ``npg/Acrobot-v1`` and
``npg/Pendulum-v1``.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium import wrappers
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv

from .._checks import at_least, unit_interval
from ..exact import TabularMDP
from ..lqr import LQR
from ..problems import baird, collision, four_rooms, garnet, imani, random_walk, short_corridor, two_state
from .classic import Acrobot, CartPole, MountainCar, MountainCarContinuous, Pendulum
from .continuous_imani import ContinuousImaniEnv
from .lqr import LQREnv, LQRTask
from .spaces import Env, single_spaces
from .tabular import TabularEnv, TabularVectorEnv
from .vector import Task, TaskVectorEnv

DEFAULT_TIME_LIMIT = 1000
"""Steps after which an episode is truncated in environments that state no limit of their own (CliffWalking)."""

MAX_ENVS = 100_000
"""Copies of an environment that ``make_vec`` makes at most."""


def load_module(name: str) -> None:
    """Import the module of an environment, which is to register it.

    Raises
    ------
    ValueError
        If it cannot be imported.
    """
    try:
        import_module(name)
    except Exception as error:  # whatever its code has for us
        raise ValueError(f"module {name!r} cannot be imported: {error!r}") from error


def _made(make: Callable[..., Any], env_id: str, kwargs: dict[str, Any]) -> Any:
    if not isinstance(env_id, str):
        raise TypeError(f"env_id must be the id of an environment, a string, got {env_id!r}")
    module, _, name = env_id.rpartition(":")
    if module:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"environment {env_id!r} must be an id, perhaps behind the name of a module and a colon")
        load_module(module)
    try:
        limit = gymnasium.spec(name).max_episode_steps
    except gymnasium.error.Error as error:
        raise ValueError(f"environment {env_id!r} is not registered with Gymnasium: {error}") from None
    if limit is None:
        kwargs = {"max_episode_steps": DEFAULT_TIME_LIMIT} | kwargs
    if "max_episode_steps" in kwargs:
        at_least("max_episode_steps", kwargs["max_episode_steps"], 1)
    try:
        env = make(name, **kwargs)
    except Exception as error:  # Gymnasium's, and whatever the environment has for settings that it does not know
        raise ValueError(f"environment {env_id!r} cannot be made: {error!r}") from error
    if module:
        env.unwrapped.spec.id = f"{module}:{env.unwrapped.spec.id}"
    return env


def make_env(env_id: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One Gymnasium environment; ``DEFAULT_TIME_LIMIT`` steps an episode where it states no limit.

    Parameters
    ----------
    env_id : str
        A registered id, perhaps behind the module that registers it: ``"mypackage:Walk-v0"``.
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
    """n copies of an environment as one ``VectorEnv``: npg's NumPy-vectorised one, or Gymnasium's, where there is one.

    Of Gymnasium's own ids npg has CartPole-v1, MountainCar-v0, MountainCarContinuous-v0, Acrobot-v1 and Pendulum-v1
    (``npg.envs.classic``). With what these do not take, such as ``render_mode``, ``wrappers`` or a
    ``vectorization_mode``, the environment is Gymnasium's.

    Parameters
    ----------
    env_id : str
        A registered id, perhaps behind the module that registers it: ``"mypackage:Walk-v0"``.
    n : int
        Number of copies, from 1 to ``MAX_ENVS``.
    **kwargs
        For ``gymnasium.make_vec``; for npg's, settings of the environment, ``max_episode_steps`` and
        ``autoreset_mode``.

    Raises
    ------
    ValueError
        If Gymnasium cannot make it, for one because the id is not registered, or n < 1.
    """
    at_least("n", n, 1, MAX_ENVS)
    env: VectorEnv[Any, Any, Any] = _made(_make_vec, env_id, kwargs | {"num_envs": n})
    return env


def _make_vec(name: str, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    spec, ours = gymnasium.spec(name), gymnasium.registry.get(f"npg/{name}")
    if name not in _CLASSIC or ours is None or spec.entry_point != ours.entry_point or spec.additional_wrappers:
        return gymnasium.make_vec(name, **kwargs)
    taken = inspect.signature(_CLASSIC[name]).parameters.keys() | {"num_envs", "max_episode_steps", "autoreset_mode"}
    if not spec.kwargs.keys() | kwargs.keys() <= taken:
        return gymnasium.make_vec(name, **kwargs)
    env = gymnasium.make_vec(replace(spec, vector_entry_point=ours.vector_entry_point), **kwargs)
    assert env.spec is not None
    del env.spec.kwargs["vectorization_mode"]  # by which Gymnasium's would be made again
    return env


def normalized(env: Env, observations: bool = True, rewards: bool = False, gamma: float = 0.99) -> Env:
    """``env`` in Gymnasium's ``NormalizeObservation`` and ``NormalizeReward``, or in their vector versions.

    Each component s of an observation becomes (s − m) / √(v + ε), with its mean m and variance v over all observations
    so far. A reward becomes r / √(v + ε), with the variance v of the discounted sum of the rewards so far: its mean is
    left alone, which is what tells a good action from a bad one. ``npg.train`` begins the statistics anew and keeps
    them with the run, ``npg.evaluate`` leaves them as they are, and returns are reported of the raw rewards.

    The normalised observations have no bounds, so that features need a ``scale``; it is in standard deviations: 1 takes
    them as they are (affine features), 3 puts most of them in the range (Fourier, RBF).

    Parameters
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
        A vector environment must be of autoreset mode NEXT_STEP: under the others ``NormalizeObservation`` does not
        see every observation, and ``NormalizeReward`` may forget sums.
    observations, rewards : bool
        What to normalise.
    gamma : float
        γ of the discounted sum of rewards, in [0, 1]: the agent's.

    Raises
    ------
    ValueError, TypeError
        For another autoreset mode, observations that are not a Box, or a bad gamma.
    """
    unit_interval("gamma", gamma)
    space, _ = single_spaces(env)
    kinds: Any = wrappers
    if isinstance(env, VectorEnv):
        kinds, mode = wrappers.vector, env.metadata.get("autoreset_mode")
        if (observations or rewards) and mode is not AutoresetMode.NEXT_STEP:
            raise ValueError(f"env must be of autoreset mode NEXT_STEP to be normalised, got {mode}")
    if observations:
        if not isinstance(space, Box):
            raise TypeError(f"observation space must be Box to be normalised, got {space}")
        env = kinds.NormalizeObservation(env)
    return kinds.NormalizeReward(env, gamma=float(gamma)) if rewards else env


def _tabular(make: Callable[..., TabularMDP], **kwargs: Any) -> TabularEnv:
    return TabularEnv(make(**kwargs))


def _tabular_vector(
    make: Callable[..., TabularMDP], num_envs: int, max_episode_steps: int | None = None, **kwargs: Any
) -> TabularVectorEnv:
    return TabularVectorEnv(make(**kwargs), num_envs, max_episode_steps)


def _vector(
    task: Callable[..., Task],
    num_envs: int,
    max_episode_steps: int | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **kwargs: Any,
) -> TaskVectorEnv:
    return TaskVectorEnv(task(**kwargs), num_envs, max_episode_steps, autoreset_mode)


def _continuous_imani(**kwargs: Any) -> ContinuousImaniEnv:
    return ContinuousImaniEnv(**kwargs)


def _lqr(**kwargs: Any) -> LQREnv:
    return LQREnv(LQR(**kwargs))


def _lqr_task(**kwargs: Any) -> LQRTask:
    return LQRTask(LQR(**kwargs))


_CLASSIC: dict[str, type] = {
    "CartPole-v1": CartPole,
    "MountainCar-v0": MountainCar,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "Acrobot-v1": Acrobot,
    "Pendulum-v1": Pendulum,
}

for _name, _mdp, _limit in (
    ("ShortCorridor", short_corridor, 1000),
    ("RandomWalk", random_walk, 10_000),
    ("TwoState", two_state, 100),
    ("FourRooms", four_rooms, 200),
    ("Garnet", garnet, 100),
    ("Baird", baird, 1000),
    ("Collision", collision, 100),
    ("Imani", imani, 100),
):
    gymnasium.register(
        f"npg/{_name}-v0",
        entry_point=partial(_tabular, _mdp),
        vector_entry_point=partial(_tabular_vector, _mdp),
        max_episode_steps=_limit,
    )
gymnasium.register("npg/ContinuousImani-v0", entry_point=_continuous_imani, max_episode_steps=100)
gymnasium.register(
    "npg/LQR-v0",
    entry_point=_lqr,
    vector_entry_point=partial(_vector, _lqr_task),
    max_episode_steps=100,
)
for _name, _task in _CLASSIC.items():
    _spec = gymnasium.registry[_name]
    gymnasium.register(
        f"npg/{_name}",
        entry_point=_spec.entry_point,
        vector_entry_point=partial(_vector, _task),
        max_episode_steps=_spec.max_episode_steps,
        reward_threshold=_spec.reward_threshold,
    )
