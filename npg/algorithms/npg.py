"""NPG: natural policy gradient (Kakade 2001; derivations, chapter 9)."""

import numpy as np

from .._typing import Rng
from ..solvers import CG_TOL, cholesky_solve, conjugate_gradient, damped
from ..surrogates import natural_step
from ..trajectories import Trajectories
from .base import AdvantageAgent, choice, held_ridge, integer, method, number, radius

DIRECT = 300
"""The most parameters for which ``solver="auto"`` makes and factors the matrix."""


@method
class NPG(AdvantageAgent):
    """Natural policy gradient with the exact Fisher matrix, by Cholesky or conjugate gradient."""

    ridge: float = held_ridge()
    delta: float | None = radius()
    alpha: float = number(0.1, 0, doc="Step size α where δ is None.")
    damping: float = number(1e-4, 0, doc="κ; a softmax needs κ > 0 where its matrix is factored.")
    fisher: str = choice("exact", "empirical", doc="F; empirical: of the actions taken, Eq. (9.18), always factored.")
    solver: str = choice(
        "auto", "cholesky", "cg", doc="Factor F, or products alone; by default the first up to 300 parameters."
    )
    cg_iterations: int = integer(50, 1, doc="Most steps of conjugate gradient.")

    def __post_init__(self) -> None:
        super().__post_init__()
        small = self.solver == "auto" and self.policy.n_params <= DIRECT
        self._direct = small or self.solver == "cholesky" or self.fisher == "empirical"
        if self._direct and self.damping == 0:
            raise ValueError("damping must be positive where F is factored, got 0: take solver='cg' and fisher='exact'")

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take T steps in each of N environments following π_θ; then, with means over all rows,

        Â_t ← generalised advantage, with v̂(·, w)
        g ← mean of Â_t ∇ ln π(A_t|S_t, θ)
        F ← mean of Σ_a π(a|S_t) ∇ ln π ∇ ln πᵀ                 (all actions, exactly)
        u ← (F + κI)^{-1} g
        θ ← θ + √(2δ / uᵀFu) u, halved while D̄ of the step is above 2δ      (or θ + αu)
        w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²
        """
        x, a, x_v, v, A = self.advantages(traj)  # (7.20)
        theta, policy = self.theta, self.policy
        g = policy.weighted_score(theta, x, a, A / len(A))
        if self._direct:
            F = policy.fisher(theta, x) if self.fisher == "exact" else policy.empirical_fisher(theta, x, a)  # (9.18)
            u = cholesky_solve(F + self.damping * np.eye(len(g)), g)  # (9.6), (10.14)
        else:
            product = damped(policy.fisher_operator(theta, x), self.damping)
            u = conjugate_gradient(product, g, max_iter=self.cg_iterations, tol=CG_TOL).x  # (10.4)
        self.theta = natural_step(policy, theta, x, u, self.delta, self.alpha)  # (9.7)
        self.w = self.v.fit(self.w, x_v, A + v, self.ridge)  # (1.14)
        return self.diagnostics(x, theta, gradient_norm=np.linalg.norm(g))
