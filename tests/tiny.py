"""A finite MDP small enough that every trajectory can be listed, so that expectations are finite sums.

States are arranged in layers and each step goes to the next layer or to the end, so every episode ends within
``horizon`` steps and values do not depend on time.
"""

from dataclasses import dataclass

import gymnasium
import numpy as np

from npg import Policy, SoftmaxLinear, Trajectories
from npg.features import OneHot


@dataclass
class Path:
    states: list[int]
    actions: list[int]
    rewards: list[float]
    dynamics: float
    """ρ_0(s_0) Π p(s_{t+1}|s_t, a_t), the factor of Eq. (1.2) that does not depend on θ."""


class Layered:
    """Layers of ``width`` states, ``n_actions`` actions, random dynamics and rewards R[s, a, s']."""

    def __init__(self, rng: np.random.Generator, horizon: int = 2, width: int = 2, n_actions: int = 2) -> None:
        self.horizon, self.width, self.n_actions = horizon, width, n_actions
        self.n_states = horizon * width
        self.rho = rng.dirichlet(np.ones(width))
        self.P = np.zeros((self.n_states, n_actions, self.n_states + 1))  # the last state is the end
        for s in range(self.n_states):
            layer = s // width + 1
            successors = [*range(layer * width, (layer + 1) * width), self.n_states]
            successors = successors if layer < horizon else [self.n_states]
            self.P[s][:, successors] = rng.dirichlet(np.ones(len(successors)), size=n_actions)
        self.R = rng.normal(size=self.P.shape)

    def policy(self) -> Policy:
        return SoftmaxLinear(OneHot(self.n_states), self.n_actions)

    def paths(self) -> list[Path]:
        open_ = [Path([s], [], [], self.rho[s]) for s in range(self.width)]
        done = []
        while open_:
            path = open_.pop()
            s = path.states[-1]
            for a in range(self.n_actions):
                for s2 in self.P[s, a].nonzero()[0]:
                    longer = Path(
                        [*path.states, s2],
                        [*path.actions, a],
                        [*path.rewards, self.R[s, a, s2]],
                        path.dynamics * self.P[s, a, s2],
                    )
                    (done if s2 == self.n_states else open_).append(longer)
        return done

    def q(self, pi: np.ndarray, gamma: float) -> np.ndarray:
        """Action values, from the last layer backwards: (S, A)."""
        q = np.zeros((self.n_states, self.n_actions))
        v = np.zeros(self.n_states + 1)
        for s in reversed(range(self.n_states)):
            q[s] = (self.P[s] * (self.R[s] + gamma * v)).sum(axis=-1)
            v[s] = pi[s] @ q[s]
        return q

    def visits(self, pi: np.ndarray, gamma: float) -> np.ndarray:
        """d_γ(s) = Σ_t γ^t Pr(S_t = s): (S,)."""
        d = np.zeros(self.n_states + 1)
        d[: self.width] = self.rho
        for s in range(self.n_states):
            d[self.width :] += gamma * d[s] * (pi[s] @ self.P[s])[self.width :]
        return d[:-1]


def probability(policy: Policy, theta: np.ndarray, path: Path) -> float:
    """p_θ(τ), Eq. (1.2)."""
    log_pi = policy.log_prob(theta, policy.features(np.array(path.states[:-1])), np.array(path.actions))
    return path.dynamics * np.exp(log_pi.sum())


def objective(policy: Policy, theta: np.ndarray, paths: list[Path], gamma: float) -> float:
    """J(θ), Eq. (1.1), by enumeration."""
    return sum(
        probability(policy, theta, path) * sum(gamma**t * r for t, r in enumerate(path.rewards)) for path in paths
    )


def batch(policy: Policy, paths: list[Path]) -> Trajectories:
    """One column per path, padded with invalid rows of zeros."""
    T, N = max(len(p.actions) for p in paths), len(paths)
    obs, next_obs, actions, t = (np.zeros((T, N), dtype=np.int64) for _ in range(4))
    rewards = np.zeros((T, N))
    terminated, valid = np.zeros((T, N), dtype=bool), np.zeros((T, N), dtype=bool)
    for n, path in enumerate(paths):
        k = len(path.actions)
        obs[:k, n], actions[:k, n], rewards[:k, n] = path.states[:-1], path.actions, path.rewards
        next_obs[: k - 1, n] = path.states[1:-1]
        terminated[k - 1, n], valid[:k, n], t[:k, n] = True, True, np.arange(k)
    x = obs[..., None]
    return Trajectories(obs, x, actions, rewards, next_obs, terminated, np.zeros((T, N), dtype=bool), valid, t)


class LayeredEnv(gymnasium.Env):
    """``Layered`` as a Gymnasium environment."""

    def __init__(self, mdp: Layered) -> None:
        self.mdp = mdp
        self.observation_space = gymnasium.spaces.Discrete(mdp.n_states + 1)
        self.action_space = gymnasium.spaces.Discrete(mdp.n_actions)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = int(self.np_random.choice(self.mdp.width, p=self.mdp.rho))
        return self.s, {}

    def step(self, action):
        s2 = int(self.np_random.choice(self.mdp.n_states + 1, p=self.mdp.P[self.s, action]))
        reward = self.mdp.R[self.s, action, s2]
        self.s = s2
        return s2, reward, s2 == self.mdp.n_states, False, {}
