"""TRPO: trust region policy optimisation (Schulman et al. 2015; derivations, chapters 10 and 11).

Loop: take T steps in each of N environments following π_θ; then, with means over all rows,

    Â_t ← generalised advantage of every row, with v̂(·, w)
    g ← ∇L(θ) = mean of Â_t ∇ ln π(A_t|S_t, θ)
    u ← conjugate gradient on (F + κI) u = g, with products F v alone
    Δ ← √(2δ / uᵀFu) u
    θ ← θ + c^j Δ for the first j = 0, 1, … with L(θ + c^jΔ) − L(θ) ≥ η c^j gᵀΔ and D̄(θ, θ + c^jΔ) ≤ δ, if any
    w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²
"""

from dataclasses import dataclass

import numpy as np

from .._typing import Rng
from ..optimizers import kl_step
from ..solvers import backtracking_line_search, conjugate_gradient
from ..surrogates import Surrogate
from ..trajectories import Trajectories
from .base import AdvantageAgent, integer, number


@dataclass
class TRPO(AdvantageAgent):
    """Trust region policy optimisation with the exact Fisher matrix, Eqs. (11.3)–(11.5).

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
    delta : float
        δ, the most that the mean divergence D̄ of a step may be, in nats.
    damping : float
        κ, Eq. (10.14).
    cg_iterations : int
        Most steps of conjugate gradient.
    cg_tol : float
        Its relative tolerance.
    sufficient, shrink : float
        η and c of the line search.
    max_backtracks : int
        Its largest j; after that θ stays as it is.
    """

    ridge: float = number(1.0, 0)
    delta: float = number(0.01, 1e-12)
    damping: float = number(1e-4, 0)
    cg_iterations: int = integer(10, 1)
    cg_tol: float = number(1e-8, 1e-15)
    sufficient: float = number(0.1, 1e-6, 0.999)
    shrink: float = number(0.5, 0.001, 0.999)
    max_backtracks: int = integer(10, 0)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        x, a, x_v, v, A = self.advantages(traj)

        theta, L = self.theta, Surrogate(self.policy, self.theta, x, a, A)
        g, F = L.gradient(theta), self.policy.fisher_operator(theta, x)
        kappa, m, tol = self.damping, self.cg_iterations, self.cg_tol
        cg = conjugate_gradient(lambda v: F(v) + kappa * v, g, max_iter=m, tol=tol)
        step = kl_step(cg.x, F(cg.x), self.delta)
        found = backtracking_line_search(
            L.value,
            theta,
            step,
            float(g @ step),
            constraint=L.kl,
            radius=self.delta,
            sufficient=self.sufficient,
            shrink=self.shrink,
            max_backtracks=self.max_backtracks,
        )
        self.theta = found.x
        self.w = self.v.fit(self.w, x_v, A + v, self.ridge)
        return self.diagnostics(
            x,
            gradient_norm=np.linalg.norm(g),
            kl=found.constraint,
            improvement=found.improvement,
            accepted=found.accepted,
            backtracks=found.backtracks,
            cg_iterations=cg.iterations,
        )
