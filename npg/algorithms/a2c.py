"""A2C: synchronous advantage actor–critic (Mnih et al. 2016; derivations, chapter 8)."""

from typing import ClassVar

import numpy as np

from .._typing import Array, Rng
from ..optimizers import clip_norm
from ..returns import n_step_returns, normalized_advantages
from ..trajectories import Trajectories
from .base import AdvantageAgent, choice, integer, method, normalization, number, optimizer


@method
class A2C(AdvantageAgent):
    """Advantage actor–critic on T steps of N environments, with an entropy bonus."""

    n_steps: int = integer(16, 1, doc="T, steps of each environment per update.")
    advantage: str = choice("gae", "n_step", doc="Â by Eq. (7.20), or by Eq. (7.19); n ≥ T is the return of A3C.")
    n: int = integer(5, 1, doc="n of the n-step advantages.")
    beta: float = number(0.01, 0, doc="Weight β of the entropy.")
    clip: float | None = number(0.5, 1e-12, optional=True, doc="Largest norm c of each gradient; None does not clip.")
    normalize: str | None = normalization(None, "scale", "standardize")
    optimizer: str = optimizer("rmsprop", "adam", "ascent")
    alpha: float = number(0.01, 0, doc="Step size α of θ.")
    alpha_w: float = number(0.05, 0, doc="Step size α_w of w.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "ascent_w")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = self.ascending(self.policy.n_params, self.alpha)
        self.ascent_w = self.ascending(self.v.n_params, self.alpha_w)

    def estimate(self, traj: Trajectories, v: Array, v_next: Array) -> Array:
        """Â_t: (T, N)."""
        if self.advantage == "gae":
            return super().estimate(traj, v, v_next)
        return n_step_returns(traj.rewards, v_next, traj.terminated, traj.truncated, self.gamma, self.n) - v  # (7.19)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take T steps in each of N environments following π_θ; then, over all rows,

        Â_t ← advantage, with v̂(·, w);   G_t ← Â_t + v̂(S_t, w)
        g_w ← (1/TN) Σ (G_t − v̂(S_t, w)) x(S_t)
        g_θ ← (1/TN) Σ [Â_t ∇ ln π(A_t|S_t, θ) + β ∇H(π(·|S_t, θ))]
        g_θ, g_w ← each clipped to norm c
        θ ← a step of size α along g_θ;   w ← a step of size α_w along g_w
        """
        x, a, x_v, v, A = self.advantages(traj)  # (7.20)
        B, spread = len(A), A.std()
        g_w = self.v.model.vjp(self.w, x_v, A[:, None] / B)
        A = normalized_advantages(A, self.normalize, np.abs(v).max())  # (11.15)
        g = self.policy.weighted_score(self.theta, x, a, A / B)
        g = g + self.beta * self.policy.entropy_grad(self.theta, x, np.full(B, 1 / B))  # (8.12)
        self.theta = self.ascent.step(self.theta, clip_norm(g, self.clip))  # (8.13)
        self.w = self.ascent_w.step(self.w, clip_norm(g_w, self.clip))
        return self.diagnostics(x, advantage_std=spread, gradient_norm=np.linalg.norm(g))
