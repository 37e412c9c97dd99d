"""REINFORCE (Williams 1992; Sutton & Barto 2018, sections 13.3 and 13.4; derivations, chapter 1)."""

from typing import ClassVar

import numpy as np

from .._typing import Array, Rng
from ..baselines import leave_one_out_mean, optimal_constant
from ..features import Features
from ..returns import discounted_returns, normalized_advantages, total_returns
from ..trajectories import Episodes, Trajectories
from ..values import LinearValue, least_mean_squares, ridge_least_squares
from .base import Agent, choice, features, gamma, integer, method, normalization, number, optimizer


@method
class Reinforce(Agent):
    """Monte-Carlo policy gradient over batches of whole episodes.

    With the defaults, and where no time limit cuts an episode, the mean of the direction g is the gradient of the
    policy-gradient theorem, Eq. (1.9). Without γ^t it is Eq. (1.10), in general the gradient of nothing; a v̂ that is
    fitted to the same batch biases it by Eq. (1.15). An episode that a time limit cuts is completed by v̂ of its last
    observation where ``baseline="linear"``; otherwise its return ends there, which makes the limit part of the task.
    """

    baseline_features: Features = features("polynomial", doc="x of v̂(s; w) = wᵀx(s), where ``baseline='linear'``.")
    gamma: float = gamma()
    episodes: int = integer(16, 1, doc="M, whole episodes per update.")
    returns: str = choice("to_go", "total", doc="G: the reward-to-go, Eq. (1.7), or the episode's total return.")
    outer_discount: bool = choice(True, False, doc="Keep γ^t before the reward-to-go; without it, Eq. (1.10).")
    baseline: str = choice(
        "linear",
        "leave_one_out",
        "optimal",
        "none",
        doc="b: v̂(S_t; w); the mean return, or the constant of least variance, of the other episodes; 0, Eq. (1.11).",
    )
    fit: str = choice("earlier", "same", doc="v̂ fitted to earlier batches (unbiased) or to this one, Eq. (1.15).")
    alpha_w: float | None = number(
        None, 1e-12, optional=True, doc="Step size α_w of w, step by step as in the book; None fits by least squares."
    )
    ridge: float = number(1.0, 0, doc="κ of the fit by least squares.")
    normalize: str | None = normalization(None, "scale", "standardize")
    optimizer: str = optimizer("adam", "ascent")
    alpha: float = number(0.05, 0, doc="Step size α.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline in ("leave_one_out", "optimal") and self.episodes < 2:
            raise ValueError(f"episodes must be at least 2 with baseline={self.baseline!r}, got {self.episodes}")

    @property
    def collect(self) -> Episodes:
        """M whole episodes."""
        return Episodes(self.episodes)

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = self.ascending(self.policy.n_params, self.alpha)
        self.v = LinearValue(self.baseline_features)
        self.w = np.zeros(self.v.n_params)

    def values(self, x: Array, G: Array) -> Array:
        """v̂ of the rows by the w of earlier batches or of this one; w ← w + α_w (G_t − v̂(S_t)) x(S_t), or by (1.14)."""
        v, w = x @ self.w, self.w
        if self.alpha_w is None:
            self.w = ridge_least_squares(x, G, self.ridge)  # (1.14)
            return v if self.fit == "earlier" else x @ self.w
        self.w, before = least_mean_squares(w, x, G, self.alpha_w)
        return v if self.fit == "earlier" else before

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Generate M episodes S_0, A_0, R_1, …, R_T following π_θ; then, for each step t of each,

        G_t ← Σ_{k>t} γ^{k−t−1} R_k                 (total: G_0 in its place)
        δ_t ← G_t − b_t                             (linear: b_t = v̂(S_t; w), w ← argmin Σ (v̂ − G)² + κ‖w‖²)
        g ← (1/M) Σ γ^t δ_t ∇ ln π(A_t|S_t, θ)
        θ ← a step of size α along g
        """
        total = self.returns == "total"
        B = self.v.at_limits(self.w, traj) if self.baseline == "linear" else 0.0
        G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, self.gamma, B)  # (1.8)
        x, a, t, G = traj.rows(traj.t, total_returns(traj.t == 0, G) if total else G)  # (1.5), where total
        gamma_t = self.gamma**t if self.outer_discount and not total else np.ones(len(t))
        b: Array | float = 0.0
        if self.baseline == "linear":
            b = self.values(self.v.x(traj.obs[traj.valid]), G)
        elif self.baseline == "leave_one_out":
            b = leave_one_out_mean(t, G, total)  # (1.13)
        elif self.baseline == "optimal":
            b = optimal_constant(self.policy, self.theta, traj, gamma_t, G)  # (5.10)
        delta = normalized_advantages(G - b, self.normalize, np.abs(G).max())
        g = self.policy.weighted_score(self.theta, x, a, gamma_t * delta / np.count_nonzero(t == 0))  # (1.7), (1.10)
        self.theta = self.ascent.step(self.theta, g)  # (1.16)
        return {"advantage_std": (G - b).std(), "gradient_norm": np.linalg.norm(g)}
