"""NPG: natural policy gradient (Kakade 2001; derivations, chapter 9).

Loop: take T steps in each of N environments following π_θ; then, with means over all rows,

    Â_t ← generalised advantage of every row, with v̂(·, w)
    g ← mean of Â_t ∇ ln π(A_t|S_t, θ)
    F ← mean of Σ_a π(a|S_t) ∇ ln π ∇ ln πᵀ                 (all actions, exactly)
    u ← (F + κI)^{-1} g
    θ ← θ + √(2δ / uᵀFu) u, halved while D̄ of the step is above 2δ      (or θ + αu)
    w ← argmin Σ (wᵀx(S_t) − Â_t − v̂(S_t))² + κ_w‖w − w_old‖²
"""

from dataclasses import dataclass

import numpy as np

from .._typing import Rng
from ..solvers import cholesky_solve, conjugate_gradient
from ..surrogates import natural_step
from ..trajectories import Trajectories
from .base import AdvantageAgent, choice, integer, number

DIRECT = 300
"""The most parameters for which ``solver="auto"`` makes and factors the matrix."""


@dataclass
class NPG(AdvantageAgent):
    """Natural policy gradient with the exact Fisher matrix, by Cholesky or conjugate gradient, Eqs. (9.6), (9.7).

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
    delta : float or None
        δ, the divergence in nats that a step has to second order, ½ΔᵀFΔ, with F undamped; a step of more than 2δ in
        truth is halved. None takes steps αu instead.
    alpha : float
        Step size α where δ is None.
    damping : float
        κ, Eq. (10.14); a softmax needs κ > 0 where its matrix is factored.
    fisher : {"exact", "empirical"}
        F, or for comparison the mean outer product of the scores of the actions taken, Eq. (9.18).
    solver : {"auto", "cholesky", "cg"}
        Factor the matrix, or use products alone, Eqs. (10.15), (10.16); by default the first up to 300 parameters. The
        empirical matrix is always factored.
    cg_iterations : int
        Most steps of conjugate gradient.
    cg_tol : float
        Its relative tolerance.
    """

    ridge: float = number(1.0, 0)
    delta: float | None = number(0.01, 1e-12, optional=True)
    alpha: float = number(0.1, 0)
    damping: float = number(1e-4, 0)
    fisher: str = choice("exact", "empirical")
    solver: str = choice("auto", "cholesky", "cg")
    cg_iterations: int = integer(50, 1)
    cg_tol: float = number(1e-8, 1e-15)

    def __post_init__(self) -> None:
        super().__post_init__()
        small = self.solver == "auto" and self.policy.n_params <= DIRECT
        self._direct = small or self.solver == "cholesky" or self.fisher == "empirical"
        if self._direct and self.damping == 0:
            raise ValueError("damping must be positive where the matrix is factored, got 0: take solver='cg'")

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        x, a, x_v, v, A = self.advantages(traj)

        theta, policy, kappa = self.theta, self.policy, self.damping
        g = policy.weighted_score(theta, x, a, A / len(A))
        if self._direct:
            matrix = policy.fisher(theta, x) if self.fisher == "exact" else policy.empirical_fisher(theta, x, a)
            u = cholesky_solve(matrix + kappa * np.eye(len(g)), g)
        else:
            F, m, tol = policy.fisher_operator(theta, x), self.cg_iterations, self.cg_tol
            u = conjugate_gradient(lambda v: F(v) + kappa * v, g, max_iter=m, tol=tol).x
        self.theta = natural_step(policy, theta, x, u, self.delta, self.alpha)
        self.w = self.v.fit(self.w, x_v, A + v, self.ridge)
        return self.diagnostics(x, theta, gradient_norm=np.linalg.norm(g))
