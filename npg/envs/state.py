"""The state of a vector environment, for those that can give it and take it back.

An environment can if it has ``get_state()``, which returns a dict of arrays, copies of all that its future depends on,
and ``set_state(arrays)``, after which it goes on as it did from there.
"""

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import VectorEnv

from .._state import check_alike, packed, unpack
from .._typing import Array

_ATTRIBUTES = {CartPoleVectorEnv: ("state", "steps", "prev_done")}
"""Of Gymnasium's environments what, with their generator, is their state."""


def has_state(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether an environment, without wrappers, can give its state and take it back.

    What it inherits does not count: a subclass may have more state than its base knows of.
    """
    return type(env) in _ATTRIBUTES or {"get_state", "set_state"} <= vars(type(env)).keys()


def get_state(env: Any) -> dict[str, Array]:
    """The state of an environment that has been reset."""
    if type(env) in _ATTRIBUTES:
        return read(env, _ATTRIBUTES[type(env)])
    return env.get_state()


def set_state(env: Any, arrays: dict[str, Array]) -> None:
    """Take back what ``get_state`` returned; ``env`` has been reset.

    Raises
    ------
    ValueError
        If they are other arrays.
    """
    check_alike("the state of the environment", get_state(env), arrays)
    if type(env) in _ATTRIBUTES:
        write(env, _ATTRIBUTES[type(env)], arrays)
    else:
        env.set_state(arrays)


def read(env: Any, names: tuple[str, ...]) -> dict[str, Array]:
    """Copies of attributes that are arrays, by name, and the state of ``env.np_random``."""
    return {name: np.array(getattr(env, name)) for name in names} | {"np_random": packed(env.np_random)}


def write(env: Any, names: tuple[str, ...], arrays: dict[str, Array]) -> None:
    """Take back what ``read`` returned; its integers count something, or number states.

    Raises
    ------
    ValueError
        If one is negative, or what is to be the state of the generator is none.
    """
    for name in names:
        if arrays[name].dtype.kind == "i" and (arrays[name] < 0).any():
            raise ValueError(f"the state of the environment must hold integers of at least 0, got {arrays[name]}")
        setattr(env, name, np.array(arrays[name]))
    unpack(env.np_random, arrays["np_random"])
