"""TRPO: trust region policy optimisation (Schulman et al. 2015; derivations, chapters 10 and 11)."""

import numpy as np

from .._typing import Rng
from ..optimizers import kl_step
from ..solvers import CG_TOL, backtracking_line_search, conjugate_gradient, damped
from ..surrogates import Surrogate
from ..trajectories import Trajectories
from .base import AdvantageAgent, held_ridge, integer, method, number


@method
class TRPO(AdvantageAgent):
    """Trust region policy optimisation, the constrained problem of Eq. (11.3), with the exact Fisher matrix."""

    ridge: float = held_ridge()
    delta: float = number(0.01, 1e-12, doc="δ, the most that the mean divergence D̄ of a step may be, in nats.")
    damping: float = number(1e-4, 0, doc="κ, added to the diagonal of F.")
    cg_iterations: int = integer(10, 1, doc="Most steps of conjugate gradient.")

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take T steps in each of N environments following π_θ; then, with means over all rows,

        Â_t ← generalised advantage, with v̂(·, w)
        g ← ∇L(θ) = mean of Â_t ∇ ln π(A_t|S_t, θ)
        u ← conjugate gradient on (F + κI) u = g, with products F v alone
        Δ ← √(2δ / uᵀFu) u
        θ ← θ + c^j Δ for the first j = 0, 1, … with L(θ + c^jΔ) − L(θ) ≥ η c^j gᵀΔ and D̄(θ, θ + c^jΔ) ≤ δ, if any
        w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²
        """
        x, a, x_v, v, A = self.advantages(traj)  # (7.20)
        L, F = Surrogate(self.policy, self.theta, x, a, A), self.policy.fisher_operator(self.theta, x)
        g = L.gradient(self.theta)  # (11.2)
        cg = conjugate_gradient(damped(F, self.damping), g, max_iter=self.cg_iterations, tol=CG_TOL)  # (10.4), (10.14)
        step = kl_step(cg.x, F(cg.x), self.delta)  # (11.4)
        slope = float(g @ step)
        found = backtracking_line_search(L.value, self.theta, step, slope, constraint=L.kl, radius=self.delta)  # (11.5)
        self.theta = found.x
        self.w = self.v.fit(self.w, x_v, A + v, self.ridge)  # (1.14)
        search = {"kl": found.constraint, "improvement": found.improvement, "accepted": found.accepted}
        search |= {"backtracks": found.backtracks, "cg_iterations": cg.iterations}
        return self.diagnostics(x, gradient_norm=np.linalg.norm(g), **search)
