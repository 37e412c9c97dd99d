"""REINFORCE and the equations of chapter 1: expectations are exact sums over all trajectories of a small MDP."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Layered, LayeredEnv, batch, objective, probability

import npg
from npg.algorithms import Reinforce
from npg.critics import ridge_least_squares
from npg.features import OneHot, Polynomial
from npg.gradcheck import numerical_gradient
from npg.rollout import Collector

seeds = st.integers(0, 2**32 - 1)
gammas = st.sampled_from([0.0, 0.5, 0.9, 1.0])


class Problem:
    """A random MDP with a policy, a θ, and the expectation of a REINFORCE step over all batches of M episodes."""

    def __init__(self, seed: int, gamma: float, horizon: int = 2) -> None:
        self.rng = np.random.default_rng(seed)
        self.gamma = gamma
        self.mdp = Layered(self.rng, horizon)
        self.policy = self.mdp.policy()
        self.theta = self.rng.normal(size=self.policy.n_params)
        self.paths = self.mdp.paths()
        self.p = np.array([probability(self.policy, self.theta, path) for path in self.paths])

    def gradient(self) -> np.ndarray:
        """∇J, from values of J alone."""
        return numerical_gradient(lambda th: objective(self.policy, th, self.paths, self.gamma), self.theta)[0]

    def agent(self, **settings) -> Reinforce:
        settings = {"baseline": "none", "optimizer": "ascent", "alpha": 1.0, "gamma": self.gamma} | settings
        agent = Reinforce(self.policy, OneHot(self.mdp.n_states), **settings)
        agent.init(self.rng)
        agent.theta = self.theta
        return agent

    def step(self, agent: Reinforce, paths, w=None) -> np.ndarray:
        """What one update adds to θ."""
        agent.theta = self.theta
        agent.w = np.zeros(self.mdp.n_states) if w is None else w
        agent.update(batch(self.policy, paths), self.rng)
        return agent.theta - self.theta

    def expected_step(self, agent: Reinforce, M: int = 1, w=None) -> np.ndarray:
        return sum(
            np.prod([self.p[i] for i in index]) * self.step(agent, [self.paths[i] for i in index], w)
            for index in product(range(len(self.paths)), repeat=M)
        )

    def pi(self) -> np.ndarray:
        eta = self.policy.eta(self.theta, np.arange(self.mdp.n_states)[:, None])
        return self.policy.distribution.probabilities(eta)

    def theorem(self, d: np.ndarray) -> np.ndarray:
        """Σ_s d(s) Σ_a ∇π(a|s) q(s, a), with q discounted by γ."""
        pi, q = self.pi(), self.mdp.q(self.pi(), self.gamma)
        return (d[:, None] * pi * (q - (pi * q).sum(axis=1, keepdims=True))).T.ravel()


def close(a, b) -> bool:
    # Finite differences of J are good to about 1e-10 (npg.gradcheck); sums over trajectories are better.
    return np.allclose(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.equation("1.2")
@given(seeds)
def test_trajectory_probabilities_sum_to_one(seed):
    assert np.isclose(Problem(seed, 1.0).p.sum(), 1, rtol=1e-12)


@pytest.mark.equation("1.2")
def test_collected_episodes_have_the_probabilities_of_the_product_formula():
    problem = Problem(1, 1.0, horizon=2)
    agent = problem.agent()
    traj = Collector(LayeredEnv(problem.mdp), 0).collect(agent, npg.Episodes(20_000), np.random.default_rng(0))
    starts = np.flatnonzero(traj.t[:, 0] == 0)
    ends = [*starts[1:], len(traj.t)]
    index = {(*p.states[:-1], *p.actions): i for i, p in enumerate(problem.paths)}
    counts = np.zeros(len(problem.paths))
    for i, j in zip(starts, ends, strict=True):
        counts[index[(*traj.obs[i:j, 0], *traj.actions[i:j, 0])]] += 1
    z = (counts - 20_000 * problem.p) / np.sqrt(20_000 * problem.p * (1 - problem.p))
    assert np.abs(z).max() < 6


@pytest.mark.equation("1.1", "1.3", "1.4", "1.5")
@given(seeds, gammas)
def test_total_return_update_has_the_gradient_of_the_objective_as_its_mean(seed, gamma):
    problem = Problem(seed, gamma)
    assert close(problem.expected_step(problem.agent(returns="total")), problem.gradient())


@pytest.mark.equation("1.6")
@given(seeds)
def test_score_has_zero_mean_along_trajectories(seed):
    problem = Problem(seed, 1.0)
    mean = np.zeros_like(problem.theta)
    for p, path in zip(problem.p, problem.paths, strict=True):
        x, a = problem.policy.features(np.array(path.states[:-1])), np.array(path.actions)
        mean += p * problem.policy.weighted_score(problem.theta, x, a, np.ones(len(a)))
    assert np.allclose(mean, 0, atol=1e-12)


@pytest.mark.equation("1.7", "1.16")
@given(seeds, gammas)
def test_reward_to_go_update_has_the_gradient_of_the_objective_as_its_mean(seed, gamma):
    problem = Problem(seed, gamma)
    assert close(problem.expected_step(problem.agent()), problem.gradient())


@pytest.mark.equation("1.9")
@given(seeds, gammas)
def test_policy_gradient_theorem(seed, gamma):
    problem = Problem(seed, gamma)
    assert close(problem.theorem(problem.mdp.visits(problem.pi(), gamma)), problem.gradient())


@pytest.mark.equation("1.10")
@given(seeds, gammas)
def test_without_the_outer_discount_states_are_weighed_by_undiscounted_visits(seed, gamma):
    problem = Problem(seed, gamma)
    step = problem.expected_step(problem.agent(outer_discount=False))
    assert close(step, problem.theorem(problem.mdp.visits(problem.pi(), 1.0)))
    assert close(step, problem.gradient()) == (gamma == 1)


@pytest.mark.equation("1.10")
@pytest.mark.parametrize(
    ("gamma", "outer_discount", "symmetric"), [(0.8, False, False), (0.8, True, True), (1.0, False, True)]
)
def test_only_with_the_outer_discount_is_the_field_a_gradient(gamma, outer_discount, symmetric):
    problem = Problem(3, gamma, horizon=2)
    agent = problem.agent(outer_discount=outer_discount)
    theta, h = problem.theta.copy(), 1e-4
    jacobian = np.empty((len(theta), len(theta)))
    for j in range(len(theta)):
        fields = []
        for sign in (1, -1):
            problem.theta = theta + sign * h * np.eye(len(theta))[j]
            problem.p = np.array([probability(problem.policy, problem.theta, path) for path in problem.paths])
            fields.append(problem.expected_step(agent))
        jacobian[:, j] = (fields[0] - fields[1]) / (2 * h)
    # Central differences are off by h² f‴/6, some 1e-8 here.
    assert (np.abs(jacobian - jacobian.T).max() < 1e-6) == symmetric


@pytest.mark.equation("1.11")
@given(seeds, gammas, st.sampled_from(["to_go", "total"]))
def test_a_value_fitted_to_earlier_batches_does_not_change_the_mean(seed, gamma, returns):
    problem = Problem(seed, gamma)
    w = 10 * problem.rng.normal(size=problem.mdp.n_states)
    agent = problem.agent(baseline="linear", fit="earlier", returns=returns)
    assert close(problem.expected_step(agent, w=w), problem.gradient())


@pytest.mark.equation("1.12", "1.13")
@pytest.mark.parametrize("M", [2, 3])
@pytest.mark.parametrize("returns", ["to_go", "total"])
def test_leaving_the_own_episode_out_is_unbiased_and_the_batch_mean_is_not(M, returns):
    problem = Problem(5, 0.9, horizon=2 if M == 2 else 1)
    agent = problem.agent(baseline="leave_one_out", returns=returns, episodes=M)
    assert close(problem.expected_step(agent, M), problem.gradient())
    plain = np.zeros_like(problem.theta)
    total = problem.agent(returns="total")
    steps = [problem.step(total, [path]) for path in problem.paths]  # Ψ G_0 of each trajectory
    G = np.array([sum(0.9**t * r for t, r in enumerate(path.rewards)) for path in problem.paths])
    for index in map(list, product(range(len(problem.paths)), repeat=M)):
        weight = np.prod(problem.p[index]) / M
        plain += weight * sum(steps[i] * (1 - G[index].mean() / G[i]) for i in index)
    assert close(plain, (1 - 1 / M) * problem.gradient())


@pytest.mark.equation("1.14")
@given(seeds, st.sampled_from([1e-3, 1.0, 100.0]))
def test_ridge_fit_makes_the_gradient_of_its_objective_vanish(seed, ridge):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=20)
    w = ridge_least_squares(x, y, ridge)
    gradient = 2 * x.T @ (x @ w - y) + 2 * ridge * w
    assert np.abs(gradient).max() < 1e-12 * (np.abs(x.T @ y).max() + ridge)


@pytest.mark.equation("1.14")
def test_least_squares_without_ridge_takes_the_shortest_of_all_solutions():
    x, y = np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([2.0, 4.0])
    assert np.allclose(ridge_least_squares(x, y, 0), [1, 1])
    assert np.allclose(ridge_least_squares(x, y, 1e-10), [1, 1])


@pytest.mark.equation("1.15")
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_fitting_to_the_same_batch_has_the_bias_of_the_hat_matrix(ridge):
    problem, M = Problem(7, 0.9, horizon=2), 2
    agent = problem.agent(baseline="linear", fit="same", ridge=ridge)
    bias = np.zeros_like(problem.theta)
    for index in product(range(len(problem.paths)), repeat=M):
        traj = batch(problem.policy, [problem.paths[i] for i in index])
        G = npg.returns.discounted_returns(traj.rewards, traj.terminated, traj.truncated, 0.9)[traj.valid]
        X = np.eye(problem.mdp.n_states)[traj.obs[traj.valid]]
        H = X @ np.linalg.pinv(X.T @ X + ridge * np.eye(X.shape[1])) @ X.T
        weights = 0.9 ** traj.t[traj.valid] * (H @ G) / M
        score = problem.policy.weighted_score(problem.theta, traj.x[traj.valid], traj.actions[traj.valid], weights)
        bias -= np.prod([problem.p[i] for i in index]) * score
    assert np.abs(bias).max() > 1e-3
    assert close(problem.expected_step(agent, M) - problem.gradient(), bias)


@pytest.mark.equation("1.12", "1.15")
def test_in_one_state_a_fit_to_the_same_batch_is_the_batch_mean():
    rng = np.random.default_rng(0)
    problem = Problem(0, 1.0, horizon=1)
    problem.mdp = Layered(rng, horizon=1, width=1, n_actions=3)
    problem.policy = problem.mdp.policy()
    problem.theta = rng.normal(size=3)
    problem.paths = problem.mdp.paths()
    problem.p = np.array([probability(problem.policy, problem.theta, path) for path in problem.paths])
    for M in (2, 3):
        agent = problem.agent(baseline="linear", fit="same", ridge=0.0, episodes=M)
        assert close(problem.expected_step(agent, M), (1 - 1 / M) * problem.gradient())


def recorded_batch(agent: Reinforce, limit: int, episodes: int = 8, columns: int = 4) -> npg.Trajectories:
    """CartPole episodes of which some fall and some reach the limit."""
    env = npg.make_vec("CartPole-v1", columns, max_episode_steps=limit)
    return Collector(env, 0).collect(agent, npg.Episodes(episodes), np.random.default_rng(0))


def cartpole_agent(**settings) -> Reinforce:
    settings = {"outer_discount": True, "normalize": False, "optimizer": "ascent", "alpha": 0.1} | settings
    agent = npg.make_agent("reinforce", npg.make_vec("CartPole-v1", 4), **settings)
    agent.init(np.random.default_rng(0))
    return agent


def episodes_of(traj: npg.Trajectories) -> list[list[tuple[int, int]]]:
    """Rows of each episode, column by column."""
    found = []
    for n in range(traj.t.shape[1]):
        for t in range(len(traj.t)):
            if traj.valid[t, n]:
                if traj.t[t, n] == 0:
                    found.append([])
                found[-1].append((t, n))
    return found


@pytest.mark.equation("1.8", "1.14", "1.16")
def test_update_is_the_box_line_by_line_on_a_batch_with_terminations_and_time_limits():
    agent = cartpole_agent(gamma=0.9, ridge=2.0)
    rng = np.random.default_rng(1)
    agent.theta, agent.w = rng.normal(size=agent.theta.shape), rng.normal(size=agent.w.shape)
    traj = recorded_batch(agent, limit=20)
    assert traj.terminated.any()
    assert traj.truncated.any()
    features, value = agent.policy.features, agent.baseline_features
    theta, w, step = agent.theta.copy(), agent.w.copy(), np.zeros_like(agent.theta)
    rows, targets = [], []
    for episode in episodes_of(traj):
        last = episode[-1]
        G = 0.0 if traj.terminated[last] else w @ value(traj.next_obs[last][None])[0]
        for t, at in reversed(list(enumerate(episode))):
            G = traj.rewards[at] + 0.9 * G
            x, phi = features(traj.obs[at][None])[0], value(traj.obs[at][None])[0]
            delta = G - w @ phi
            logits = theta.reshape(2, -1) @ x
            p = np.exp(logits) / np.exp(logits).sum()
            log_gradient = np.array([float(traj.actions[at] == b) - p[b] for b in range(2)])
            step += 0.9**t * delta * np.outer(log_gradient, x).ravel() / 8
            rows.append(phi)
            targets.append(G)
    X = np.array(rows)
    agent.update(traj, rng)
    assert np.allclose(agent.theta, theta + 0.1 * step, rtol=1e-12, atol=1e-12)
    fitted = np.linalg.solve(X.T @ X + 2 * np.eye(X.shape[1]), X.T @ np.array(targets))
    assert np.allclose(agent.w, fitted, rtol=1e-9, atol=1e-10)  # normal equations: condition number × ε


def test_without_a_value_a_time_limit_ends_the_return():
    agent = cartpole_agent(baseline="none", gamma=0.9)
    traj = recorded_batch(agent, limit=5)
    as_terminated = traj[slice(None)]
    as_terminated.terminated = traj.terminated | traj.truncated
    before = agent.theta
    agent.update(traj, np.random.default_rng(0))
    first, agent.theta = agent.theta, before
    agent.update(as_terminated, np.random.default_rng(0))
    assert np.array_equal(first, agent.theta)


def test_with_a_value_a_time_limit_is_not_the_end():
    agent = cartpole_agent(gamma=0.9)
    agent.w = np.ones_like(agent.w)
    traj = recorded_batch(agent, limit=5)
    as_terminated = traj[slice(None)]
    as_terminated.terminated = traj.terminated | traj.truncated
    before, w = agent.theta, agent.w
    agent.update(traj, np.random.default_rng(0))
    first, agent.theta, agent.w = agent.theta, before, w
    agent.update(as_terminated, np.random.default_rng(0))
    assert not np.allclose(first, agent.theta)


@pytest.mark.parametrize("settings", [{}, {"baseline": "leave_one_out"}, {"returns": "total"}, {"normalize": True}])
def test_update_does_not_depend_on_how_episodes_share_columns(settings):
    agent = cartpole_agent(gamma=0.95, **settings)
    traj = recorded_batch(agent, limit=30)
    assert not traj.valid.all()
    episodes = episodes_of(traj)
    T = max(map(len, episodes))
    fields = {}
    for name in traj.__slots__:
        source = getattr(traj, name)
        fields[name] = np.zeros((T, len(episodes), *source.shape[2:]), dtype=source.dtype)
        for n, episode in enumerate(reversed(episodes)):
            for t, at in enumerate(episode):
                fields[name][t, n] = source[at]
    before, w = agent.theta, agent.w
    agent.update(traj, np.random.default_rng(0))
    first, first_w, agent.theta, agent.w = agent.theta, agent.w, before, w
    agent.update(npg.Trajectories(**fields), np.random.default_rng(0))
    assert np.allclose(first, agent.theta, rtol=1e-10, atol=1e-12)
    assert np.allclose(first_w, agent.w, rtol=1e-8)


@given(st.floats(0.1, 10))
def test_normalised_steps_do_not_depend_on_the_scale_of_rewards(scale):
    agent = cartpole_agent(normalize=True, baseline="leave_one_out")
    traj = recorded_batch(agent, limit=30)
    before = agent.theta
    agent.update(traj, np.random.default_rng(0))
    first, agent.theta = agent.theta, before
    traj.rewards = scale * traj.rewards
    agent.update(traj, np.random.default_rng(0))
    assert np.allclose(first, agent.theta, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reward", [0.0, 0.1])
def test_advantages_that_differ_by_rounding_alone_are_not_normalised(reward):
    steps = []
    for normalize in (True, False):
        agent = cartpole_agent(normalize=normalize, baseline="none", gamma=0.0)
        traj = recorded_batch(agent, limit=30)
        traj.rewards[:] = reward
        agent.update(traj, np.random.default_rng(0))
        steps.append(agent.theta)
    assert np.array_equal(*steps)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 1.01), ("gamma", -0.1), ("gamma", float("nan")), ("gamma", "0.9"), ("episodes", 0), ("episodes", 2.5),
        ("returns", "togo"), ("outer_discount", 1), ("baseline", "mean"), ("fit", "now"), ("ridge", -1),
        ("normalize", "yes"), ("optimizer", "sgd"), ("alpha", float("inf")), ("alpha", -1),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        cartpole_agent(**{name: value})


def test_leave_one_out_needs_two_episodes():
    with pytest.raises(ValueError, match="episodes must be at least 2"):
        cartpole_agent(baseline="leave_one_out", episodes=1)


def test_polynomial_baseline_is_the_default_for_boxes_and_tabular_for_discrete():
    assert isinstance(cartpole_agent().baseline_features, Polynomial)
    assert isinstance(npg.make_agent("reinforce", npg.make_env("FrozenLake-v1")).baseline_features, OneHot)
