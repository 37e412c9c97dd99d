"""REINFORCE (Williams 1992; Sutton & Barto 2018, sections 13.3 and 13.4; derivations, chapter 1).

Loop: generate episodes S_0, A_0, R_1, …, R_T following π_θ; for each step t of each of the M episodes

    G ← Σ_{k>t} γ^{k−t−1} R_k
    δ ← G − b(S_t)
    θ ← θ + α (1/M) γ^t δ ∇ ln π(A_t|S_t, θ)

and, for the next batch, w ← argmin Σ (wᵀx(S_t) − G)² + κ‖w‖² where b(s) = v̂(s; w) = wᵀx(s), or, as in the book,
w ← w + α_w (G − v̂(S_t; w)) x(S_t) for each step.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Rng
from ..estimators import optimal_baseline
from ..features import Features, rows
from ..optimizers import OPTIMIZERS
from ..returns import discounted_returns, leave_one_out_mean, normalized_advantages, total_returns
from ..trajectories import Episodes, Trajectories
from ..values import LinearValue, least_mean_squares, ridge_least_squares
from .base import Agent, choice, features, integer, number


@dataclass
class Reinforce(Agent):
    """Monte-Carlo policy gradient over batches of whole episodes, Eq. (1.16).

    With the defaults, and where no time limit cuts an episode, the mean of the direction g is the gradient of the
    policy-gradient theorem, Eq. (1.9).

    Parameters
    ----------
    policy : npg.Policy
    baseline_features : features
        Of the value v̂(s; w) = wᵀx(s) that ``baseline="linear"`` fits.
    gamma : float
        Discount γ in [0, 1].
    episodes : int
        M, whole episodes per update.
    returns : {"to_go", "total"}
        Weight each score by the reward-to-go, Eq. (1.7), or by the episode's total return, Eq. (1.5).
    outer_discount : bool
        With ``returns="to_go"``: keep the γ^t before it, as the exact gradient of J has it, Eq. (1.7); without it
        the update follows Eq. (1.10).
    baseline : {"linear", "leave_one_out", "optimal", "none"}
        b: v̂(S_t; w), Eq. (1.14); the mean return of the other episodes, Eq. (1.13); the constant of least variance
        as they estimate it, Eq. (5.10); 0. None of them changes the mean of g, Eq. (1.11), as long as it does not
        depend on the episode it is used in.
    fit : {"earlier", "same"}
        With ``baseline="linear"``: whether b uses w fitted to the batch before (unbiased) or to this one (biased,
        Eq. (1.15)).
    alpha_w : float or None
        Step size of w, one step for each step of the batch in order, as in the book's box; None fits w by
        least squares instead. With ``fit="same"``, b is then v̂(S_t; w) just before the step of its own row.
    ridge : float
        κ of the fit by least squares.
    normalize : {None, "scale", "standardize"}
        Divide δ by its deviation over the rows, or shift it to mean 0 too, Eq. (11.15), unless that is rounding.
    optimizer : {"adam", "ascent"}
    alpha : float
        Step size α.

    Notes
    -----
    An episode that a time limit cuts is completed by v̂ of its last observation where ``baseline="linear"``;
    otherwise its return ends there, which makes the limit part of the task.
    """

    baseline_features: Features = features("polynomial")
    gamma: float = number(0.99, 0, 1)
    episodes: int = integer(16, 1)
    returns: str = choice("to_go", "total")
    outer_discount: bool = choice(True, False)
    baseline: str = choice("linear", "leave_one_out", "optimal", "none")
    fit: str = choice("earlier", "same")
    alpha_w: float | None = number(None, 1e-12, optional=True)
    ridge: float = number(1.0, 0)
    normalize: str | None = choice(None, "scale", "standardize")
    optimizer: str = choice("adam", "ascent")
    alpha: float = number(0.05, 0)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "ascent")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline in ("leave_one_out", "optimal") and self.episodes < 2:
            raise ValueError(f"episodes must be at least 2 with baseline={self.baseline!r}, got {self.episodes}")

    @property
    def collect(self) -> Episodes:
        """M whole episodes."""
        return Episodes(self.episodes)

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.ascent = OPTIMIZERS[self.optimizer](self.policy.n_params, self.alpha)
        self.v = LinearValue(self.baseline_features)
        self.w = np.zeros(self.v.n_params)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """One step of Eq. (1.16) on a batch of whole episodes."""
        linear, total = self.baseline == "linear", self.returns == "total"
        bootstrap = np.zeros(traj.rewards.shape)
        if linear:
            bootstrap[traj.truncated] = self.v.value(self.w, traj.next_obs[traj.truncated])
        G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, self.gamma, bootstrap)
        if total:
            G = total_returns(traj.t == 0, G)
        x, a, t, G = traj.rows(traj.t, G)
        M = np.count_nonzero(t == 0)
        discount = self.gamma**t if self.outer_discount and not total else np.ones(len(t))

        b = np.zeros(len(t))
        if linear:
            phi = self.v.x(traj.obs[traj.valid])
            b = phi @ self.w
            if self.alpha_w is not None:
                self.w, b_same = least_mean_squares(self.w, phi, G, self.alpha_w)
            else:
                self.w = ridge_least_squares(phi, G, self.ridge)
                b_same = phi @ self.w
            b = b if self.fit == "earlier" else b_same
        elif self.baseline == "leave_one_out":
            b = leave_one_out_mean(t, G, total)
        elif self.baseline == "optimal":
            episode = traj.episodes()[traj.valid]
            X, Psi = np.zeros((2, M, self.policy.n_params))
            for i in range(M):
                of_i = episode == i
                x_i, a_i, w_i = rows(x, of_i), a[of_i], discount[of_i]
                X[i] = self.policy.weighted_score(self.theta, x_i, a_i, w_i * G[of_i])
                Psi[i] = self.policy.weighted_score(self.theta, x_i, a_i, w_i)
            b = optimal_baseline(X, Psi, leave_one_out=True)[episode, 0]
        delta = normalized_advantages(G - b, self.normalize, np.abs(G).max())

        g = self.policy.weighted_score(self.theta, x, a, discount * delta / M)
        self.theta = self.ascent.step(self.theta, g)
        return {"advantage_std": (G - b).std(), "gradient_norm": np.linalg.norm(g)}
