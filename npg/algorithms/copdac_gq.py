"""COPDAC-GQ, with a gradient-TD critic (Silver et al. 2014, corrected; derivations, chapter 13)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..trajectories import Trajectories
from .base import DeterministicAgent, choice, method, number


@method
class COPDACGQ(DeterministicAgent):
    """COPDAC-Q whose critic descends the projected Bellman error of data of any behaviour, Eq. (13.22).

    It finds what COPDAC-Q does. The correction u has a component for each of φ(s, a) and φ(s), as q̂ has; for φ(s, a)
    alone, as printed, what is followed is no gradient, Eq. (13.23).
    """

    alpha_u: float = number(0.05, 0, doc="Step size α_u of u = (u_w, u_v), likewise.")
    natural: bool = choice(False, True, doc="Whether θ moves along w, the natural gradient, Eq. (13.12).")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "v", "u_w", "u_v")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """W as the policy begins it, log σ as the setting has it, and w, v and u = 0."""
        super().init(rng, columns)
        self.u_w, self.u_v = np.zeros_like(self.w), np.zeros_like(self.v)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A = μ(S) + σξ, ξ ~ N(0, I), or any other, observe S', R; then, with φ = J_Sᵀ(A − μ(S)),

        δ ← R + γ v·φ(S') − w·φ − v·φ(S)                      (φ(S') = 0 where S' is terminal)
        ε ← u_w·φ + u_v·φ(S)
        θ ← θ + α J_SᵀJ_S w                                   (natural: θ + αw)
        w, v ← w + α_w δ φ, v + α_v (δ φ(S) − γ ε φ(S'))
        u_w, u_v ← u_w + α_u (δ − ε) φ, u_v + α_u (δ − ε) φ(S)
        """
        x, a, phi, r, phi_next, nonterminal = self.step(traj)
        f = x, self.off_mean(x, a), phi
        delta = r + self.gamma * nonterminal * self.value.forward(self.v, phi_next)[:, 0] - self.dot(f, self.w, self.v)
        epsilon = self.dot(f, self.u_w, self.u_v)
        (by_w, by_v), (by_u_w, by_u_v) = self.mean(f, delta), self.mean(f, delta - epsilon)
        by_next = self.value.vjp(self.v, phi_next, (nonterminal * epsilon / len(a))[:, None])
        self.ascend(self.alpha * (self.w if self.natural else self.direction(x)))
        self.w, self.v = self.w + self.alpha_w * by_w, self.v + self.alpha_v * (by_v - self.gamma * by_next)  # (13.22)
        self.u_w, self.u_v = self.u_w + self.alpha_u * by_u_w, self.u_v + self.alpha_u * by_u_v
        return {"squared_td_error": delta.dot(delta) / len(delta)}
