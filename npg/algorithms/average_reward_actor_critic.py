"""Actor–critic with traces for continuing tasks (Sutton & Barto 2018, section 13.6; derivations, chapter 8).

Loop for each step, from z_w, z_θ ← 0:

    take A ~ π(·|S, θ), observe S', R
    δ ← R − R̄ + v̂(S', w) − v̂(S, w)
    R̄ ← R̄ + α_R δ
    z_w ← λ_w z_w + ∇v̂(S, w)
    z_θ ← λ_θ z_θ + ∇ ln π(A|S, θ)
    w ← w + α_w δ z_w
    θ ← θ + α δ z_θ
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..features import Features, rows
from ..traces import TRACES, TDLambda, add_traces, decay
from ..trajectories import ONE_STEP, Steps, Trajectories
from ..values import LinearValue
from .base import Agent, choice, features, number


@dataclass
class AverageRewardActorCritic(Agent):
    """Online actor–critic that maximises the reward per step, Eqs. (8.15)–(8.17).

    Parameters
    ----------
    policy : npg.Policy
    value_features : features
        Of the critic v̂(s; w) = wᵀx(s) of differential values.
    lam_theta, lam_w : float
        Decay of the actor's and of the critic's trace, in [0, 1).
    alpha, alpha_w, alpha_r : float
        Step sizes of θ, w and the average reward R̄.
    trace : {"accumulating", "replacing", "dutch"}
        Of the critic, as ``npg.critics.TDLambda`` has them.

    Raises
    ------
    ValueError
        For a λ of 1, with which traces grow without bound; in ``update``, where an episode terminates: the task is
        not a continuing one.

    Notes
    -----
    A time limit is no end: the successor is bootstrapped from, and only the traces are cut.
    """

    value_features: Features = features("polynomial")
    lam_theta: float = number(0.8, 0, 1)
    lam_w: float = number(0.8, 0, 1)
    alpha: float = number(0.01, 0)
    alpha_w: float = number(0.05, 0)
    alpha_r: float = number(0.01, 0)
    trace: str = choice(*TRACES)

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "z", "average_reward")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lam_theta", "lam_w"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} must be below 1, or its trace grows without bound, got 1")

    @property
    def collect(self) -> Steps:
        """One step."""
        return ONE_STEP

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it; w, traces and R̄ = 0."""
        super().init(rng, columns)
        self.critic = TDLambda(LinearValue(self.value_features), columns, self.alpha_w, 1.0, self.lam_w, self.trace)
        self.z = np.zeros((columns, self.policy.n_params))
        self.average_reward = np.zeros(())

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        if traj.terminated.any():
            raise ValueError(
                "the average reward is of tasks that go on, but an episode terminated: try actor_critic_lambda"
            )
        x, a, valid = rows(traj.x, 0), traj.actions[0], traj.valid[0]
        n = max(int(np.count_nonzero(valid)), 1)

        delta = self.critic.update(replace(traj, rewards=traj.rewards - self.average_reward))  # δ, z_w and w
        self.average_reward = self.average_reward + self.alpha_r / n * delta.sum()
        decay(self.z, self.lam_theta)
        self.policy.accumulate_score(self.z, self.theta, x, a, valid * 1.0)
        self.theta = add_traces(self.theta, self.z, self.alpha / n * delta)

        self.z[traj.truncated[0]] = 0
        return {"average_reward": self.average_reward, "squared_td_error": delta.dot(delta) / n}
