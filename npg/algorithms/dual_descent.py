"""Dual descent on the divergence (Levine, CS 285; derivations, chapter 11).

Loop: take T steps in each of N environments following π_θ; θ_old ← θ; then, with means over all rows,

    Â_t ← generalised advantage of every row, with v̂(·, w)
    J times:   K times:   θ ← a step of size α along ∇[mean of ρ_t Â_t − μ (D̄(θ_old, θ) − ε)]
               μ ← max(0, μ + α_μ (D̄(θ_old, θ) − ε))
    w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²

μ is the λ of the lecture; here λ belongs to the advantages.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..optimizers import OPTIMIZERS
from ..returns import normalized_advantages
from ..surrogates import Surrogate
from ..trajectories import Trajectories
from .base import AdvantageAgent, choice, integer, number


@dataclass
class DualDescent(AdvantageAgent):
    """The trust region by its Lagrangian, maximised incompletely, and its multiplier, Eqs. (11.13), (11.14).

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
    epsilon : float
        ε, the mean divergence in nats that a batch may lead to.
    dual_steps, primal_steps : int
        J, steps of the multiplier, and K, steps of θ before each.
    mu : float
        μ to begin with.
    normalize : {"standardize", "scale", None}
        Divide Â by its deviation over the rows, or shift it to mean 0 too, Eq. (11.15), unless that is rounding.
    optimizer : {"adam", "rmsprop", "ascent"}
    alpha, alpha_mu : float
        Step sizes of θ and μ.
    """

    ridge: float = number(1.0, 0)
    epsilon: float = number(0.01, 1e-12)
    dual_steps: int = integer(10, 1)
    primal_steps: int = integer(5, 1)
    mu: float = number(1.0, 0)
    normalize: str | None = choice("standardize", "scale", None)
    optimizer: str = choice("adam", "rmsprop", "ascent")
    alpha: float = number(0.01, 0)
    alpha_mu: float = number(10.0, 0)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "multiplier")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = OPTIMIZERS[self.optimizer](self.policy.n_params, self.alpha)
        self.multiplier = np.array(self.mu, dtype=float)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        x, a, x_v, v, A = self.advantages(traj)
        G = A + v
        A = normalized_advantages(A, self.normalize, np.abs(v).max())
        L = Surrogate(self.policy, self.theta, x, a, A)

        for _ in range(self.dual_steps):
            for _ in range(self.primal_steps):
                g = L.gradient(self.theta) - self.multiplier * L.kl_gradient(self.theta)
                self.theta = self.ascent.step(self.theta, g)
            d = L.kl(self.theta)
            self.multiplier = np.maximum(0, self.multiplier + self.alpha_mu * (d - self.epsilon))
        self.w = self.v.fit(self.w, x_v, G, self.ridge)
        return self.diagnostics(x, kl=d, mu=self.multiplier)
