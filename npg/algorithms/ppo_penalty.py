"""PPO with an adaptive penalty on the divergence (Schulman et al. 2017, section 4; derivations, chapter 11)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..returns import normalized_advantages
from ..surrogates import Surrogate, minibatches
from ..trajectories import Trajectories
from .base import AdvantageAgent, held_ridge, integer, method, normalization, number, optimizer

LEAST_BETA, MOST_BETA = 1e-6, 1e6
"""β stays between these: batches without a gradient would halve it to 0, from where doubling leads nowhere."""


@method
class PPOPenalty(AdvantageAgent):
    """Proximal policy optimisation with an adaptive penalty."""

    ridge: float = held_ridge()
    epochs: int = integer(10, 1, doc="K, passes over the rows.")
    minibatch: int = integer(256, 1, doc="About how many rows a part has.")
    target_kl: float = number(0.01, 1e-12, doc="d_targ in nats.")
    beta: float = number(1.0, LEAST_BETA, MOST_BETA, doc="β to begin with.")
    normalize: str | None = normalization("standardize", "scale", None)
    optimizer: str = optimizer("adam", "rmsprop", "ascent")
    alpha: float = number(0.01, 0, doc="Step size α.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "penalty")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0, β as set."""
        super().init(rng, columns)
        self.ascent = self.ascending(self.policy.n_params, self.alpha)
        self.penalty = np.array(self.beta, dtype=float)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take T steps in each of N environments following π_θ; θ_old ← θ; then

        Â_t ← generalised advantage of every row, with v̂(·, w), normalised for the steps of θ
        K times:   for each part of the rows, in random order, with means over the part:
                       g ← ∇[mean of ρ_t Â_t − β KL(π_old(·|S_t) ‖ π(·|S_t, θ))]
                       θ ← a step of size α along g
        d ← D̄(θ_old, θ) over all rows
        β ← β/2 if d < d_targ/1.5;   β ← 2β if d > 1.5 d_targ
        w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²
        """
        x, a, x_v, v, A = self.advantages(traj)  # (7.20)
        A_n = normalized_advantages(A, self.normalize, np.abs(v).max())  # (11.15)
        L = Surrogate(self.policy, self.theta, x, a, A_n)
        for _ in range(self.epochs):
            for part in minibatches(rng, len(A), self.minibatch):
                g = L[part].gradient(self.theta) - self.penalty * L[part].kl_gradient(self.theta)  # (11.11)
                self.theta = self.ascent.step(self.theta, g)
        d = L.kl(self.theta)  # (9.5)
        factor = 0.5 if d < self.target_kl / 1.5 else 2.0 if d > self.target_kl * 1.5 else 1.0  # (11.12)
        self.penalty = np.clip(self.penalty * factor, LEAST_BETA, MOST_BETA)
        self.w = self.v.fit(self.w, x_v, A + v, self.ridge)  # (1.14)
        return self.diagnostics(x, kl=d, beta=self.penalty)
