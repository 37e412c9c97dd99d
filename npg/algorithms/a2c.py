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
from ..features import rows
from ..optimizers import OPTIMIZERS, clip_norm
from ..returns import gae, n_step_returns, standardized
from ..rollout import Trajectories
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
    clip : float
        Largest norm c of each gradient, Eq. (8.13); 0 does not clip.
    normalize : bool
        Shift and divide Â to mean 0 and standard deviation 1 over the batch, unless that is rounding.
    optimizer : {"rmsprop", "adam", "ascent"}
    alpha, alpha_w : float
        Step sizes of θ and w.
    """

    n_steps: int = integer(16, 1)
    advantage: str = choice("gae", "n_step")
    n: int = integer(5, 1)
    beta: float = number(0.01, 0)
    clip: float = number(0.5, 0)
    normalize: bool = choice(False, True)
    optimizer: str = choice("rmsprop", "adam", "ascent")
    alpha: float = number(0.01, 0)
    alpha_w: float = number(0.05, 0)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "ascent_w")

    def init(self, rng: Rng) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng)
        self.ascent = OPTIMIZERS[self.optimizer](self.policy.n_params, self.alpha)
        self.ascent_w = OPTIMIZERS[self.optimizer](self.v.n_params, self.alpha_w)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        valid, ends = traj.valid, (traj.terminated, traj.truncated)
        if not valid.any():
            return {"advantage_std": 0.0, "entropy": 0.0, "gradient_norm": 0.0}
        x, a = rows(traj.x, valid), traj.actions[valid]
        x_v, v, v_next = self.v.on(self.w, traj)
        if self.advantage == "gae":
            A = gae(traj.rewards, v, v_next, *ends, self.gamma, self.lam)[valid]
        else:
            A = (n_step_returns(traj.rewards, v_next, *ends, self.gamma, self.n) - v)[valid]

        g_w = self.v.model.vjp(self.w, x_v, A[:, None] / len(A))
        spread = A.std()
        A = standardized(A, np.abs(v).max()) if self.normalize else A
        g = self.policy.weighted_score(self.theta, x, a, A / len(A))
        g = g + self.beta * self.policy.entropy_grad(self.theta, x, np.full(len(A), 1 / len(A)))
        c = self.clip or np.inf
        self.theta = self.ascent.step(self.theta, clip_norm(g, c))
        self.w = self.ascent_w.step(self.w, clip_norm(g_w, c))
        entropy = float(self.policy.entropy(self.theta, x).mean())
        return {"advantage_std": float(spread), "entropy": entropy, "gradient_norm": float(np.linalg.norm(g))}
