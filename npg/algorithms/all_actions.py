"""All-actions actor–critic (Allen et al. 2017; Ciosek & Whiteson 2020; derivations, chapter 8).

Loop for each step of each episode, with I ← 1 at its start:

    take A ~ π(·|S, θ), observe S', R
    δ ← R + γ Σ_a π(a|S', θ) q̂(S', a, w) − q̂(S, A, w)     (q̂ = 0 where S' is terminal)
    θ ← θ + α I Σ_a ∇π(a|S, θ) q̂(S, a, w)
    w_A ← w_A + α_w δ x(S)
    I ← γ I
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..distributions import Categorical, log_softmax
from ..features import Features, rows
from ..traces import TDLambda
from ..trajectories import ONE_STEP, Steps, Trajectories
from ..values import LinearValue
from .base import Agent, choice, features, number


@dataclass
class AllActions(Agent):
    """Online actor–critic that sums over the actions instead of sampling one, Eqs. (5.14), (8.5).

    Parameters
    ----------
    policy : npg.Policy
        Of discrete actions.
    value_features : features
        Of the critic q̂(s, a; w) = w_aᵀx(s), learned by expected Sarsa.
    gamma : float
        Discount γ in [0, 1].
    lam_w : float
        Decay of the critic's trace, in [0, 1]; 0 is the box.
    alpha, alpha_w : float
        Step sizes of θ and w.
    trace : {"accumulating", "replacing"}
        Of the critic, as ``npg.critics.TDLambda`` has them.
    outer_discount : bool
        I = γ^t; False keeps I = 1, which follows Eq. (1.10).

    Raises
    ------
    TypeError
        If actions are not discrete.
    """

    value_features: Features = features("polynomial")
    gamma: float = number(0.99, 0, 1)
    lam_w: float = number(0.0, 0, 1)
    alpha: float = number(0.01, 0)
    alpha_w: float = number(0.05, 0)
    trace: str = choice("accumulating", "replacing")
    outer_discount: bool = choice(False, True)

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "I")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy.distribution, Categorical):
            raise TypeError(f"all_actions needs discrete actions, got {self.policy.distribution}")

    @property
    def collect(self) -> Steps:
        """One step."""
        return ONE_STEP

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0, I = 1."""
        super().init(rng, columns)
        value = LinearValue(self.value_features, self.policy.distribution.n_actions)
        self.critic = TDLambda(value, columns, self.alpha_w, self.gamma, self.lam_w, self.trace)
        self.I = np.ones(columns)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        policy, value = self.policy, self.critic.value
        x, valid = rows(traj.x, 0), traj.valid[0]
        n = int(np.count_nonzero(valid))
        if n == 0:
            return {"squared_td_error": 0.0}
        obs, next_obs = traj.observations()

        q = value.action_values(self.critic.w, obs)
        pi_next = np.exp(log_softmax(policy.eta(self.theta, policy.features(next_obs))))
        delta = self.critic.update(traj, pi_next)  # δ and w; q̂ above is that of the old w
        self.theta = self.theta + self.alpha / n * policy.all_actions_gradient(self.theta, x, q, self.I * valid)
        if self.outer_discount:
            self.I *= self.gamma

        self.I[traj.terminated[0] | traj.truncated[0] | ~valid] = 1
        return {"squared_td_error": delta.dot(delta) / n}
