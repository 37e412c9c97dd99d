"""Small environments and an online agent with traces, for what the loop, the runs and the command line must do."""

import csv
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import npg
from npg.algorithms import Agent
from npg.algorithms.base import integer, method, number
from npg.features import dense
from npg.optimizers import Adam


class Walk(gymnasium.Env):
    """A slippery walk on 7 states with noisy rewards, ended at both sides and cut after 12 steps.

    ``fault`` is called with the number of each step, counted over all episodes, and its reward, and gives the reward.
    ``seeds`` collects the seeds of its resets, ``finished`` (steps so far, return, length) of each whole episode.
    """

    observation_space = gymnasium.spaces.Discrete(7)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fault=lambda step, reward: reward) -> None:
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
        terminated, truncated = self.s in (0, 6), self.t >= 12
        if terminated or truncated:
            self.finished.append((self.steps, self.total, self.t))
        return self.s, self.fault(self.steps, reward), terminated, truncated and not terminated, {}


def walks(n: int, fault=lambda step, reward: reward, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> SyncVectorEnv:
    """n walks as a vector environment, the fault in the first."""
    return SyncVectorEnv([lambda f=f: Walk(*f) for f in [(fault,)] + [()] * (n - 1)], autoreset_mode=mode)


def raises_at(k: int, error: BaseException):
    """A fault that raises ``error`` at step k."""

    def fault(step: int, reward: float) -> float:
        if step == k:
            raise error
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


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: repr(float(value)) for name, value in row.items() if name != "seconds"} for row in rows]


def contents(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """What must not depend on when a run was interrupted: all bytes of the checkpoint, all metrics but the time."""
    with open(run / "metrics.csv", newline="") as file:
        rows = without_seconds(list(csv.DictReader(file)))
    return hashlib.sha256((run / "checkpoint.npz").read_bytes()).hexdigest(), rows
