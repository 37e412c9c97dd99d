"""Deterministic policy gradient with a Sarsa critic (Silver et al. 2014; derivations, chapter 13)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..features import dense
from ..trajectories import Trajectories
from .base import DeterministicAgent, method


@method
class DPGSarsa(DeterministicAgent):
    """Online, on-policy deterministic actor–critic, with Gaussian exploration as part of the method, Eq. (13.13).

    Without noise in the action φ(S, A) = 0, and w would never move. With it the mean of the actor's direction is the
    gradient of the policy that explores, Eq. (13.14). A transition is learned from when the next action is known, which
    is one step later.
    """

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "v", "x", "a", "phi", "r", "phi_next", "goes_on")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """W as the policy begins it, log σ as the setting has it, w = v = 0, and no transition before the first."""
        super().init(rng, columns)
        d, m = self.mu.n_features, self.mu.n_outputs
        self.x, self.a, self.r, self.goes_on = np.zeros((columns, d)), np.zeros((columns, m)), *np.zeros((2, columns))
        self.phi, self.phi_next = np.zeros((2, columns, self.value.n_features))

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A' = μ(S') + σξ, ξ ~ N(0, I); then, of the step S, A, R, S' before it, with φ(S, A) = J_Sᵀ(A − μ(S)),

        q ← w·φ(S, A) + v·φ(S)
        q' ← w·φ(S', A') + v·φ(S')          (0 where S' is terminal; v·φ(S') at a time limit, where A' is not taken)
        δ ← R + γq' − q
        θ ← θ + α J_SᵀJ_S w
        w, v ← w + α_w δ φ(S, A), v + α_v δ φ(S)
        S, A ← S', A'
        """
        n, (x, a, phi, r, phi_next, nonterminal) = traj.valid[0], self.step(traj)
        f = self.x[n], self.off_mean(self.x[n], self.a[n]), self.phi[n]
        f_next = x, self.goes_on[n, None] * self.off_mean(x, a), self.phi_next[n]
        delta = self.r[n] + self.gamma * self.dot(f_next, self.w, self.v) - self.dot(f, self.w, self.v)
        by_w, by_v = self.mean(f, delta)
        self.ascend(self.alpha * self.direction(self.x[n]))
        self.w, self.v = self.w + self.alpha_w * by_w, self.v + self.alpha_v * by_v  # (13.13)
        self.x[n], self.a[n], self.r[n] = dense(x, self.mu.n_features), a, r
        self.phi[n], self.phi_next[n] = (dense(rows, self.value.n_features) for rows in (phi, phi_next))
        self.phi_next[n] *= nonterminal[:, None]
        self.goes_on[n] = nonterminal & ~traj.truncated[0, n]
        return {"squared_td_error": delta.dot(delta) / len(delta)}
