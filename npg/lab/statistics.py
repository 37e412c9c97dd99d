"""What the wrappers of ``npg.envs.normalized`` have gathered: saved with a run, begun anew, and frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from .._state import check_alike
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
            if hasattr(wrapper, "_prev_dones"):
                found["reward.done"] = wrapper, "_prev_dones"
    return found


def statistics(env: Env) -> dict[str, Array]:
    """Copies of the statistics by which ``env`` normalises, by dotted name; empty where it does not."""
    return {name: np.array(getattr(*place), dtype=float) for name, place in _places(env).items()}


def load_statistics(env: Env, given: dict[str, Array]) -> None:
    """Take back what ``statistics`` returned.

    Raises
    ------
    ValueError
        If ``env`` normalises something else, or it is no variance or count.
    """
    check_alike("the statistics by which env normalises", statistics(env), given)
    for name, array in given.items():
        if name.endswith(("var", "count")) and (array < 0).any():
            raise ValueError(f"variances and counts by which env normalises must be at least 0, got {array} as {name}")
    for name, place in _places(env).items():
        setattr(*place, given[name].copy())  # Gymnasium writes into it


def share_statistics(env: Env, other: Env) -> None:
    """Let ``other`` normalise by what ``env`` has gathered; what it remembers of its own episodes stays its own.

    Raises
    ------
    ValueError
        If ``other`` normalises something else.
    """
    gathered, own = statistics(env), statistics(other)
    shared = [name for name in own.keys() | gathered.keys() if name.endswith(("mean", "var", "count"))]
    given = {name: gathered[name] for name in shared if name in gathered}
    check_alike("the statistics of eval_env", {name: own[name] for name in shared if name in own}, given)
    load_statistics(other, own | given)


def begin_statistics(env: Env) -> None:
    """Set them as Gymnasium begins them, but in float64 whatever the observations are."""
    initial = {"mean": 0.0, "var": 1.0, "count": 1e-4, "accumulated": 0.0, "done": 0.0}
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
