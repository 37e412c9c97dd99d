"""Finite problems with continuous actions whose values are exact, with Gaussian noise and without, in plain NumPy."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from hypothesis import strategies as st
from oracles import Case, Row, vector
from strategies import generators

from npg import features as F
from npg.policies import GaussianLinear, Policy
from npg.trajectories import Trajectories

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def quadrature(m: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (Q, m) and weights (Q,) of a standard normal vector."""
    grids = np.meshgrid(*[NODES] * m, indexing="ij")
    weights = np.prod(np.meshgrid(*[WEIGHTS] * m, indexing="ij"), axis=0)
    return np.stack([grid.ravel() for grid in grids], axis=1), weights.ravel()


@dataclass(frozen=True)
class Waves:
    """S states and actions in R^m; rewards and transitions are linear functions and sines of the action.

    A sine of noisy actions has the mean of a smaller sine, so that the smoothed process is another of these. What is
    missing of the sum of a row of P is a termination. An array a (…, S, m) has an action for each state.
    """

    gamma: float
    rho0: np.ndarray
    constant: np.ndarray  # (S,), of the reward
    slope: np.ndarray  # (S, m)
    height: np.ndarray  # (S,)
    g: np.ndarray  # (S, m)
    h: np.ndarray  # (S,)
    up: np.ndarray  # (S, S), P where the sine is 1
    down: np.ndarray  # (S, S), and −1
    share: np.ndarray  # (S,)
    f: np.ndarray  # (S, m)
    b: np.ndarray  # (S,)

    def R(self, a):
        wave = self.height * np.sin((self.g * a).sum(-1) + self.h)
        return self.constant + (self.slope * a).sum(-1) + wave

    def P(self, a):
        c = (self.share * np.sin((self.f * a).sum(-1) + self.b))[..., None]
        return (1 + c) / 2 * self.up + (1 - c) / 2 * self.down

    def smoothed(self, sigma):
        """The process that adds σξ to every action."""
        R, P = (np.exp(-(sigma**2) * (k**2).sum(-1) / 2) for k in (self.g, self.f))
        return replace(self, height=self.height * R, share=self.share * P)

    def v(self, a):
        return np.linalg.solve(np.eye(len(self.rho0)) - self.gamma * self.P(a), self.R(a))

    def J(self, a):
        return self.rho0 @ self.v(a)

    def visitation(self, a, start=None):
        return np.linalg.solve(np.eye(len(self.rho0)) - self.gamma * self.P(a).T, self.rho0 if start is None else start)

    def target(self, a, v):
        """R(s, a) + γ E[v(S')]: with v_μ it is q_μ(s, a)."""
        return self.R(a) + self.gamma * self.P(a) @ v

    def slopes(self, a, v):
        """Its derivative by the action: (S, m)."""
        of_R = self.slope + (self.height * np.cos((self.g * a).sum(-1) + self.h))[:, None] * self.g
        of_c = (self.share * np.cos((self.f * a).sum(-1) + self.b))[:, None] * self.f
        return of_R + self.gamma * of_c * ((self.up - self.down) / 2 @ v)[:, None]

    def laplacian(self, a, v):
        """The sum of its second derivatives by the components of the action: (S,)."""
        of_R = -(self.g**2).sum(-1) * self.height * np.sin((self.g * a).sum(-1) + self.h)
        of_c = -(self.f**2).sum(-1) * self.share * np.sin((self.f * a).sum(-1) + self.b)
        return of_R + self.gamma * of_c * ((self.up - self.down) / 2 @ v)


class Deterministic(NamedTuple):
    """A problem, features x(s) (S, d) and θ = vec(W) of μ(s) = W x(s), and a generator."""

    mdp: Waves
    X: np.ndarray
    theta: np.ndarray
    rng: np.random.Generator

    @property
    def m(self):
        return self.mdp.slope.shape[1]

    @property
    def J(self):
        """J_s: (S, m, n)."""
        return np.stack([np.kron(np.eye(self.m), x) for x in self.X])

    def mu(self, theta=None):
        return self.X @ (self.theta if theta is None else theta).reshape(self.m, -1).T

    def g(self, mdp=None):
        """J_sᵀ∇_a q_μ(s, μ(s)) of each state: (S, n)."""
        mdp = mdp or self.mdp
        return np.einsum("smn,sm->sn", self.J, mdp.slopes(self.mu(), mdp.v(self.mu())))

    def gradient(self, mdp=None):
        """∇J, by the theorem."""
        mdp = mdp or self.mdp
        return mdp.visitation(self.mu()) @ self.g(mdp)

    def F(self, d):
        """E_d[J_sᵀJ_s]."""
        return np.einsum("s,smn,smk->nk", d, self.J, self.J)


@st.composite
def deterministic(draw, most=4, actions=2, tabular=False, ends=True):
    """Random problems of 2 to ``most`` states."""
    rng = draw(generators)
    S, m = draw(st.integers(2, most)), draw(st.integers(1, actions))
    gamma = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0] if ends else [0.0, 0.5, 0.9]))
    up, down = (rng.dirichlet(np.ones(S), size=S) * (rng.uniform(0.5, 0.9) if ends else 1) for _ in range(2))
    waves = [*(rng.normal(size=shape) for shape in (S, (S, m), S, (S, m), S))]
    share, f, b = rng.uniform(size=S), rng.normal(size=(S, m)), rng.normal(size=S)
    mdp = Waves(gamma, rng.dirichlet(np.ones(S)), *waves, up, down, share, f, b)
    X = np.eye(S) if tabular else rng.normal(size=(S, draw(st.integers(1, 2))))
    return Deterministic(mdp, X, 0.7 * rng.normal(size=m * X.shape[1]), rng)


# Transitions as an agent gets them


def policy_of(d: int, m: int) -> Policy:
    """Gaussian with x(s) = s and a constant σ."""
    return GaussianLinear(F.Affine(d, scale=1.0, bias=False), F.Constant(), m)


BOX = spaces.Box(-1.0, 1.0, (2,), dtype=np.float64)
TILES = F.TileCoding(BOX, n_tilings=4, n_tiles=2)
OTHER_TILES = F.TileCoding(BOX, n_tilings=2, n_tiles=3, table_size=12)
LINEAR = {
    "dense": Case(GaussianLinear(F.Affine(BOX), F.Constant(), 2), F.Fourier(BOX, order=1), BOX),
    "tiles": Case(GaussianLinear(TILES, F.Constant(), 2), OTHER_TILES, BOX),
    "one action": Case(GaussianLinear(OTHER_TILES, F.Constant(), 1), F.Polynomial(BOX, degree=2), BOX),
    "table": Case(GaussianLinear(F.OneHot(5), F.Constant(), 1), F.OneHot(5), spaces.Discrete(5)),
}
"""Policies with a constant σ, and features of their critic."""


class Seen(NamedTuple):
    """One transition as the boxes have it, dense."""

    J: np.ndarray  # (m, n)
    a: np.ndarray
    phi: np.ndarray  # φ(S)
    r: float
    phi_next: np.ndarray  # φ(S'), 0 where S' is terminal
    ends: bool


def seen(case: Case, row: Row) -> Seen:
    """From a row of experience."""
    x, m = vector(case.policy.features.mean, row.obs), case.policy.distribution.n_actions
    phi, phi_next = (vector(case.value_features, obs) for obs in (row.obs, row.next_obs))
    ends = row.terminated or row.truncated
    return Seen(np.kron(np.eye(m), x), row.a, phi, row.r, phi_next * (not row.terminated), ends)


def transitions_of(policy: Policy, obs, a, r, next_obs, terminated=None) -> Trajectories:
    """One step of as many columns as there are rows: means over columns are means over the rows."""
    no = np.zeros((1, len(r)), dtype=bool)
    x, one = policy.features(np.asarray(obs))
    rows = [np.asarray(part, dtype=float)[None] for part in (obs, a, r, next_obs)]
    ends = no if terminated is None else np.asarray(terminated)[None]
    return Trajectories(rows[0], (x[None], one[None]), *rows[1:], ends, no, ~no, no.astype(int))
