"""One-step actor–critic (Sutton & Barto 2018, section 13.5; derivations, chapter 8)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..traces import online_critic
from ..trajectories import Trajectories
from ..values import LinearValue
from .base import OnlineAgent, choice, gamma, method


@method
class OneStepActorCritic(OnlineAgent):
    """Online actor–critic whose TD error replaces the return, Eq. (8.1); biased by Eq. (8.2)."""

    gamma: float = gamma()
    outer_discount: bool = choice(False, True, doc="I = γ^t as in the book; False keeps I = 1, Eq. (1.10).")

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "I")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0, I = 1."""
        super().init(rng, columns)
        self.critic = online_critic(LinearValue(self.value_features), columns, self.alpha_w, self.gamma, lam=0.0)
        self.I = np.ones(columns)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A ~ π(·|S, θ), observe S', R; then, with I = 1 where an episode begins,

        δ ← R + γ v̂(S', w) − v̂(S, w)                          (v̂ = 0 where S' is terminal)
        w ← w + α_w δ ∇v̂(S, w)
        θ ← θ + α I δ ∇ ln π(A|S, θ)
        I ← γ I
        """
        x, a, _, n = traj.step()
        delta = self.critic.update(traj)  # (7.1), (7.3)
        self.theta = self.theta + self.alpha / n * self.policy.weighted_score(self.theta, x, a, self.I * delta)  # (8.6)
        if self.outer_discount:
            self.I *= self.gamma
        self.restart(traj)
        return {"squared_td_error": delta.dot(delta) / n}
