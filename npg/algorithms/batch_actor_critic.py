"""Batch actor–critic (derivations, chapter 8).

Loop: generate M episodes following π_θ and keep p_t ← π(A_t|S_t, θ); then

    K_v times:   Y_t ← target of every row, with v̂(·, w)
                 w ← argmin Σ (wᵀx(S_t) − Y_t)² + κ‖w‖²
    Â_t ← target of every row − v̂(S_t, w)
    K_π times:   ρ_t ← π(A_t|S_t, θ) / p_t                 (1 the first time)
                 θ ← θ + α (1/M) Σ γ^t ρ_t Â_t ∇ ln π(A_t|S_t, θ)
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Array, Rng
from ..features import Features
from ..optimizers import OPTIMIZERS
from ..returns import discounted_returns, lambda_returns, n_step_returns, normalized_advantages
from ..trajectories import Episodes, Trajectories
from ..values import LinearValue, ridge_least_squares
from .base import Agent, choice, features, integer, number


@dataclass
class BatchActorCritic(Agent):
    """Critic fits, then actor steps, on batches of whole episodes, Eq. (8.11).

    Parameters
    ----------
    policy : npg.Policy
    value_features : features
        Of the critic v̂(s; w) = wᵀx(s).
    gamma : float
        Discount γ in [0, 1].
    episodes : int
        M, whole episodes per batch.
    target : {"lambda", "td", "n_step", "mc"}
        What the critic is fitted to, and, less v̂, the advantage: λ-returns, Eq. (7.9); one-step or n-step returns,
        Eq. (7.6); Monte-Carlo returns, Eq. (1.8).
    lam, n : float, int
        λ and n of those targets.
    K_v, K_pi : int
        Critic fits and actor steps on one batch. Steps after the first weigh each row by its ratio, the first-order
        estimate Eq. (6.21).
    ridge : float
        κ of the fits.
    outer_discount : bool
        Keep the γ^t; without it the first step follows Eq. (1.10).
    normalize : {None, "scale", "standardize"}
        Divide Â by its deviation over the rows, or shift it to mean 0 too, Eq. (11.15), unless that is rounding.
    optimizer : {"adam", "ascent", "rmsprop"}
    alpha : float
        Step size α.
    """

    value_features: Features = features("polynomial")
    gamma: float = number(0.99, 0, 1)
    episodes: int = integer(16, 1)
    target: str = choice("lambda", "td", "n_step", "mc")
    lam: float = number(0.95, 0, 1)
    n: int = integer(5, 1)
    K_v: int = integer(1, 1)
    K_pi: int = integer(1, 1)
    ridge: float = number(1.0, 0)
    outer_discount: bool = choice(False, True)
    normalize: str | None = choice(None, "scale", "standardize")
    optimizer: str = choice("adam", "ascent", "rmsprop")
    alpha: float = number(0.05, 0)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent")

    @property
    def collect(self) -> Episodes:
        """M whole episodes."""
        return Episodes(self.episodes)

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = OPTIMIZERS[self.optimizer](self.policy.n_params, self.alpha)
        self.v = LinearValue(self.value_features)
        self.w = np.zeros(self.v.n_params)

    def _targets(self, traj: Trajectories, v_next: Array) -> Array:
        """Y_t: (T, N)."""
        ends = traj.terminated, traj.truncated
        if self.target == "mc":
            return discounted_returns(traj.rewards, *ends, self.gamma, v_next)
        if self.target == "lambda":
            return lambda_returns(traj.rewards, v_next, *ends, self.gamma, self.lam)
        return n_step_returns(traj.rewards, v_next, *ends, self.gamma, self.n if self.target == "n_step" else 1)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop, on a batch of whole episodes."""
        valid = traj.valid
        x, a, t = traj.rows(traj.t)
        phi, phi_next = self.v.x(traj.obs[valid]), self.v.x(traj.next_obs[valid])
        M = np.count_nonzero(t == 0)

        def targets() -> Array:
            v_next = np.zeros(valid.shape)
            v_next[valid] = phi_next @ self.w
            return self._targets(traj, v_next)[valid]

        for _ in range(self.K_v):
            self.w = ridge_least_squares(phi, targets(), self.ridge)
        Y = targets()
        advantage = Y - phi @ self.w
        spread = advantage.std()
        advantage = normalized_advantages(advantage, self.normalize, np.abs(Y).max())

        discount = self.gamma**t if self.outer_discount else np.ones(len(t))
        log_p = self.policy.log_prob(self.theta, x, a)
        norm = 0.0
        for _ in range(self.K_pi):
            rho = np.exp(self.policy.log_prob(self.theta, x, a) - log_p)
            g = self.policy.weighted_score(self.theta, x, a, discount * rho * advantage / M)
            self.theta = self.ascent.step(self.theta, g)
            norm = norm or float(np.linalg.norm(g))
        return {"advantage_std": spread, "gradient_norm": norm}
