"""REINFORCE that learns from its last batches again, by importance sampling (derivations, chapters 6 and 12)."""

from typing import ClassVar

import numpy as np

from .._typing import Array, Inputs, Rng
from ..features import Features
from ..replay import Batches
from ..returns import discounted_returns
from ..trajectories import Episodes, Trajectories
from ..values import LinearValue, ridge_least_squares
from .base import Agent, choice, features, gamma, integer, method, number, optimizer


@method
class OffPolicyReinforce(Agent):
    """Monte-Carlo policy gradient over the last K batches of whole episodes, with several updates for each batch.

    Each batch has the log-probabilities of the policy that drew it. For a fixed θ the mean of the direction is that of
    chapter 6, Eq. (12.23); here θ was computed from the same batches, a bias that no ratio repairs. The return of an
    episode that a time limit cuts ends there, which makes the limit part of the task.
    """

    baseline_features: Features = features("polynomial", doc="x of v̂(s; w) = wᵀx(s), where ``baseline='linear'``.")
    gamma: float = gamma()
    episodes: int = integer(16, 1, doc="M, whole episodes per batch.")
    batches: int = integer(1, 1, doc="K, batches that are kept.")
    updates: int = integer(8, 1, doc="n, updates for each batch.")
    estimate: str = choice(
        "first_order",
        "per_decision",
        "whole",
        "weighted",
        doc="X: ρ_t alone, Eq. (6.21), biased; products up to t and onwards, Eq. (6.17); those of whole trajectories, "
        "Eq. (6.16); these divided by their sum, Eq. (6.20).",
    )
    baseline: str = choice("linear", "none", doc="b: v̂(S_t; w), fitted to the batches before that of the row, or 0.")
    ridge: float = number(1.0, 0, doc="κ of the fit by least squares.")
    outer_discount: bool = choice(True, False, doc="Keep γ^t before the return; without it, Eq. (1.10).")
    optimizer: str = optimizer("adam", "rmsprop", "ascent")
    alpha: float = number(0.01, 0, doc="Step size α.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent", "kept")

    @property
    def collect(self) -> Episodes:
        """M whole episodes."""
        return Episodes(self.episodes)

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0, no batches."""
        super().init(rng, columns)
        self.v = LinearValue(self.baseline_features)
        self.w = np.zeros(self.v.n_params)
        self.ascent = self.ascending(self.policy.n_params, self.alpha)
        self.kept = Batches(self.batches)

    def load_state(self, state: dict[str, Array]) -> None:
        """Take back what ``state`` returned, with however many rows in the batches."""
        with self.kept.room_for(state, "kept."):
            super().load_state(state)

    def behaviour_log_prob(self, x: Inputs, a: Array) -> Array:
        """log π_θ(a|s), as the actions are drawn: (N,)."""
        return self.policy.log_prob(self.theta, x, a)

    def remember(self, traj: Trajectories) -> None:
        """Store the rows of a batch, those of each episode one after another, with v̂ of their states; then fit w."""
        log_b, order = traj.behaviour_log_prob(), np.argsort(traj.episodes()[traj.valid], kind="stable")
        columns = {"obs": traj.obs, "actions": traj.actions, "rewards": traj.rewards, "t": traj.t, "log_b": log_b}
        x = self.v.x(traj.obs[traj.valid])
        rows = {name: column[traj.valid] for name, column in columns.items()} | {"v": x @ self.w}
        self.kept.insert(**{name: column[order] for name, column in rows.items()})
        if self.baseline == "linear":
            G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, self.gamma)
            self.w = ridge_least_squares(x, G[traj.valid], self.ridge)  # (1.14)

    def weights(self, R: Array, rho: Array, v: Array) -> Array:
        """What multiplies the scores in X, for R, ρ and v̂ of M episodes, 0, 1 and 0 after they end: (T, M)."""
        no = np.zeros(R.shape, dtype=bool)
        G = discounted_returns(R, no, no, self.gamma, ratios=rho if self.estimate == "per_decision" else 1.0)
        G = G - v
        if self.outer_discount:
            G = self.gamma ** np.arange(len(R))[:, None] * G
        if self.estimate == "first_order":
            return rho * G  # (6.21)
        if self.estimate == "per_decision":
            return rho.cumprod(axis=0) * G  # (6.17)
        if self.estimate == "whole":
            return rho.prod(axis=0) * G  # (6.16)
        with np.errstate(divide="ignore"):
            log_product = np.log(rho).sum(axis=0)  # of long episodes the products themselves overflow
        product = np.exp(log_product - log_product.max())
        return product / product.mean() * G  # (6.20)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Generate M episodes following π_θ; record ln b_t ← ln π(A_t|S_t, θ) and v̂(S_t; w); then

        w ← argmin Σ (v̂(S_t; w) − G_t)² + κ‖w‖²;   drop all but the last K batches
        n times:
            ρ_t ← π(A_t|S_t, θ) / b_t in every row
            θ ← a step of size α along the mean of X over all trajectories that are kept, G_t less v̂(S_t; w) in it
        """
        self.remember(traj)
        rows = self.kept.rows
        x, a, t = self.policy.features(rows["obs"]), rows["actions"], rows["t"]
        where = t, np.cumsum(t == 0) - 1
        R, v, rho = np.zeros((3, t.max() + 1, np.count_nonzero(t == 0)))
        R[where], v[where], rho[:] = rows["rewards"], rows["v"], 1
        for _ in range(self.updates):
            rho[where] = np.exp(self.policy.log_prob(self.theta, x, a) - rows["log_b"])
            w = self.weights(R, rho, v)[where] / R.shape[1]
            g = self.policy.weighted_score(self.theta, x, a, w)  # (12.23)
            self.theta = self.ascent.step(self.theta, g)
        return {"ratio": rho[where].mean(), "gradient_norm": np.linalg.norm(g)}
