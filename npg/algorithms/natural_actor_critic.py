"""Natural actor–critic with LSTD (Peters & Schaal 2008, Table 1; derivations, chapter 9).

Loop: take T steps in each of N environments following π_θ; then

    ψ_t ← ∇ ln π(A_t|S_t, θ);   x_t ← [φ(S_t), ψ_t];   x'_t ← [φ(S_{t+1}), 0]
    [v, u] ← LSTD(λ) on x_t, R_{t+1}, x'_t
    θ ← θ + √(2δ / uᵀFu) u, halved while D̄ of the step is above 2δ      (or θ + αu)

u are the weights of the compatible advantage uᵀψ(s, a), which are the natural gradient; F is the exact Fisher matrix of
the states visited.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..features import Features
from ..surrogates import natural_step
from ..trajectories import Steps, Trajectories
from ..values import LinearValue, lstd
from .base import Agent, features, integer, number


@dataclass
class NaturalActorCritic(Agent):
    """Compatible advantage weights by LSTD(λ) as the direction of the step, Eqs. (9.11), (9.16).

    Parameters
    ----------
    policy : npg.Policy
    value_features : features
        φ, of the value of states; the direction is right to the extent that they can represent v_π, or λ is near 1.
    gamma : float
        Discount γ in [0, 1].
    n_steps : int
        T, steps of each environment per update.
    lam : float
        λ of LSTD(λ), Eq. (7.17).
    ridge : float
        κ of LSTD(λ).
    delta : float or None
        δ, the divergence in nats that a step has to second order, ½ΔᵀFΔ, Eq. (9.7); a step of more than 2δ in truth is
        halved. None takes steps αu instead.
    alpha : float
        Step size α where δ is None.
    """

    value_features: Features = features("polynomial")
    gamma: float = number(0.99, 0, 1)
    n_steps: int = integer(128, 2)
    lam: float = number(0.95, 0, 1)
    ridge: float = number(1.0, 0)
    delta: float | None = number(0.01, 1e-12, optional=True)
    alpha: float = number(0.1, 0)

    num_envs: ClassVar[int] = 16

    @property
    def collect(self) -> Steps:
        """T steps of each environment."""
        return Steps(self.n_steps)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        valid, theta, policy = traj.valid, self.theta, self.policy
        x, a = traj.rows()
        phi = LinearValue(self.value_features)
        d, n = phi.n_params, policy.n_params
        x_t, x_next = np.zeros((2, *valid.shape, d + n))
        x_t[valid, :d], x_next[valid, :d] = phi.x(traj.obs[valid]), phi.x(traj.next_obs[valid])
        x_t[valid, d:] = policy.score(theta, x, a)
        ends = traj.terminated, traj.truncated
        u = lstd(x_t, traj.rewards, x_next, *ends, valid, self.gamma, self.lam, self.ridge)[d:]
        self.theta = natural_step(policy, theta, x, u, self.delta, self.alpha)
        return self.diagnostics(x, theta, natural_gradient_norm=np.linalg.norm(u))
