"""Actor–critic with traces for continuing tasks (Sutton & Barto 2018, section 13.6; derivations, chapter 8)."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..traces import TRACES, add_traces, decay, online_critic
from ..trajectories import Trajectories
from ..values import LinearValue
from .base import OnlineAgent, choice, method, number


@method
class AverageRewardActorCritic(OnlineAgent):
    """Online actor–critic that maximises the reward per step, with differential values, Eqs. (8.15)–(8.17).

    A time limit is no end: the successor is bootstrapped from, and only the traces are cut. A λ of 1, with which traces
    grow without bound, and an episode that terminates are a ``ValueError``.
    """

    lam_theta: float = number(0.8, 0, 1, doc="λ_θ, the decay of the actor's trace, below 1.")
    lam_w: float = number(0.8, 0, 1, doc="λ_w, the decay of the critic's trace, below 1.")
    alpha_r: float = number(0.01, 0, doc="Step size α_R of the average reward R̄.")
    trace: str = choice(*TRACES, doc="The critic's, as ``npg.traces`` has them.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "z", "average_reward")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lam_theta", "lam_w"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} must be below 1, or its trace grows without bound, got 1")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it; w, traces and R̄ = 0."""
        super().init(rng, columns)
        v = LinearValue(self.value_features)
        self.critic = online_critic(v, columns, self.alpha_w, 1.0, self.lam_w, self.trace)
        self.z, self.average_reward = np.zeros((columns, self.policy.n_params)), np.zeros(())

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A ~ π(·|S, θ), observe S', R; then, with z_w = z_θ = 0 where an episode begins,

        δ ← R − R̄ + v̂(S', w) − v̂(S, w)
        R̄ ← R̄ + α_R δ
        z_w ← λ_w z_w + ∇v̂(S, w)
        z_θ ← λ_θ z_θ + ∇ ln π(A|S, θ)
        w ← w + α_w δ z_w
        θ ← θ + α δ z_θ
        """
        if traj.terminated.any():
            says = "the average reward is of tasks that go on, but an episode terminated: try actor_critic_lambda"
            raise ValueError(says)
        x, a, valid, n = traj.step()
        delta = self.critic.error(replace(traj, rewards=traj.rewards - self.average_reward))  # (7.1), of R − R̄
        self.average_reward = self.average_reward + self.alpha_r / n * delta.sum()
        self.critic.trace()  # (7.11)
        decay(self.z, self.lam_theta)
        self.policy.accumulate_score(self.z, self.theta, x, a, valid * 1.0)
        self.critic.learn(delta)
        self.theta = add_traces(self.theta, self.z, self.alpha / n * delta)  # (8.9), (8.17)
        self.restart(traj)
        return {"average_reward": self.average_reward, "squared_td_error": delta.dot(delta) / n}
