"""One-step actor–critic (Sutton & Barto 2018, section 13.5; derivations, chapter 8).

Loop for each step of each episode, with I ← 1 at its start:

    take A ~ π(·|S, θ), observe S', R
    δ ← R + γ v̂(S', w) − v̂(S, w)                          (v̂ = 0 where S' is terminal)
    w ← w + α_w δ ∇v̂(S, w)
    θ ← θ + α I δ ∇ ln π(A|S, θ)
    I ← γ I
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..features import Features, rows
from ..traces import TDLambda
from ..trajectories import ONE_STEP, Steps, Trajectories
from ..values import LinearValue
from .base import Agent, choice, features, number


@dataclass
class OneStepActorCritic(Agent):
    """Online actor–critic whose TD error replaces the return, Eqs. (8.1), (8.6); biased by Eq. (8.2).

    Parameters
    ----------
    policy : npg.Policy
    value_features : features
        Of the critic v̂(s; w) = wᵀx(s).
    gamma : float
        Discount γ in [0, 1].
    alpha, alpha_w : float
        Step sizes of θ and w.
    outer_discount : bool
        I = γ^t as in the book; False keeps I = 1, which follows Eq. (1.10).
    """

    value_features: Features = features("polynomial")
    gamma: float = number(0.99, 0, 1)
    alpha: float = number(0.01, 0)
    alpha_w: float = number(0.05, 0)
    outer_discount: bool = choice(False, True)

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "I")

    @property
    def collect(self) -> Steps:
        """One step."""
        return ONE_STEP

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0, I = 1."""
        super().init(rng, columns)
        self.critic = TDLambda(LinearValue(self.value_features), columns, self.alpha_w, self.gamma, lam=0.0)
        self.I = np.ones(columns)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        x, a, valid = rows(traj.x, 0), traj.actions[0], traj.valid[0]
        n = max(int(np.count_nonzero(valid)), 1)

        delta = self.critic.update(traj)  # δ and w
        self.theta = self.theta + self.alpha / n * self.policy.weighted_score(self.theta, x, a, self.I * delta)
        if self.outer_discount:
            self.I *= self.gamma

        self.I[traj.terminated[0] | traj.truncated[0] | ~valid] = 1
        return {"squared_td_error": delta.dot(delta) / n}
