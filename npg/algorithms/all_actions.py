"""All-actions actor–critic (Allen et al. 2017; Ciosek & Whiteson 2020; derivations, chapter 8)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..distributions import Categorical, log_softmax
from ..traces import ExpectedSarsa
from ..trajectories import Trajectories
from ..values import LinearValue
from .base import OnlineAgent, choice, gamma, method, number


@method
class AllActions(OnlineAgent):
    """Online actor–critic that sums over the discrete actions instead of sampling one, Eq. (5.14)."""

    gamma: float = gamma()
    lam_w: float = number(0.0, 0, 1, doc="λ_w, the decay of the critic's trace; 0 is the box.")
    trace: str = choice("accumulating", "replacing", doc="The critic's, as ``npg.traces`` has them.")
    outer_discount: bool = choice(False, True, doc="I = γ^t; False keeps I = 1, which follows Eq. (1.10).")

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "I")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy.distribution, Categorical):
            raise TypeError(f"all_actions needs discrete actions, got {self.policy.distribution}")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0, I = 1."""
        super().init(rng, columns)
        self.q = LinearValue(self.value_features, self.policy.distribution.n_actions)
        self.critic = ExpectedSarsa(self.q, columns, self.alpha_w, self.gamma, self.lam_w, self.trace)
        self.I = np.ones(columns)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A ~ π(·|S, θ), observe S', R; then, with I = 1 where an episode begins,

        g ← I Σ_a ∇π(a|S, θ) q̂(S, a, w)
        δ ← R + γ Σ_a π(a|S', θ) q̂(S', a, w) − q̂(S, A, w)     (q̂ = 0 where S' is terminal)
        w_A ← w_A + α_w δ x(S)
        θ ← θ + α g
        I ← γ I
        """
        x, _, valid, n = traj.step()
        obs, next_obs = traj.observations()
        q = self.q.action_values(self.critic.w, obs)
        g = self.policy.all_actions_gradient(self.theta, x, q, self.I * valid)  # (5.14)
        pi_next = np.exp(log_softmax(self.policy.eta(self.theta, self.policy.features(next_obs))))
        delta = self.critic.error(traj, pi_next)
        self.critic.trace()
        self.critic.learn(delta)
        self.theta = self.theta + self.alpha / n * g  # (8.5)
        if self.outer_discount:
            self.I *= self.gamma
        self.restart(traj)
        return {"squared_td_error": delta.dot(delta) / n}
