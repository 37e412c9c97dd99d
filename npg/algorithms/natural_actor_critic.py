"""Natural actor–critic with LSTD (Peters & Schaal 2008, Table 1; derivations, chapter 9)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..features import Features
from ..surrogates import natural_step
from ..trajectories import Steps, Trajectories
from ..values import LinearValue, lstd
from .base import Agent, features, gamma, integer, method, number, radius


@method
class NaturalActorCritic(Agent):
    """Compatible advantage weights by LSTD(λ), which are the natural gradient, Eq. (9.11), as direction of the step."""

    value_features: Features = features("polynomial", doc="φ, of state values: to represent v_π, unless λ is near 1.")
    gamma: float = gamma()
    n_steps: int = integer(128, 2, doc="T, steps of each environment per update.")
    lam: float = number(0.95, 0, 1, doc="λ of LSTD(λ).")
    ridge: float = number(1.0, 0, doc="κ of LSTD(λ).")
    delta: float | None = radius()
    alpha: float = number(0.1, 0, doc="Step size α where δ is None.")

    num_envs: ClassVar[int] = 16

    @property
    def collect(self) -> Steps:
        """T steps of each environment."""
        return Steps(self.n_steps)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take T steps in each of N environments following π_θ; then

        ψ_t ← ∇ ln π(A_t|S_t, θ);   x_t ← [φ(S_t), ψ_t];   x'_t ← [φ(S_{t+1}), 0]
        [v, u] ← LSTD(λ) on x_t, R_{t+1}, x'_t
        θ ← θ + √(2δ / uᵀFu) u, halved while D̄ of the step is above 2δ      (or θ + αu)

        F is the exact Fisher matrix of the states visited.
        """
        valid, theta, policy = traj.valid, self.theta, self.policy
        x, a, obs, next_obs = traj.rows(traj.obs, traj.next_obs)
        phi = LinearValue(self.value_features)
        d, n = phi.n_params, policy.n_params
        x_t, x_next = np.zeros((2, *valid.shape, d + n))
        x_t[valid, :d], x_next[valid, :d] = phi.x(obs), phi.x(next_obs)
        x_t[valid, d:] = policy.score(theta, x, a)
        ends = traj.terminated, traj.truncated
        u = lstd(x_t, traj.rewards, x_next, *ends, valid, self.gamma, self.lam, self.ridge)[d:]  # (9.16)
        self.theta = natural_step(policy, theta, x, u, self.delta, self.alpha)  # (9.7)
        return self.diagnostics(x, theta, natural_gradient_norm=np.linalg.norm(u))
