"""PPO with an adaptive penalty on the divergence (Schulman et al. 2017, section 4; derivations, chapter 11).

Loop: take T steps in each of N environments following π_θ; θ_old ← θ; then

    Â_t ← generalised advantage of every row, with v̂(·, w)
    K times:   for each part of the rows, in random order, with means over the part:
                   g ← ∇[mean of ρ_t Â_t − β KL(π_old(·|S_t) ‖ π(·|S_t, θ))]
                   θ ← a step of size α along g
    d ← D̄(θ_old, θ) over all rows
    β ← β/2 if d < d_targ/1.5;   β ← 2β if d > 1.5 d_targ
    w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..optimizers import OPTIMIZERS
from ..returns import normalized_advantages
from ..surrogates import Surrogate, minibatches
from ..trajectories import Trajectories
from .base import AdvantageAgent, choice, integer, number

LEAST_BETA, MOST_BETA = 1e-6, 1e6
"""β stays between these: batches without a gradient would halve it to 0, from where doubling leads nowhere."""


@dataclass
class PPOPenalty(AdvantageAgent):
    """Proximal policy optimisation with an adaptive penalty, Eqs. (11.11), (11.12).

    Parameters
    ----------
    policy : npg.Policy
    value_features : features
        Of the critic v̂(s; w) = wᵀx(s).
    gamma : float
        Discount γ in [0, 1].
    n_steps : int
        T, steps of each environment per update.
    lam : float
        λ of the advantages, Eq. (7.20).
    ridge : float
        κ_w, how much the critic's fit to a batch holds on to the w before it.
    epochs : int
        K, passes over the rows.
    minibatch : int
        About how many rows a part has.
    target_kl : float
        d_targ in nats.
    beta : float
        β to begin with.
    normalize : {"standardize", "scale", None}
        Divide Â by its deviation over the rows, or shift it to mean 0 too, Eq. (11.15), unless that is rounding.
    optimizer : {"adam", "rmsprop", "ascent"}
    alpha : float
        Step size α.
    """

    ridge: float = number(1.0, 0)
    epochs: int = integer(10, 1)
    minibatch: int = integer(256, 1)
    target_kl: float = number(0.01, 1e-12)
    beta: float = number(1.0, LEAST_BETA, MOST_BETA)
    normalize: str | None = choice("standardize", "scale", None)
    optimizer: str = choice("adam", "rmsprop", "ascent")
    alpha: float = number(0.01, 0)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "penalty")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = OPTIMIZERS[self.optimizer](self.policy.n_params, self.alpha)
        self.penalty = np.array(self.beta, dtype=float)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        x, a, x_v, v, A = self.advantages(traj)
        G = A + v
        A = normalized_advantages(A, self.normalize, np.abs(v).max())
        L, beta = Surrogate(self.policy, self.theta, x, a, A), self.penalty

        for _ in range(self.epochs):
            for part in minibatches(rng, len(A), self.minibatch):
                L_part = L[part]
                g = L_part.gradient(self.theta) - beta * L_part.kl_gradient(self.theta)
                self.theta = self.ascent.step(self.theta, g)
        d = L.kl(self.theta)
        if d < self.target_kl / 1.5:
            beta = beta / 2
        elif d > self.target_kl * 1.5:
            beta = beta * 2
        self.penalty = np.clip(beta, LEAST_BETA, MOST_BETA)
        self.w = self.v.fit(self.w, x_v, G, self.ridge)
        return self.diagnostics(x, kl=d, beta=self.penalty)
