"""Actor–critic with eligibility traces (Sutton & Barto 2018, section 13.5; derivations, chapter 8)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..traces import TRACES, add_traces, decay, online_critic
from ..trajectories import Trajectories
from ..values import LinearValue
from .base import OnlineAgent, choice, gamma, method, number


@method
class ActorCriticLambda(OnlineAgent):
    """Online actor–critic with traces on both; with frozen parameters, GAE as it comes in, Eq. (8.8).

    A time limit cuts the traces and is bootstrapped through, Eq. (8.10).
    """

    gamma: float = gamma()
    lam_theta: float = number(0.8, 0, 1, doc="λ_θ, the decay of the actor's trace.")
    lam_w: float = number(0.8, 0, 1, doc="λ_w, the decay of the critic's trace.")
    trace: str = choice(*TRACES, doc="The critic's, as ``npg.traces`` has them.")
    outer_discount: bool = choice(False, True, doc="I = γ^t as in the book; False keeps I = 1, Eq. (1.10).")

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "z", "I")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w and traces 0, I = 1."""
        super().init(rng, columns)
        v = LinearValue(self.value_features)
        self.critic = online_critic(v, columns, self.alpha_w, self.gamma, self.lam_w, self.trace)
        self.z, self.I = np.zeros((columns, self.policy.n_params)), np.ones(columns)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A ~ π(·|S, θ), observe S', R; then, with I = 1 and z_w = z_θ = 0 where an episode begins,

        δ ← R + γ v̂(S', w) − v̂(S, w)                          (v̂ = 0 where S' is terminal)
        z_w ← γ λ_w z_w + ∇v̂(S, w)
        z_θ ← γ λ_θ z_θ + I ∇ ln π(A|S, θ)
        w ← w + α_w δ z_w
        θ ← θ + α δ z_θ
        I ← γ I
        """
        x, a, valid, n = traj.step()
        delta = self.critic.error(traj)  # (7.1)
        self.critic.trace()  # (7.11)
        decay(self.z, self.gamma * self.lam_theta)
        self.policy.accumulate_score(self.z, self.theta, x, a, self.I * valid)
        self.critic.learn(delta)
        self.theta = add_traces(self.theta, self.z, self.alpha / n * delta)  # (8.7), (8.9)
        if self.outer_discount:
            self.I *= self.gamma
        self.restart(traj)
        return {"squared_td_error": delta.dot(delta) / n}
