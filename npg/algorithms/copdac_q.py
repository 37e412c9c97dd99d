"""COPDAC-Q, compatible off-policy deterministic actor–critic (Silver et al. 2014; derivations, chapter 13)."""

from .._typing import Rng
from ..trajectories import Trajectories
from .base import DeterministicAgent, choice, method


@method
class COPDACQ(DeterministicAgent):
    """Online deterministic actor–critic whose targets are q̂(S', μ(S')) = v·φ(S'), with no ratio.

    As its actions are centred at μ(s), v is on-policy TD for the policy that explores, Eq. (13.19): stable, and off
    from the values of μ by O(σ²), Eq. (13.20).
    """

    natural: bool = choice(False, True, doc="Whether θ moves along w, the natural gradient, Eq. (13.12).")

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A = μ(S) + σξ, ξ ~ N(0, I), observe S', R; then, with φ = J_Sᵀ(A − μ(S)),

        δ ← R + γ v·φ(S') − w·φ − v·φ(S)                      (φ(S') = 0 where S' is terminal)
        θ ← θ + α J_SᵀJ_S w                                   (natural: θ + αw)
        w, v ← w + α_w δ φ, v + α_v δ φ(S)
        """
        x, a, phi, r, phi_next, nonterminal = self.step(traj)
        f = x, self.off_mean(x, a), phi
        delta = r + self.gamma * nonterminal * self.value.forward(self.v, phi_next)[:, 0] - self.dot(f, self.w, self.v)
        by_w, by_v = self.mean(f, delta)
        self.ascend(self.alpha * (self.w if self.natural else self.direction(x)))  # (13.12)
        self.w, self.v = self.w + self.alpha_w * by_w, self.v + self.alpha_v * by_v  # (13.18)
        return {"squared_td_error": delta.dot(delta) / len(delta)}
