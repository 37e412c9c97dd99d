"""A2C: synchronous advantage actor–critic (Mnih et al. 2016; derivations, chapter 8).

Loop: take T steps in each of N environments following π_θ; then

    Â_t ← advantage of every row, with v̂(·, w);   G_t ← Â_t + v̂(S_t, w)
    g_θ ← (1/TN) Σ [Â_t ∇ ln π(A_t|S_t, θ) + β ∇H(π(·|S_t, θ))]
    g_w ← (1/TN) Σ (G_t − v̂(S_t, w)) x(S_t)
    g_θ, g_w ← each clipped to norm c
    θ ← a step of size α along g_θ;   w ← a step of size α_w along g_w
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..optimizers import OPTIMIZERS, clip_norm
from ..returns import gae, n_step_returns, normalized_advantages
from ..trajectories import Trajectories
from .base import AdvantageAgent, choice, integer, number


@dataclass
class A2C(AdvantageAgent):
    """Advantage actor–critic on T steps of N environments, with an entropy bonus, Eq. (8.12).

    Parameters
    ----------
    policy : npg.Policy
    value_features : features
        Of the critic v̂(s; w) = wᵀx(s).
    gamma : float
        Discount γ in [0, 1].
    n_steps : int
        T, steps of each environment per update.
    advantage : {"gae", "n_step"}
        Â_t by Eq. (7.20), or by Eq. (7.19); both bootstrap at the end of the T steps and at time limits, Eq. (8.10).
    lam, n : float, int
        λ and n of those; n ≥ T is the return of A3C, up to the last of the T steps.
    beta : float
        Weight β of the entropy.
    clip : float or None
        Largest norm c of each gradient, Eq. (8.13); None does not clip.
    normalize : {None, "scale", "standardize"}
        Divide Â by its deviation over the rows, or shift it to mean 0 too, Eq. (11.15), unless that is rounding.
    optimizer : {"rmsprop", "adam", "ascent"}
    alpha, alpha_w : float
        Step sizes of θ and w.
    """

    n_steps: int = integer(16, 1)
    advantage: str = choice("gae", "n_step")
    n: int = integer(5, 1)
    beta: float = number(0.01, 0)
    clip: float | None = number(0.5, 1e-12, optional=True)
    normalize: str | None = choice(None, "scale", "standardize")
    optimizer: str = choice("rmsprop", "adam", "ascent")
    alpha: float = number(0.01, 0)
    alpha_w: float = number(0.05, 0)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "ascent_w")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = OPTIMIZERS[self.optimizer](self.policy.n_params, self.alpha)
        self.ascent_w = OPTIMIZERS[self.optimizer](self.v.n_params, self.alpha_w)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        if not traj.valid.any():
            return {"advantage_std": 0.0, "entropy": 0.0, "gradient_norm": 0.0}
        ends = traj.terminated, traj.truncated
        x_v, v, v_next = self.v.on(self.w, traj)
        if self.advantage == "gae":
            A = gae(traj.rewards, v, v_next, *ends, self.gamma, self.lam)
        else:
            A = n_step_returns(traj.rewards, v_next, *ends, self.gamma, self.n) - v
        x, a, A = traj.rows(A)

        g_w = self.v.model.vjp(self.w, x_v, A[:, None] / len(A))
        spread = A.std()
        A = normalized_advantages(A, self.normalize, np.abs(v).max())
        g = self.policy.weighted_score(self.theta, x, a, A / len(A))
        g = g + self.beta * self.policy.entropy_grad(self.theta, x, np.full(len(A), 1 / len(A)))
        self.theta = self.ascent.step(self.theta, clip_norm(g, self.clip))
        self.w = self.ascent_w.step(self.w, clip_norm(g_w, self.clip))
        return self.diagnostics(x, advantage_std=spread, gradient_norm=np.linalg.norm(g))
