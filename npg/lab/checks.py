"""Whether an agent and an environment fit each other, before the first step."""

import os
from dataclasses import fields

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from ..algorithms import Agent
from ..distributions import Categorical
from ..envs.spaces import Env, single_spaces
from ..trajectories import Steps


def check_fit(agent: Agent, env: Env, name: str = "env") -> None:
    """Raise unless ``agent`` is an agent, ``env`` an environment, and the one can act in the other."""
    if not isinstance(agent, Agent):
        raise TypeError(f"agent must be an npg agent, as npg.make_agent makes them, got {agent!r}")
    if not isinstance(env, gymnasium.Env | VectorEnv):
        raise TypeError(f"{name} must be a Gymnasium environment, scalar or vectorised, got {env!r}")
    observations, actions = single_spaces(env)
    if not isinstance(observations, spaces.Box | spaces.Discrete):
        raise TypeError(f"observations of {name} must be Box or Discrete, got {observations}")
    distribution = agent.policy.distribution
    if isinstance(distribution, Categorical):
        fits = isinstance(actions, spaces.Discrete) and actions.n == distribution.n_eta
    else:
        fits = isinstance(actions, spaces.Box) and 2 * int(np.prod(actions.shape)) == distribution.n_eta
    if not fits:
        raise ValueError(f"agent and {name} must fit: {distribution} does not choose actions of {actions}")
    if isinstance(observations, spaces.Discrete):
        obs = np.array([observations.start, observations.start + observations.n - 1])
    else:
        obs = np.zeros((2, *observations.shape), observations.dtype)
    parts = [agent.policy.features] + [getattr(agent, f.name) for f in fields(agent) if "features" in f.metadata]
    size = 0
    for part in parts:
        try:
            x = part(obs)
        except (ValueError, IndexError, TypeError) as error:
            reason = f"{part} does not take observations of {observations}: {error}"
            raise ValueError(f"agent and {name} must fit: {reason}") from None
        size += sum(rows.nbytes for rows in (x if isinstance(x, tuple) else (x,))) // 2
    rows = agent.collect.n * (env.num_envs if isinstance(env, VectorEnv) and isinstance(agent.collect, Steps) else 1)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else float("inf")
    if rows * (size + obs.nbytes) > memory:
        raise ValueError(
            f"an update on {rows:,} rows of {size + obs.nbytes:,} bytes does not fit in {memory:,} bytes of memory: "
            "collect less, or in fewer environments"
        )
