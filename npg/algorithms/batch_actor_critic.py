"""Batch actor–critic (derivations, chapter 8)."""

from typing import ClassVar

import numpy as np

from .._typing import Array, Rng
from ..features import Features
from ..returns import discounted_returns, lambda_returns, n_step_returns, normalized_advantages
from ..trajectories import Episodes, Trajectories
from ..values import LinearValue, ridge_least_squares
from .base import Agent, choice, features, gamma, integer, method, normalization, number, optimizer


@method
class BatchActorCritic(Agent):
    """Critic fits, then actor steps, on batches of whole episodes."""

    value_features: Features = features("polynomial", doc="x of the critic v̂(s; w) = wᵀx(s).")
    gamma: float = gamma()
    episodes: int = integer(16, 1, doc="M, whole episodes per batch.")
    target: str = choice(
        "lambda", "td", "n_step", "mc", doc="Y: λ-returns, Eq. (7.9); one- or n-step returns, Eq. (7.6); Monte-Carlo."
    )
    lam: float = number(0.95, 0, 1, doc="λ of that target.")
    n: int = integer(5, 1, doc="n of that target.")
    K_v: int = integer(1, 1, doc="Critic fits on one batch.")
    K_pi: int = integer(1, 1, doc="Actor steps on one batch; after the first by the first-order estimate, Eq. (6.21).")
    ridge: float = number(1.0, 0, doc="κ of the fits.")
    outer_discount: bool = choice(False, True, doc="Keep the γ^t; without it the first step follows Eq. (1.10).")
    normalize: str | None = normalization(None, "scale", "standardize")
    optimizer: str = optimizer("adam", "ascent", "rmsprop")
    alpha: float = number(0.05, 0, doc="Step size α.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent")

    @property
    def collect(self) -> Episodes:
        """M whole episodes."""
        return Episodes(self.episodes)

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = self.ascending(self.policy.n_params, self.alpha)
        self.v = LinearValue(self.value_features)
        self.w = np.zeros(self.v.n_params)

    def targets(self, traj: Trajectories, phi_next: Array) -> Array:
        """Y_t of the valid rows, with v̂(·, w): (B,)."""
        v_next = np.zeros(traj.valid.shape)
        v_next[traj.valid] = phi_next @ self.w
        r, ends, gamma = traj.rewards, (traj.terminated, traj.truncated), self.gamma
        if self.target == "lambda":
            Y = lambda_returns(r, v_next, *ends, gamma, self.lam)  # (7.9)
        elif self.target == "mc":
            Y = discounted_returns(r, *ends, gamma, v_next)  # (1.8)
        else:
            Y = n_step_returns(r, v_next, *ends, gamma, self.n if self.target == "n_step" else 1)  # (7.6)
        return Y[traj.valid]

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Generate M episodes following π_θ and keep p_t ← π(A_t|S_t, θ); then

        K_v times:   Y_t ← target of every row, with v̂(·, w)
                     w ← argmin Σ (wᵀx(S_t) − Y_t)² + κ‖w‖²
        Â_t ← target of every row − v̂(S_t, w)
        K_π times:   ρ_t ← π(A_t|S_t, θ) / p_t                 (1 the first time)
                     θ ← θ + α (1/M) Σ γ^t ρ_t Â_t ∇ ln π(A_t|S_t, θ)
        """
        x, a, t, obs, next_obs = traj.rows(traj.t, traj.obs, traj.next_obs)
        phi, phi_next, log_p = self.v.x(obs), self.v.x(next_obs), self.policy.log_prob(self.theta, x, a)
        for _ in range(self.K_v):
            self.w = ridge_least_squares(
                phi, self.targets(traj, phi_next), self.ridge
            )  # (1.14); (7.18) if the target is td
        Y = self.targets(traj, phi_next)
        A = normalized_advantages(Y - phi @ self.w, self.normalize, np.abs(Y).max())  # (7.19), (7.20), by the target
        gamma_t, M = self.gamma**t if self.outer_discount else np.ones(len(t)), np.count_nonzero(t == 0)
        norms = []
        for _ in range(self.K_pi):
            rho = np.exp(self.policy.log_prob(self.theta, x, a) - log_p)
            g = self.policy.weighted_score(self.theta, x, a, gamma_t * rho * A / M)  # (6.21), (8.11)
            self.theta = self.ascent.step(self.theta, g)
            norms.append(np.linalg.norm(g))
        return {"advantage_std": (Y - phi @ self.w).std(), "gradient_norm": norms[0]}
