"""Small environments and an online agent with traces, for what the loop, the runs and the command line must do."""

import csv
import hashlib
import signal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import TransformReward

import npg
from npg.algorithms import Agent
from npg.algorithms.base import integer, method, number
from npg.envs import normalized
from npg.envs.spaces import single_spaces
from npg.envs.tabular import TabularVectorEnv
from npg.features import dense
from npg.optimizers import Adam
from npg.problems import random_walk, two_state


def no_fault(step: int, reward: float) -> float:
    return reward


class Walk(gymnasium.Env):
    """A slippery walk on 7 states with noisy rewards, ended at both sides and cut after 12 steps.

    ``fault`` is called with the number of each step, counted over all episodes and also where they are played again,
    and its reward, and gives the reward. ``seeds`` collects the seeds of its resets, ``finished`` (steps so far,
    return, length) of each whole episode.
    """

    observation_space = gymnasium.spaces.Discrete(7)
    action_space = gymnasium.spaces.Discrete(2)
    limit, ring = 12, False

    def __init__(self, fault=no_fault) -> None:
        self.fault = fault
        self.seeds: list[int] = []
        self.finished: list[tuple[int, float, int]] = []
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seeds.append(seed)
        self.s, self.t, self.total = 3, 0, 0.0
        return self.s, {}

    def step(self, action):
        self.steps += 1
        self.t += 1
        self.s += int(action != (self.np_random.random() < 0.2)) * 2 - 1
        reward = float(self.s == 6) + 0.1 * self.np_random.normal()
        self.total += reward
        terminated, truncated = self.s in (0, 6), self.t >= self.limit
        if self.ring:
            self.s, terminated = self.s % 7, False
        if terminated or truncated:
            self.finished.append((self.steps, self.total, self.t))
        return self.s, self.fault(self.steps, reward), terminated, truncated and not terminated, {}


class Ring(Walk):
    """A walk around the ring of the 7 states, in episodes of 50 steps."""

    limit, ring = 50, True


class Measured(gymnasium.ObservationWrapper):
    """A walk, observed by numbers of unlike sizes that need to be normalised."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, s):
        return np.array([100 + 2 * s, s * s / 50], dtype=np.float32)


def walks(
    n: int, fault=no_fault, mode: AutoresetMode = AutoresetMode.NEXT_STEP, kind=Walk, wrap=lambda env: env
) -> SyncVectorEnv:
    """n walks as a vector environment, the fault in the first."""
    faults = [fault] + [no_fault] * (n - 1)
    return SyncVectorEnv([lambda f=f: wrap(kind(f)) for f in faults], autoreset_mode=mode)


def measured(n: int = 0, *fault, kind=Walk, **settings):
    """A measured walk, or n of them as a vector, normalised."""
    env = walks(n, *fault, kind=kind, wrap=Measured) if n else Measured(kind(*fault))
    return normalized(env, **settings)


def native(env, fault=no_fault):
    """A vector environment that is not made of scalar ones, with a fault in its first column."""
    steps = count(1)

    def faulty(rewards):
        rewards = rewards.copy()
        rewards[0] = fault(next(steps), rewards[0])
        return rewards

    return TransformReward(env, faulty)


BOTH = {"observations": True, "rewards": True, "gamma": 0.9}


def tabular(mdp, limit: int, *fault):
    return native(TabularVectorEnv(mdp, 3, limit), *fault)


def kinds(kind: type[Walk]) -> dict[str, Any]:
    """Makers of such environments, with a fault or without."""
    made: dict[str, Any] = {"scalar": lambda *fault: TimeLimit(kind(*fault), kind.limit)}
    made |= {mode.name: partial(walks, 3, mode=mode, kind=kind) for mode in AutoresetMode}
    return made | {
        f"{name}, normalised": partial(measured, n, kind=kind, **BOTH) for name, n in (("scalar", 0), ("vector", 3))
    }


KINDS = kinds(Walk) | {
    "native": partial(tabular, random_walk(6), Walk.limit),
    "native, Gymnasium's": lambda *fault: native(npg.make_vec("CartPole-v1", 3), *fault),
}
"""Makers of environments of every kind that has a way back into its episodes, with a fault or without."""
LONG = kinds(Ring) | {"native": partial(tabular, two_state(), Ring.limit)}
"""The same in episodes of 50 steps, longer than the distance of checkpoints here."""


def raises_at(k: int, error: BaseException):
    """A fault that raises ``error`` at step k."""

    def fault(step: int, reward: float) -> float:
        if step == k:
            raise error
        return reward

    return fault


def signals_at(k: int, number: int, then: int | None = None):
    """A fault that gets a signal at step k, and another one at the next."""

    def fault(step: int, reward: float) -> float:
        if step == k:
            signal.raise_signal(number)
        if step == k + 1 and then is not None:
            signal.raise_signal(then)
        return reward

    return fault


@method
class Toy(Agent):
    """Actor–critic with eligibility traces, one per column, Adam, and parameter noise: everything a state can hold.

    ``n`` steps of each of ``columns`` environments make an update; ``broken_at`` is the update that makes w infinite.
    """

    n: int = integer(1, 1, doc="Steps of an update.")
    alpha: float = number(0.05, 0, doc="α.")
    gamma: float = number(0.9, 0, 1, doc="γ.")
    lam: float = number(0.8, 0, 1, doc="λ.")
    broken_at: int = integer(0, 0, doc="The update that makes w infinite.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "z", "z_w", "updates", "ascent")

    @property
    def collect(self) -> npg.Steps:
        return npg.Steps(self.n)

    def init(self, rng, columns=1) -> None:
        self.theta = 0.01 * rng.normal(size=self.policy.n_params)
        self.w = np.zeros(self.policy.features.n_features)
        self.z = np.zeros((columns, len(self.theta)))
        self.z_w = np.zeros((columns, len(self.w)))
        self.updates = np.array(0)
        self.ascent = Adam(len(self.theta), self.alpha)

    def update(self, traj, rng) -> dict[str, float]:
        self.updates = self.updates + 1
        for t in range(len(traj.rewards)):
            valid = traj.valid[t]
            x, x2 = (dense(self.policy.features(obs[t]), len(self.w)) for obs in (traj.obs, traj.next_obs))
            delta = traj.rewards[t] + self.gamma * ~traj.terminated[t] * (x2 @ self.w) - x @ self.w
            decay = self.gamma * self.lam * (traj.t[t] > 0)[:, None]
            score = self.policy.score(self.theta, traj.x[t], traj.actions[t])
            self.z[valid] = (decay * self.z + score)[valid]
            self.z_w[valid] = (decay * self.z_w + x)[valid]
            share = delta * valid / max(valid.sum(), 1)
            self.theta = self.ascent.step(self.theta, share @ self.z) + 1e-3 * rng.normal(size=len(self.theta))
            self.w = self.w + self.alpha * share @ self.z_w
        if self.updates == self.broken_at:
            self.w = self.w + np.inf
        return {"delta": float(delta.mean())}


def toy(env, **settings) -> Toy:
    """The agent for an environment."""
    space, actions = single_spaces(env)
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    features = [] if discrete else [npg.features.Affine(space, scale=1.0)]
    return Toy(npg.make_policy(space, actions, *features), **settings)


def reinforce(env, **settings) -> Agent:
    """One that learns from whole episodes."""
    scale = {"scale": 1.0} if isinstance(single_spaces(env)[0], gymnasium.spaces.Box) else {}
    return npg.make_agent("reinforce", env, **{"episodes": 2} | scale | settings)


AGENTS = {"reinforce": reinforce, "toy, Steps(1)": toy, "toy, Steps(5)": lambda env: toy(env, n=5)}


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: repr(float(value)) for name, value in row.items() if name != "seconds"} for row in rows]


def contents(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """What must not depend on when a run was interrupted: all bytes of the checkpoint, all metrics but the time."""
    with open(run / "metrics.csv", newline="") as file:
        rows = without_seconds(list(csv.DictReader(file)))
    return hashlib.sha256((run / "checkpoint.npz").read_bytes()).hexdigest(), rows
