"""What the wrappers of ``npg.envs.normalized`` have gathered: saved with a run, begun anew, and frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from .._typing import Array
from ..envs.spaces import Env, normalizers


def _places(env: Env) -> dict[str, tuple[Any, str]]:
    """Owner and attribute of all that the ``normalizers`` of ``env`` have gathered, by dotted name."""
    found: dict[str, tuple[Any, str]] = {}
    for name, wrapper in normalizers(env).items():
        running = wrapper.obs_rms if name == "observation" else wrapper.return_rms
        found |= {f"{name}.{attribute}": (running, attribute) for attribute in ("mean", "var", "count")}
        if name == "reward":
            attribute = "accumulated_reward" if isinstance(wrapper, VectorEnv) else "discounted_reward"
            found["reward.accumulated"] = wrapper, attribute
    return found


def statistics(env: Env) -> dict[str, Array]:
    """Copies of the statistics by which ``env`` normalises, by dotted name; empty where it does not."""
    return {name: np.array(getattr(*place)) for name, place in _places(env).items()}


def load_statistics(env: Env, given: dict[str, Array]) -> None:
    """Take back what ``statistics`` returned.

    Raises
    ------
    ValueError
        If ``env`` normalises something else.
    """
    own, shapes = ({name: array.shape for name, array in arrays.items()} for arrays in (statistics(env), given))
    if own != shapes:
        raise ValueError(f"env must be normalised by statistics of shapes {shapes}, as in training, got {own}")
    for name, place in _places(env).items():
        setattr(*place, given[name])


def begin_statistics(env: Env) -> None:
    """Set them as Gymnasium begins them, but in float64 whatever the observations are."""
    initial = {"mean": 0.0, "var": 1.0, "count": 1e-4, "accumulated": 0.0}
    own = statistics(env).items()
    load_statistics(env, {name: np.full(array.shape, initial[name.partition(".")[2]]) for name, array in own})


@contextmanager
def frozen_statistics(env: Env) -> Iterator[None]:
    """They are used and not changed inside the ``with``."""
    wrappers, before = normalizers(env).values(), statistics(env)
    updated = [wrapper.update_running_mean for wrapper in wrappers]
    try:
        for wrapper in wrappers:
            wrapper.update_running_mean = False
        yield
    finally:
        for wrapper, update in zip(wrappers, updated, strict=True):
            wrapper.update_running_mean = update
        load_statistics(env, before)  # the discounted sum of rewards goes on even where the rest is frozen
