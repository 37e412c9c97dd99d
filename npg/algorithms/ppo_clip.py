"""PPO with the clipped objective (Schulman et al. 2017; derivations, chapter 11)."""

from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..optimizers import clip_norm
from ..returns import normalized_advantages
from ..surrogates import Surrogate, minibatches
from ..trajectories import Trajectories
from ..values import clipped_error
from .base import AdvantageAgent, integer, method, normalization, number, optimizer


@method
class PPOClip(AdvantageAgent):
    """Proximal policy optimisation with clipped ratios, which go on moving with the other rows, Eq. (11.10)."""

    epochs: int = integer(10, 1, doc="K, passes over the rows.")
    minibatch: int = integer(256, 1, doc="About how many rows a part has.")
    epsilon: float = number(0.2, 1e-12, doc="ε, how far from 1 a ratio still counts.")
    target_kl: float | None = number(0.02, 1e-12, optional=True, doc="d_max in nats, after which passes end.")
    normalize: str | None = normalization("standardize", "scale", None)
    beta: float = number(0.0, 0, doc="Weight β of the entropy, as in Eq. (8.12).")
    value_clip: float | None = number(None, 1e-12, optional=True, doc="How far v̂ may go from v_old and still learn.")
    clip: float | None = number(None, 1e-12, optional=True, doc="Largest norm of each gradient, Eq. (8.13).")
    optimizer: str = optimizer("adam", "rmsprop", "ascent")
    alpha: float = number(0.01, 0, doc="Step size α of θ.")
    alpha_w: float = number(0.1, 0, doc="Step size α_w of w.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "ascent_w")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = self.ascending(self.policy.n_params, self.alpha)
        self.ascent_w = self.ascending(self.v.n_params, self.alpha_w)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take T steps in each of N environments following π_θ; θ_old ← θ, v_old ← v̂(·, w); then

        Â_t ← generalised advantage of every row, with v_old;   G_t ← Â_t + v_old(S_t);   Â normalised
        K times:   for each part of the rows, in random order, with means over the part:
                       g_θ ← mean of ∇min(ρ_t Â_t, clip(ρ_t, 1 − ε, 1 + ε) Â_t) + β ∇H
                       g_w ← mean of (G_t − v̂(S_t, w)) x(S_t)
                       θ ← a step of size α along g_θ;   w ← a step of size α_w along g_w
                   leave off if D̄(θ_old, θ) > d_max
        """
        x, a, x_v, v_old, A = self.advantages(traj)  # (7.20)
        G, d_max = A + v_old, np.inf if self.target_kl is None else self.target_kl
        A_n = normalized_advantages(A, self.normalize, np.abs(v_old).max())  # (11.15)
        L = Surrogate(self.policy, self.theta, x, a, A_n)
        epochs, kl = 0, 0.0
        while epochs < self.epochs and kl <= d_max:
            for part in minibatches(rng, len(A), self.minibatch):
                L_part, M = L[part], len(part)
                g = L_part.gradient(self.theta, self.epsilon)  # (11.9)
                g = g + self.beta * self.policy.entropy_grad(self.theta, L_part.x, np.full(M, 1 / M))
                v = self.v.model.forward(self.w, x_v[part])[:, 0]
                error = clipped_error(v, v_old[part], G[part], self.value_clip)  # (11.16)
                g_w = self.v.model.vjp(self.w, x_v[part], error[:, None] / M)
                self.theta = self.ascent.step(self.theta, clip_norm(g, self.clip))  # (8.13)
                self.w = self.ascent_w.step(self.w, clip_norm(g_w, self.clip))
            epochs, kl = epochs + 1, L.kl(self.theta)  # (9.5)
        clipped = (np.abs(L.ratio(self.theta) - 1) > self.epsilon).mean()
        return self.diagnostics(x, kl=kl, epochs=epochs, clipped=clipped)
