"""Actor–critic that learns from a buffer of the transitions of all its policies so far (derivations, chapter 12)."""

from typing import ClassVar

import numpy as np

from .._typing import Array, Inputs, Rng
from ..distributions import Categorical, log_softmax
from ..features import Features
from ..replay import Replay
from ..trajectories import ONE_STEP, Steps, Trajectories
from ..values import LinearValue
from .base import Agent, choice, features, gamma, integer, method, number


@method
class ReplayActorCritic(Agent):
    """Off-policy actor–critic with replay, and action values whose targets have a fresh next action, Eq. (12.22).

    A row of the buffer is right whatever policy drew its action, as reward and successor are those of that action. Only
    what the *current* policy would do next is drawn anew, and the actor never sees the old action.
    """

    value_features: Features = features("polynomial", doc="x of the critic q̂(s, ·; v), a row of weights per action.")
    gamma: float = gamma()
    capacity: int = integer(50_000, 1, doc="Rows that the buffer keeps.")
    minibatch: int = integer(32, 1, doc="B, rows that are drawn from the buffer for an update.")
    actor: str = choice("sum", "sample", doc="Σ_a ∇π(a|s) q̂(s, a), or ∇ ln π(a|s) q̂(s, a) of one fresh action a.")
    baseline: bool = choice(True, False, doc="Subtract Σ_a π(a|s) q̂(s, a) from q̂; the sum does not change by it.")
    alpha_u: float = number(0.01, 0, doc="Step size α_u of θ; to be divided by the number of tilings, Eq. (7.22).")
    alpha_v: float = number(
        0.05, 0, doc="Step size α_v of v: a row moves q̂ by α_v / B of its error, times the number of tilings."
    )

    learned: ClassVar[tuple[str, ...]] = ("theta", "v", "replay")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy.distribution, Categorical):
            raise TypeError(f"replay_actor_critic needs discrete actions, got {self.policy.distribution}")

    @property
    def collect(self) -> Steps:
        """One step."""
        return ONE_STEP

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, v = 0, an empty buffer."""
        super().init(rng, columns)
        self.q = LinearValue(self.value_features, self.policy.distribution.n_actions).model
        self.v = np.zeros(self.q.n_params)
        self.replay, self.columns = Replay(self.capacity), columns

    def load_state(self, state: dict[str, Array]) -> None:
        """Take back what ``state`` returned, with however many rows in the buffer."""
        with self.replay.room_for(state, "replay."):
            super().load_state(state)

    def remember(self, traj: Trajectories) -> None:
        """Store the valid rows of one step of each environment."""
        if traj.valid.shape != (1, self.columns):
            raise ValueError(f"traj must be one step of columns = {self.columns} environments, got {traj.valid.shape}")
        n = traj.step()[-1]
        self.policy.distribution.check_actions(traj.actions[traj.valid], n)
        names = ("obs", "actions", "rewards", "next_obs", "terminated")
        self.replay.insert(**{name: getattr(traj, name)[traj.valid] for name in names})

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A ~ π(·|S, θ), observe R, S', store (S, A, R, S', terminated); then

        draw B rows (s, a, r, s') from the buffer, and a' ~ π(·|s', θ) for each
        δ ← r + γ q̂(s', a', v) − q̂(s, a, v)                    (q̂ = 0 where s' is terminal)
        v ← v + α_v (1/B) Σ δ φ(s, a)                           (φ(s, a) = x(s) in the block of a)
        θ ← θ + α_u (1/B) Σ Σ_a ∇π(a|s, θ) q̂(s, a, v)           (or Σ ∇ ln π(a|s, θ) [q̂(s, a, v) − b(s)], a ~ π)
        """
        self.remember(traj)
        rows, each = self.replay.sample(self.minibatch, rng), np.arange(self.minibatch)
        x, x_q, a = self.policy.features(rows["obs"]), self.value_features(rows["obs"]), rows["actions"]
        a_next = self.policy.sample(self.theta, self.policy.features(rows["next_obs"]), rng)
        q_next = self.q.forward(self.v, self.value_features(rows["next_obs"]))[each, a_next] * ~rows["terminated"]
        delta = rows["rewards"] + self.gamma * q_next - self.q.forward(self.v, x_q)[each, a]
        u = delta[:, None] * (a[:, None] == np.arange(self.q.n_outputs))
        self.v = self.v + self.alpha_v / self.minibatch * self.q.vjp(self.v, x_q, u)
        q = self.q.forward(self.v, x_q)
        self.theta = self.theta + self.alpha_u * self.ascent_direction(x, q, rng)  # (12.22)
        return {"squared_td_error": delta.dot(delta) / self.minibatch}

    def ascent_direction(self, x: Inputs, q: Array, rng: Rng) -> Array:
        """Mean over the rows of Σ_a ∇π q̂, or of ∇ ln π q̂ of one fresh action, q̂ less its mean under π: (n,)."""
        weight = np.full(len(q), 1 / len(q))
        if self.actor == "sum":
            return self.policy.all_actions_gradient(self.theta, x, q, weight)
        pi = np.exp(log_softmax(self.policy.eta(self.theta, x)))
        b = (pi * q).sum(axis=1) if self.baseline else 0.0
        a = self.policy.sample(self.theta, x, rng)
        return self.policy.weighted_score(self.theta, x, a, weight * (q[np.arange(len(q)), a] - b))
