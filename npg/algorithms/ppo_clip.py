"""PPO with the clipped objective (Schulman et al. 2017; derivations, chapter 11).

Loop: take T steps in each of N environments following π_θ; θ_old ← θ, v_old ← v̂(·, w); then

    Â_t ← generalised advantage of every row, with v_old;   G_t ← Â_t + v_old(S_t)
    K times:   for each part of the rows, in random order, with means over the part:
                   g_θ ← mean of ∇min(ρ_t Â_t, clip(ρ_t, 1 − ε, 1 + ε) Â_t) + β ∇H
                   g_w ← mean of (G_t − v̂(S_t, w)) x(S_t)
                   θ ← a step of size α along g_θ;   w ← a step of size α_w along g_w
               leave off if D̄(θ_old, θ) > d_max
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..features import rows
from ..optimizers import OPTIMIZERS, clip_norm
from ..returns import normalized_advantages
from ..surrogates import Surrogate, minibatches
from ..trajectories import Trajectories
from ..values import clipped_error
from .base import AdvantageAgent, choice, integer, number


@dataclass
class PPOClip(AdvantageAgent):
    """Proximal policy optimisation with clipped ratios, Eqs. (11.7)–(11.10).

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
    epochs : int
        K, passes over the rows.
    minibatch : int
        About how many rows a part has.
    epsilon : float
        ε, how far from 1 a ratio still counts.
    target_kl : float or None
        d_max in nats, after which the passes end; None for no such limit.
    normalize : {"standardize", "scale", None}
        Divide Â by its deviation over the rows, or shift it to mean 0 too, Eq. (11.15), unless that is rounding.
    beta : float
        Weight β of the entropy, as in Eq. (8.12).
    value_clip : float or None
        How far v̂ may go from v_old and still learn, Eq. (11.16); None for no such limit.
    clip : float or None
        Largest norm of each gradient, Eq. (8.13); None does not clip.
    optimizer : {"adam", "rmsprop", "ascent"}
    alpha, alpha_w : float
        Step sizes of θ and w.
    """

    epochs: int = integer(10, 1)
    minibatch: int = integer(256, 1)
    epsilon: float = number(0.2, 1e-12)
    target_kl: float | None = number(0.02, 1e-12, optional=True)
    normalize: str | None = choice("standardize", "scale", None)
    beta: float = number(0.0, 0)
    value_clip: float | None = number(None, 1e-12, optional=True)
    clip: float | None = number(None, 1e-12, optional=True)
    optimizer: str = choice("adam", "rmsprop", "ascent")
    alpha: float = number(0.01, 0)
    alpha_w: float = number(0.1, 0)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "ascent_w")

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = OPTIMIZERS[self.optimizer](self.policy.n_params, self.alpha)
        self.ascent_w = OPTIMIZERS[self.optimizer](self.v.n_params, self.alpha_w)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One pass of the loop."""
        x, a, x_v, v_old, A = self.advantages(traj)
        G = A + v_old
        A = normalized_advantages(A, self.normalize, np.abs(v_old).max())
        L = Surrogate(self.policy, self.theta, x, a, A)
        d_max = np.inf if self.target_kl is None else self.target_kl

        epochs, kl = 0, 0.0
        while epochs < self.epochs and kl <= d_max:
            for part in minibatches(rng, len(A), self.minibatch):
                M, L_part = len(part), L[part]
                g = L_part.gradient(self.theta, self.epsilon)
                g = g + self.beta * self.policy.entropy_grad(self.theta, L_part.x, np.full(M, 1 / M))
                x_part = rows(x_v, part)
                error = clipped_error(self.v.model.forward(self.w, x_part)[:, 0], v_old[part], G[part], self.value_clip)
                g_w = self.v.model.vjp(self.w, x_part, error[:, None] / M)
                self.theta = self.ascent.step(self.theta, clip_norm(g, self.clip))
                self.w = self.ascent_w.step(self.w, clip_norm(g_w, self.clip))
            epochs, kl = epochs + 1, L.kl(self.theta)
        clipped = (np.abs(L.ratio(self.theta) - 1) > self.epsilon).mean()
        return self.diagnostics(x, kl=kl, epochs=epochs, clipped=clipped)
