"""Dual descent on the divergence (Levine, CS 285; derivations, chapter 11)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..returns import normalized_advantages
from ..surrogates import Surrogate
from ..trajectories import Trajectories
from .base import AdvantageAgent, held_ridge, integer, method, normalization, number, optimizer


@method
class DualDescent(AdvantageAgent):
    """The trust region by its Lagrangian, maximised incompletely, and its multiplier μ (the λ of the lecture).

    A negative μ would reward divergence without bound, Eq. (11.14).
    """

    ridge: float = held_ridge()
    epsilon: float = number(0.01, 1e-12, doc="ε, the mean divergence in nats that a batch may lead to.")
    dual_steps: int = integer(10, 1, doc="J, steps of the multiplier.")
    primal_steps: int = integer(5, 1, doc="K, steps of θ before each.")
    mu: float = number(1.0, 0, doc="μ to begin with.")
    normalize: str | None = normalization("standardize", "scale", None)
    optimizer: str = optimizer("adam", "rmsprop", "ascent")
    alpha: float = number(0.01, 0, doc="Step size α of θ.")
    alpha_mu: float = number(10.0, 0, doc="Step size α_μ of μ.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "multiplier")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0, μ as set."""
        super().init(rng, columns)
        self.ascent = self.ascending(self.policy.n_params, self.alpha)
        self.multiplier = np.array(self.mu, dtype=float)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take T steps in each of N environments following π_θ; θ_old ← θ; then, with means over all rows,

        Â_t ← generalised advantage, with v̂(·, w), normalised for the steps of θ
        J times:   K times:   θ ← a step of size α along ∇[mean of ρ_t Â_t − μ (D̄(θ_old, θ) − ε)]
                   μ ← max(0, μ + α_μ (D̄(θ_old, θ) − ε))
        w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²
        """
        x, a, x_v, v, A = self.advantages(traj)  # (7.20)
        A_n = normalized_advantages(A, self.normalize, np.abs(v).max())  # (11.15)
        L = Surrogate(self.policy, self.theta, x, a, A_n)
        for _ in range(self.dual_steps):
            for _ in range(self.primal_steps):
                g = L.gradient(self.theta) - self.multiplier * L.kl_gradient(self.theta)  # (11.11)
                self.theta = self.ascent.step(self.theta, g)
            d = L.kl(self.theta)
            self.multiplier = np.maximum(0, self.multiplier + self.alpha_mu * (d - self.epsilon))  # (11.13)
        self.w = self.v.fit(self.w, x_v, A + v, self.ridge)  # (1.14)
        return self.diagnostics(x, kl=d, mu=self.multiplier)
