"""Episodic natural actor–critic (Peters & Schaal 2008, Table 2; derivations, chapter 9)."""

import numpy as np

from .._typing import Rng
from ..estimators import episode_scores
from ..surrogates import natural_step
from ..trajectories import Episodes, Trajectories
from ..values import ridge_least_squares
from .base import Agent, gamma, integer, method, number, radius


@method
class EpisodicNaturalActorCritic(Agent):
    """Regression of returns on summed scores as the direction of the step.

    It is the natural gradient for γ = 1, and for γ < 1 as far as the advantage is linear in the score. The return of an
    episode that a time limit cuts ends there, which makes the limit part of the task.
    """

    gamma: float = gamma()
    episodes: int = integer(32, 2, doc="M, whole episodes per update; more than the rank of F, or u is not determined.")
    ridge: float = number(0.0, 0, doc="κ of the fit; with 0 the smallest solution is taken.")
    delta: float | None = radius()
    alpha: float = number(0.1, 0, doc="Step size α where δ is None.")

    @property
    def collect(self) -> Episodes:
        """M whole episodes."""
        return Episodes(self.episodes)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Generate M episodes following π_θ; for each episode i

            ψ̄_i ← Σ_t γ^t ∇ ln π(A_t|S_t, θ);   R_i ← Σ_t γ^t R_{t+1}

        [u, J] ← argmin Σ_i (uᵀψ̄_i + J − R_i)² + κ‖u‖²
        θ ← θ + √(2δ / uᵀFu) u, halved while D̄ of the step is above 2δ      (or θ + αu)

        F is the exact Fisher matrix of the states visited.
        """
        theta, policy = self.theta, self.policy
        x, a, t, r, episode = traj.rows(traj.t, traj.rewards, traj.episodes())
        psi_bar = episode_scores(policy, theta, x, a, self.gamma**t, episode)
        R = np.bincount(episode, weights=self.gamma**t * r)
        R = R - R[0]  # equal returns have nothing to teach, exactly; J is the mean that is left of R − uᵀψ̄
        u = ridge_least_squares(psi_bar - psi_bar.mean(axis=0), R - R.mean(), self.ridge)  # (9.17)
        self.theta = natural_step(policy, theta, x, u, self.delta, self.alpha)  # (9.7)
        return self.diagnostics(x, theta, natural_gradient_norm=np.linalg.norm(u))
