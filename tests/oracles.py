"""What tests compute without the library: boxes and policies in plain NumPy, experience made by hand, and helpers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from scipy.optimize import brentq
from strategies import Problem

from npg import features as F
from npg.algorithms import Agent
from npg.distributions import Categorical
from npg.exact import TabularMDP, enumerate_trajectories
from npg.lab.collect import Collector
from npg.models import Linear
from npg.policies import GaussianLinear, Policy, SoftmaxLinear
from npg.solvers import backtracking_line_search
from npg.traces import TRACES
from npg.trajectories import Trajectories


class Case(NamedTuple):
    """A policy, features of its critic, and where its observations come from."""

    policy: Policy
    value_features: F.Features
    space: spaces.Space[Any]


BOX = spaces.Box(-1.0, 1.0, (2,), dtype=np.float64)


TILES = F.TileCoding(BOX, n_tilings=4, n_tiles=2)


OTHER_TILES = F.TileCoding(BOX, n_tilings=2, n_tiles=3, table_size=12)


CASES = {
    "one-hot": Case(SoftmaxLinear(F.OneHot(5), 3), F.OneHot(5), spaces.Discrete(5)),
    "dense": Case(SoftmaxLinear(F.Fourier(BOX, order=1), 2), F.Polynomial(BOX, degree=2), BOX),
    "tiles": Case(SoftmaxLinear(TILES, 3), TILES, BOX),
    "gaussian": Case(GaussianLinear(F.Affine(BOX), F.Constant(), 2), F.Fourier(BOX, order=1), BOX),
    "gaussian on shared tiles": Case(GaussianLinear(TILES, TILES, 1), OTHER_TILES, BOX),
    "gaussian on features of its own": Case(GaussianLinear(F.Polynomial(BOX, degree=2), TILES, 2), TILES, BOX),
}


WALK = Case(SoftmaxLinear(F.OneHot(6), 2), F.OneHot(6), spaces.Discrete(6))
"""For the random walk of five states."""


ENDS = [(3, True, False), (4, False, True), (1, True, False), (2, True, True), (1, False, True)]
"""Length of an episode, and whether its last step is terminated and truncated."""


class Row(NamedTuple):
    """One step of one environment."""

    obs: Any
    a: Any
    r: float
    next_obs: Any
    terminated: bool
    truncated: bool
    t: int


def _episodes(case: Case, rng: np.random.Generator, first: int) -> Iterator[Row | None]:
    """Rows of a column without end, None for the reset step after an episode."""
    policy, space = case.policy, case.space

    def observe() -> Any:
        return rng.integers(space.n) if isinstance(space, spaces.Discrete) else rng.uniform(space.low, space.high)

    m = policy.distribution.n_actions
    for length, terminated, truncated in cycle(ENDS[first:] + ENDS[:first]):
        obs = observe()
        for t in range(length):
            a = rng.integers(m) if isinstance(policy.distribution, Categorical) else rng.uniform(-1, 1, size=m)
            next_obs, last = observe(), t == length - 1
            yield Row(obs, a, rng.normal(), next_obs, last and terminated, last and truncated, t)
            obs = next_obs
        yield None


def step_of(policy: Policy, rows: Iterable[Row | None], blank: Row) -> Trajectories:
    """One step of each column as the collector records it, of the b of ``stream``; reset steps are rows of zeros."""
    valid = np.array([row is not None for row in rows])
    columns = [np.array(part)[None] for part in zip(*(row or blank for row in rows), strict=True)]
    x = policy.features(columns[0][0])
    first, *second = (np.where(valid[:, None], part, 0)[None] for part in (x if isinstance(x, tuple) else (x,)))
    if second:
        first = (first, first if x[1] is x[0] else second[0])
    obs, a, r, next_obs, terminated, truncated, t = columns
    m = policy.distribution.n_actions
    log_b = -np.log(m) if isinstance(policy.distribution, Categorical) else -m * np.log(2)
    return Trajectories(obs, first, a, r, next_obs, terminated, truncated, valid[None], t, valid[None] * log_b)


def stream(case: Case, seed: int, steps: int = 16, columns: int = 1, resets: bool = False) -> list[Trajectories]:
    """Steps of episodes that terminate, are truncated, and both, with any actions."""
    rng = np.random.default_rng(seed)
    made = [
        islice((row for row in _episodes(case, rng, n % len(ENDS)) if resets or row), steps) for n in range(columns)
    ]
    some = next(_episodes(case, rng, 0))
    blank = Row(*(np.zeros_like(part) for part in some))
    return [step_of(case.policy, rows, blank) for rows in zip(*made, strict=True)]


def collected(agent: Agent, env: Any, steps: int, seed: int = 0) -> Iterator[Trajectories]:
    """Steps that the agent takes in an environment while it learns from them, but for those that are resets alone."""
    collector, rng = Collector(env, seed), np.random.default_rng(seed)
    for _ in range(steps):
        traj = collector.collect(agent, agent.collect, rng)
        if traj.valid.any():
            yield traj


def row_of(traj: Trajectories, n: int = 0, t: int = 0) -> Row | None:
    """Row t of column n; None where it is a reset step."""
    if not traj.valid[t, n]:
        return None
    parts = (traj.obs, traj.actions, traj.rewards, traj.next_obs, traj.terminated, traj.truncated, traj.t)
    return Row(*(part[t, n] for part in parts))


def rows_of(traj: Trajectories, n: int) -> list[Row | None]:
    """The rows of column n."""
    return [row_of(traj, n, t) for t in range(len(traj.valid))]


def vector(features: F.Features, obs: Any) -> np.ndarray:
    """x(s) with its zeros."""
    x = features(np.asarray(obs)[None])[0]
    if x.dtype.kind not in "iu":
        return x
    full = np.zeros(features.n_features)
    for i in x:
        full[i] += 1
    return full


def probabilities(policy: Policy, theta: np.ndarray, obs: Any) -> np.ndarray:
    """π(·|s) of a softmax policy."""
    x = vector(policy.features, obs)
    weights = [np.exp(theta[b * len(x) : (b + 1) * len(x)] @ x) for b in range(policy.distribution.n_actions)]
    return np.array(weights) / sum(weights)


def score(policy: Policy, theta: np.ndarray, obs: Any, a: Any) -> np.ndarray:
    """∇ log π(a|s): Sutton & Barto (2018), equation 13.9 and exercise 13.4."""
    m = policy.distribution.n_actions
    if isinstance(policy.distribution, Categorical):
        pi, x = probabilities(policy, theta, obs), vector(policy.features, obs)
        return np.concatenate([((b == a) - pi[b]) * x for b in range(m)])
    x_mu, x_sigma = vector(policy.features.mean, obs), vector(policy.features.scale, obs)
    d, e = len(x_mu), len(x_sigma)
    mu = [theta[j * d : (j + 1) * d] @ x_mu for j in range(m)]
    sigma = [np.exp(theta[m * d + j * e : m * d + (j + 1) * e] @ x_sigma) for j in range(m)]
    of_mean = [(a[j] - mu[j]) / sigma[j] ** 2 * x_mu for j in range(m)]
    of_scale = [((a[j] - mu[j]) ** 2 / sigma[j] ** 2 - 1) * x_sigma for j in range(m)]
    return np.concatenate(of_mean + of_scale)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-12, relative to the largest element: some thousand roundings."""
    assert np.abs(actual - expected).max() <= 1e-12 * np.abs(expected).max()


SHARED = ("theta", "w", "v", "critic.w", "critic.v", "u_w", "u_v", "average_reward")


def make(cls: type[Agent], case: Case, seed: int = 0, columns: int = 1, **settings: Any) -> Agent:
    """An agent at random θ and w."""
    rng = np.random.default_rng(seed)
    of_values = [f.name for f in fields(cls) if "features" in f.metadata]
    agent = cls(case.policy, **dict.fromkeys(of_values, case.value_features), **settings)
    agent.init(rng, columns)
    learned = agent.state()
    agent.load_state(
        learned | {name: 0.2 * rng.normal(size=np.shape(learned[name])) for name in SHARED if name in learned}
    )
    return agent


class Shifted(TransformObservation):
    """States that are numbered from 3."""

    def __init__(self, env: Any) -> None:
        super().__init__(env, lambda s: s + 3, spaces.Discrete(env.observation_space.n, start=3))


def transitions(mdp: Any, policy: Policy, pi: np.ndarray) -> Iterator[tuple[int, int, int, float, Trajectories]]:
    """s, a, s', π(a|s) P(s'|s, a) and the step, within an episode, for all that may happen in states not terminal."""
    p = pi[:, :, None] * mdp.P * ~mdp.terminal[:, None, None]
    for s, a, s_next in np.argwhere(p > 0):
        r = mdp.R[s, a] if mdp.R.ndim == 2 else mdp.R[s, a, s_next]
        row = Row(s, a, r, s_next, mdp.terminal[s_next], False, 1)
        yield s, a, s_next, p[s, a, s_next], step_of(policy, [row], row)


def table(mdp: Any) -> F.OneHot:
    """Features with which the critic is a table."""
    return F.OneHot(mdp.n_states)


ONLINE = {"gamma": 0.8, "alpha": 0.003, "alpha_w": 0.1}


def carried(agent: Agent) -> dict[str, np.ndarray]:
    """The state of the columns: traces, I and what else goes on with an episode."""
    return {name: value for name, value in agent.state().items() if name not in SHARED}


def joined(steps: Iterable[Trajectories]) -> Trajectories:
    """Steps one after another."""
    steps = list(steps)
    fields = {name: [getattr(traj, name) for traj in steps] for name in steps[0].arrays()}
    if isinstance(steps[0].x, tuple):
        first, second = zip(*fields.pop("x"), strict=True)
        x = np.concatenate(first)
        pair = (x, x if first[0] is second[0] else np.concatenate(second))
        return Trajectories(x=pair, **{name: np.concatenate(parts) for name, parts in fields.items()})
    return Trajectories(**{name: np.concatenate(parts) for name, parts in fields.items()})


def batch(case: Case, seed: int, columns: int = 3) -> Trajectories:
    """Five whole episodes in each column with reset steps between them, and padding."""
    return joined(stream(case, seed, 16, columns, resets=True))


def episodes_of(traj: Trajectories) -> list[list[Row]]:
    """The rows of each episode."""
    found: list[list[Row]] = []
    for n in range(traj.valid.shape[1]):
        for row in rows_of(traj, n):
            if row:
                found += [[]] if row.t == 0 else []
                found[-1].append(row)
    return found


def window(episode: list[Row], t: int, n: int, value, gamma: float) -> float:
    """G_{t:t+n}, up to the end of the episode at most."""
    m = min(n, len(episode) - t)
    last = episode[t + m - 1]
    bootstrap = 0.0 if last.terminated else value(last.next_obs)
    return sum(gamma**k * episode[t + k].r for k in range(m)) + gamma**m * bootstrap


def target_of(episode: list[Row], t: int, value, *, target: str, gamma: float, lam: float, n: int) -> float:
    """Y_t of a row."""
    L = len(episode) - t
    if target == "lambda":
        means = [(1 - lam) * lam ** (k - 1) * window(episode, t, k, value, gamma) for k in range(1, L)]
        return sum(means) + lam ** (L - 1) * window(episode, t, L, value, gamma)
    return window(episode, t, {"td": 1, "n_step": n, "mc": L}[target], value, gamma)


def segments(case: Case, seed: int, count: int = 4, columns: int = 3) -> list[Trajectories]:
    """Five steps each of columns whose episodes go on from one segment to the next, with reset steps."""
    steps = stream(case, seed, 5 * count, columns, resets=True)
    return [joined(steps[5 * k : 5 * k + 5]) for k in range(count)]


def windows(traj: Trajectories) -> list[list[Row]]:
    """The rows of each episode, or part of one, in the segment."""
    found: list[list[Row]] = []
    for n in range(traj.valid.shape[1]):
        going_on = False
        for row in rows_of(traj, n):
            if row:
                found += [] if going_on else [[]]
                found[-1].append(row)
                going_on = not (row.terminated or row.truncated)
    return found


BINARY = ("one-hot", "tiles", "gaussian on shared tiles", "gaussian on features of its own")


KINDS_AND_TRACES = [(kind, trace) for kind in CASES for trace in TRACES if trace != "replacing" or kind in BINARY]


DECAYS = {"lam_theta": 0.7, "lam_w": 0.9}


def derivative(f, theta):
    """∂f/∂θ of an array-valued analytic f by the complex step, the parameter last: (…, n)."""
    return np.stack([np.imag(f(theta + 1e-30j * e)) / 1e-30 for e in np.eye(len(theta))], axis=-1)


def d_pi(p):
    """∂π(a|s)/∂θ: (S, A, n)."""
    return derivative(lambda theta: p.mdp.policy_matrix(p.policy, theta), p.theta)


class Reparametrised:
    """A model of ϑ that is a linear one of θ = Mϑ."""

    def __init__(self, model, M):
        self.model, self.M = model, M
        self.n_outputs, self.n_params = model.n_outputs, M.shape[1]

    def forward(self, theta, x):
        return self.model.forward(self.M @ theta, x)

    def vjp(self, theta, x, u):
        return self.M.T @ self.model.vjp(self.M @ theta, x, u)

    def jvp(self, theta, x, v):
        return self.model.jvp(self.M @ theta, x, self.M @ v)

    def jacobian(self, theta, x):
        return self.model.jacobian(self.M @ theta, x) @ self.M

    def accumulate(self, theta, z, x, u):
        of_theta = np.zeros((len(z), len(self.M)))
        self.model.accumulate(self.M @ theta, of_theta, x, u)
        z += of_theta @ self.M


def invertible(rng, n, condition):
    """A random (n, n) matrix with that condition number, neither symmetric nor orthogonal."""
    U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return U @ np.diag(condition ** np.linspace(-0.5, 0.5, n)) @ V


def reparametrised(p, M):
    """The same policy in ϑ = M⁻¹θ."""
    model = Reparametrised(p.policy.model, M)
    return p._replace(policy=replace(p.policy, model=model), theta=np.linalg.solve(M, p.theta))


def dense_policy(p, table):
    """The same problem with a policy on the features ``table`` (S, d) of its states."""
    policy = Policy(lambda states: table[states], Linear(table.shape[1], p.mdp.n_actions), Categorical(p.mdp.n_actions))
    return p._replace(policy=policy, theta=p.rng.normal(size=policy.n_params))


def centred(p, v):
    """What v changes in the logits of the states that are visited, without what all actions have in common."""
    eta = p.policy.model.jvp(p.theta, p.mdp.features(p.policy), v)
    return (eta - eta.mean(axis=1, keepdims=True))[p.mdp.visitation(p.policy, p.theta) > 0]


def direction(p, d):
    """F and Σ_s d(s) Σ_a ∇π(a|s) q(s, a)."""
    q = p.mdp.action_value(p.policy, p.theta)
    return p.policy.fisher(p.theta, p.mdp.features(p.policy), d), np.einsum("s,sa,san->n", d, q, d_pi(p))


class Batch(NamedTuple):
    """The valid rows: features of the policy (of its logits, or of μ and log σ) and of the critic, and estimates."""

    X: tuple[np.ndarray, ...]
    a: np.ndarray
    X_v: np.ndarray
    A: np.ndarray
    v: np.ndarray


def dense_rows(features: F.Features, obs: np.ndarray) -> np.ndarray:
    """x of each observation with its zeros: (B, d)."""
    x = features(obs)
    return np.eye(features.n_features)[x].sum(axis=1) if x.dtype.kind in "iu" else x


def batch_of(policy: Policy, value_features: F.Features, traj: Trajectories, w, *, gamma, lam) -> Batch:
    """Generalised advantages by their recursion from the last row of each column to the first."""
    T, N = traj.valid.shape
    v, A = np.zeros((T, N)), np.zeros((T, N))
    v[traj.valid] = dense_rows(value_features, traj.obs[traj.valid]) @ w
    v_next = np.zeros((T, N))
    v_next[traj.valid] = dense_rows(value_features, traj.next_obs[traj.valid]) @ w
    for n in range(N):
        for t in reversed(range(T)):
            if traj.valid[t, n]:
                terminated, truncated = traj.terminated[t, n], traj.truncated[t, n]
                delta = traj.rewards[t, n] + (0 if terminated else gamma * v_next[t, n]) - v[t, n]
                goes_on = t + 1 < T and not terminated and not truncated
                A[t, n] = delta + (gamma * lam * A[t + 1, n] if goes_on else 0)
    obs, softmax = traj.obs[traj.valid], isinstance(policy.distribution, Categorical)
    of_policy = (policy.features,) if softmax else (policy.features.mean, policy.features.scale)
    X = tuple(dense_rows(features, obs) for features in of_policy)
    return Batch(X, traj.actions[traj.valid], dense_rows(value_features, obs), A[traj.valid], v[traj.valid])


def split(policy: Policy, theta: np.ndarray, X: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """log π(·|s) of a softmax, or μ and σ: (B, k) each."""
    m = policy.distribution.n_actions
    if isinstance(policy.distribution, Categorical):
        logits = X[0] @ theta.reshape(m, -1).T
        logits = logits - logits.max(axis=1, keepdims=True)
        return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)),)
    W_mu, W_sigma = np.split(theta, [m * X[0].shape[1]])
    return X[0] @ W_mu.reshape(m, -1).T, np.exp(X[1] @ W_sigma.reshape(m, -1).T)


def blocks(*pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Rows u ⊗ x of each pair of (B, k) and (B, d), side by side: a vector of the length of θ for each row."""
    return np.hstack([(u[:, :, None] * x[:, None, :]).reshape(len(x), -1) for u, x in pairs])


def density(policy, theta, X, a):
    """π(a|s): (B,)."""
    if isinstance(policy.distribution, Categorical):
        return np.exp(split(policy, theta, X)[0][np.arange(len(a)), a])
    mu, sigma = split(policy, theta, X)
    return np.prod(np.exp(-(((a - mu) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi)), axis=1)


def scores(policy, theta, X, a):
    """∇ log π(a|s): (B, n)."""
    if isinstance(policy.distribution, Categorical):
        p = np.exp(split(policy, theta, X)[0])
        return blocks((np.eye(p.shape[1])[a] - p, X[0]))
    mu, sigma = split(policy, theta, X)
    return blocks(((a - mu) / sigma**2, X[0]), (((a - mu) / sigma) ** 2 - 1, X[1]))


def divergence(policy, theta, theta_new, X):
    """KL(π_θ(·|s) ‖ π_new(·|s)): (B,)."""
    if isinstance(policy.distribution, Categorical):
        (log_p,), (log_q,) = split(policy, theta, X), split(policy, theta_new, X)
        return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    (mu, sigma), (mu_new, sigma_new) = split(policy, theta, X), split(policy, theta_new, X)
    return (np.log(sigma_new / sigma) + (sigma**2 + (mu - mu_new) ** 2) / (2 * sigma_new**2) - 0.5).sum(axis=1)


def divergence_gradient(policy, theta, theta_new, X):
    """∇KL(π_θ(·|s) ‖ π_new(·|s)) by the parameters of the second: (B, n)."""
    if isinstance(policy.distribution, Categorical):
        (log_p,), (log_q,) = split(policy, theta, X), split(policy, theta_new, X)
        return blocks((np.exp(log_q) - np.exp(log_p), X[0]))
    (mu, sigma), (mu_new, sigma_new) = split(policy, theta, X), split(policy, theta_new, X)
    of_scale = 1 - (sigma**2 + (mu - mu_new) ** 2) / sigma_new**2
    return blocks(((mu_new - mu) / sigma_new**2, X[0]), (of_scale, X[1]))


def entropy_gradient(policy, theta, X):
    """∇H(π_θ(·|s)): (B, n)."""
    if isinstance(policy.distribution, Categorical):
        (log_p,) = split(policy, theta, X)
        p = np.exp(log_p)
        return blocks((-p * (log_p - (p * log_p).sum(axis=1, keepdims=True)), X[0]))
    m = policy.distribution.n_actions
    return blocks((np.zeros((len(X[0]), m)), X[0]), (np.ones((len(X[1]), m)), X[1]))


def normalised(A):
    """(Â − mean) / std over the rows."""
    mean = A.sum() / len(A)
    return (A - mean) / np.sqrt(((A - mean) ** 2).sum() / len(A))


def fit(X_v, G, ridge, w_old):
    """argmin Σ (wᵀx − G)² + κ‖w − w_old‖²."""
    return np.linalg.solve(X_v.T @ X_v + ridge * np.eye(X_v.shape[1]), X_v.T @ G + ridge * w_old)


def batches(case: Case, seed: int, count: int = 2, columns: int = 3, T: int = 14) -> list[Trajectories]:
    """Segments of episodes that terminate, are truncated, both, or go on in the next one, with reset steps."""
    steps = stream(case, seed, T * count, columns, resets=True)
    parts = [joined(steps[T * k : T * k + T]) for k in range(count)]
    for traj in parts:
        assert not traj.valid.all()
        assert traj.terminated.any()
        assert (traj.truncated & ~traj.terminated).any()
    return parts


def made(cls: type[Agent], case: Case, seed: int, **settings) -> Agent:
    """An agent at random θ and w."""
    rng = np.random.default_rng(seed)
    agent = cls(case.policy, case.value_features, **settings)
    agent.init(rng)
    agent.theta, agent.w = 0.2 * rng.normal(size=agent.theta.shape), rng.normal(size=agent.w.shape)
    return agent


def near(actual, expected, relative: float = 1e-10) -> None:
    """Equal relative to the largest element."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def repeated(case: Case, rows: list[Row], counts: list[int]) -> Trajectories:
    """One step of as many columns as counts add up to, so that means over rows are exact expectations."""
    rows = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    return step_of(case.policy, rows, rows[0])


ONE_STATE = Case(SoftmaxLinear(F.Constant(), 2), F.Constant(), spaces.Discrete(1))
"""A policy that cannot tell states apart, with two actions."""


def bandit(A: tuple[float, ...], counts: list[int], case: Case = ONE_STATE) -> Trajectories:
    """Rows of one state whose reward, and with w = 0 whose advantage, is that of their action."""
    return repeated(case, [Row(0, a, r, 0, True, False, 0) for a, r in enumerate(A)], counts)


def log_odds(p: float) -> float:
    return float(np.log(p / (1 - p)))


def kl(p: float, q: float) -> float:
    """KL of two actions with probabilities p and 1 − p from q and 1 − q."""
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def first_probability(agent: Agent) -> float:
    """π of action 0 in the only state."""
    return float(density(agent.policy, agent.theta, (np.ones((1, 1)),), np.array([0]))[0])


def check_the_scale_of_rewards_does_not_matter(cls: type[Agent], **settings) -> None:
    """Powers of two, so that every product is exact: the same θ to the last bit, the critic scaled."""
    for scale in (2.0**-20, 8.0):
        agent, scaled = (made(cls, CASES["dense"], 0, **settings) for _ in range(2))
        scaled.w = scale * scaled.w
        for part in batches(CASES["dense"], 0):
            before = agent.theta
            agent.update(part, np.random.default_rng(0))
            part.rewards = scale * part.rewards
            scaled.update(part, np.random.default_rng(0))
            assert not np.array_equal(agent.theta, before)
            assert np.array_equal(scaled.theta, agent.theta)
            assert np.array_equal(scaled.w, scale * agent.w)


def fisher_of(policy, theta, obs):
    """F in one state: the mean outer product of scores; for a Gaussian the closed form of chapter 3."""
    if isinstance(policy.distribution, Categorical):
        scores = [score(policy, theta, obs, a) for a in range(policy.distribution.n_actions)]
        pi = probabilities(policy, theta, obs)
        return sum(p * np.outer(psi, psi) for p, psi in zip(pi, scores, strict=True))
    m = policy.distribution.n_actions
    x_mu, x_sigma = vector(policy.features.mean, obs), vector(policy.features.scale, obs)
    d, e = len(x_mu), len(x_sigma)
    fisher = np.zeros((m * (d + e), m * (d + e)))
    for j in range(m):
        first, second = slice(j * d, (j + 1) * d), slice(m * d + j * e, m * d + (j + 1) * e)
        sigma = np.exp(theta[second] @ x_sigma)
        fisher[first, first] = np.outer(x_mu, x_mu) / sigma**2
        fisher[second, second] = 2 * np.outer(x_sigma, x_sigma)
    return fisher


def mean_fisher(policy, theta, rows):
    return sum(fisher_of(policy, theta, s.obs) for s in rows) / len(rows)


def step(u, fisher, delta, alpha):
    """The last line of the boxes; no step in no direction."""
    if delta is not None and u.any():
        return np.sqrt(2 * delta / (u @ fisher @ u)) * u
    return alpha * u


def equal(actual, expected, rtol=1e-9):
    """Relative to the largest element: linear systems here have condition numbers up to some 1e5."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


TABLE = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
"""Features that two states share with a third; the fourth is terminal."""


def in_quarters(gamma, shared=False):
    """A problem of at most three steps whose probabilities, like those of its policy, are multiples of 1/4."""
    P = np.zeros((4, 2, 4))
    P[0, 0, [1, 2]] = P[0, 1, [2, 3]] = P[1, 1, [2, 3]] = 0.5
    P[1, 0, 2] = P[2, :, 3] = P[3, :, 3] = 1
    rng = np.random.default_rng(5)
    R = rng.normal(size=(4, 2, 4)) * (np.arange(4) < 3)[:, None, None]
    mdp = TabularMDP(P, R, gamma, np.array([0.5, 0.5, 0, 0]))
    if shared:
        p = dense_policy(Problem(mdp, None, None, rng), TABLE)
        return p._replace(theta=np.log([1.0, 1.0, 3.0, 1 / 3]))
    policy = SoftmaxLinear(F.OneHot(4), 2)
    return Problem(mdp, policy, np.log([1.0, 1, 1, 1, 3, 1 / 3, 1, 1]), rng)


def every_episode(p):
    """Episodes as often as they occur: sums over these columns are exact means, times their number."""
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, 3)
    count = np.rint(1024 * probability).astype(int)
    np.testing.assert_allclose(count, 1024 * probability, rtol=1e-12)
    return traj[np.repeat(np.arange(len(count)), count)]


BUILT = {"table": in_quarters, "shared": lambda gamma: in_quarters(gamma, shared=True)}


def other_parameters(p, condition=10.0):
    return reparametrised(p, invertible(np.random.default_rng(1), p.policy.n_params, condition))


def updated(agent, traj):
    """What an update adds to θ, and its diagnostics."""
    before = agent.theta
    diagnostics = agent.update(traj, np.random.default_rng(0))
    return agent.theta - before, diagnostics


def maximiser(pi: np.ndarray, A: np.ndarray, beta: float) -> np.ndarray:
    """π' = βπ/(ν − Â) of one state, ν > max Â the number for which it sums to one."""
    best = A.argmax()
    edges = A[best] + beta * pi[best] / 2, A[best] + 2 * beta
    nu = brentq(lambda nu: (beta * pi / (nu - A)).sum() - 1, *edges, xtol=1e-15, rtol=1e-15)
    return beta * pi / (nu - A)


THREE_ACTIONS = Case(SoftmaxLinear(F.Constant(), 3), F.Constant(), spaces.Discrete(1))


COUNTS, VALUES = np.array([5, 3, 2]), (1.0, -0.5, 0.2)


def independent_features(p, d):
    """(S, d), far from linearly dependent on the S − 1 states that are not terminal, random in the terminal one."""
    q, _ = np.linalg.qr(p.rng.normal(size=(p.mdp.n_states - 1, d)))
    return np.vstack([q * p.rng.uniform(0.5, 2, size=d), p.rng.normal(size=d)])


@contextmanager
def turned(module: str, cg_tol: float | None = None, **search: float) -> Iterator[None]:
    """Other constants of a method: the tolerance of conjugate gradient; η, c and the largest j of the line search."""
    changed: dict[str, Any] = {} if cg_tol is None else {"CG_TOL": cg_tol}
    if search:
        changed["backtracking_line_search"] = partial(backtracking_line_search, **search)
    with mock.patch.multiple(f"npg.algorithms.{module}", **changed):
        yield
