"""Episodic natural actor–critic (Peters & Schaal 2008, Table 2; derivations, chapter 9).

Loop: generate M episodes following π_θ; for each episode i

    ψ̄_i ← Σ_t γ^t ∇ ln π(A_t|S_t, θ);   R_i ← Σ_t γ^t R_{t+1}

[u, J] ← argmin Σ_i (uᵀψ̄_i + J − R_i)² + κ‖u‖²
θ ← θ + √(2δ / uᵀFu) u, halved while D̄ of the step is above 2δ      (or θ + αu)

F is the exact Fisher matrix of the states visited.
"""

from dataclasses import dataclass

import numpy as np

from .._typing import Rng
from ..features import rows
from ..surrogates import natural_step
from ..trajectories import Episodes, Trajectories
from ..values import ridge_least_squares
from .base import Agent, integer, number


@dataclass
class EpisodicNaturalActorCritic(Agent):
    """Regression of returns on summed scores as the direction of the step, Eq. (9.17).

    It is the natural gradient for γ = 1, and for γ < 1 as far as the advantage is linear in the score.

    Parameters
    ----------
    policy : npg.Policy
    gamma : float
        Discount γ in [0, 1].
    episodes : int
        M, whole episodes per update; more than the rank of F, or the fit is not determined.
    ridge : float
        κ of the fit; with 0 the smallest solution is taken.
    delta : float or None
        δ, the divergence in nats that a step has to second order, ½ΔᵀFΔ, Eq. (9.7); a step of more than 2δ in truth is
        halved. None takes steps αu instead.
    alpha : float
        Step size α where δ is None.

    Notes
    -----
    The return of an episode that a time limit cuts ends there, which makes the limit part of the task.
    """

    gamma: float = number(0.99, 0, 1)
    episodes: int = integer(32, 2)
    ridge: float = number(0.0, 0)
    delta: float | None = number(0.01, 1e-12, optional=True)
    alpha: float = number(0.1, 0)

    @property
    def collect(self) -> Episodes:
        """M whole episodes."""
        return Episodes(self.episodes)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        theta, policy = self.theta, self.policy
        x, a, t, r, episode = traj.rows(traj.t, traj.rewards, traj.episodes())
        discount = self.gamma**t
        R = np.bincount(episode, weights=discount * r)
        psi_bar = np.empty((len(R), policy.n_params))
        for i in range(len(R)):
            of_i = episode == i
            psi_bar[i] = policy.weighted_score(theta, rows(x, of_i), a[of_i], discount[of_i])
        R = R - R[0]  # equal returns have nothing to teach, exactly; J is the mean that is left of R − uᵀψ̄
        u = ridge_least_squares(psi_bar - psi_bar.mean(axis=0), R - R.mean(), self.ridge)
        self.theta = natural_step(policy, theta, x, u, self.delta, self.alpha)
        return self.diagnostics(x, theta, natural_gradient_norm=np.linalg.norm(u))
