"""Actor–critic with eligibility traces (Sutton & Barto 2018, section 13.5; derivations, chapter 8).

Loop for each step of each episode, with I ← 1 and z_w, z_θ ← 0 at its start:

    take A ~ π(·|S, θ), observe S', R
    δ ← R + γ v̂(S', w) − v̂(S, w)                          (v̂ = 0 where S' is terminal)
    z_w ← γ λ_w z_w + ∇v̂(S, w)
    z_θ ← γ λ_θ z_θ + I ∇ ln π(A|S, θ)
    w ← w + α_w δ z_w
    θ ← θ + α δ z_θ
    I ← γ I
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..features import Features, rows
from ..traces import TRACES, TDLambda, add_traces, decay
from ..trajectories import ONE_STEP, Steps, Trajectories
from ..values import LinearValue
from .base import Agent, choice, features, number


@dataclass
class ActorCriticLambda(Agent):
    """Online actor–critic with traces on both, Eq. (8.7); with frozen parameters, GAE as it comes in, Eq. (8.8).

    Parameters
    ----------
    policy : npg.Policy
    value_features : features
        Of the critic v̂(s; w) = wᵀx(s).
    gamma : float
        Discount γ in [0, 1].
    lam_theta, lam_w : float
        Decay of the actor's and of the critic's trace, in [0, 1].
    alpha, alpha_w : float
        Step sizes of θ and w; divide by the number of tilings on tile coding, Eq. (7.22).
    trace : {"accumulating", "replacing", "dutch"}
        Of the critic, as ``npg.critics.TDLambda`` has them.
    outer_discount : bool
        I = γ^t as in the book; False keeps I = 1, which follows Eq. (1.10).

    Notes
    -----
    A time limit cuts the traces and is bootstrapped through, Eq. (8.10).
    """

    value_features: Features = features("polynomial")
    gamma: float = number(0.99, 0, 1)
    lam_theta: float = number(0.8, 0, 1)
    lam_w: float = number(0.8, 0, 1)
    alpha: float = number(0.01, 0)
    alpha_w: float = number(0.05, 0)
    trace: str = choice(*TRACES)
    outer_discount: bool = choice(False, True)

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "z", "I")

    @property
    def collect(self) -> Steps:
        """One step."""
        return ONE_STEP

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w and traces 0, I = 1."""
        super().init(rng, columns)
        self.critic = TDLambda(
            LinearValue(self.value_features), columns, self.alpha_w, self.gamma, self.lam_w, self.trace
        )
        self.z = np.zeros((columns, self.policy.n_params))
        self.I = np.ones(columns)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        x, a, valid = rows(traj.x, 0), traj.actions[0], traj.valid[0]
        n = max(int(np.count_nonzero(valid)), 1)

        delta = self.critic.update(traj)  # δ, z_w and w
        decay(self.z, self.gamma * self.lam_theta)
        self.policy.accumulate_score(self.z, self.theta, x, a, self.I * valid)
        self.theta = add_traces(self.theta, self.z, self.alpha / n * delta)
        if self.outer_discount:
            self.I *= self.gamma

        ends = traj.terminated[0] | traj.truncated[0] | ~valid
        if np.count_nonzero(ends):
            self.z[ends], self.I[ends] = 0, 1
        return {"squared_td_error": delta.dot(delta) / n}
