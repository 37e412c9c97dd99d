"""REINFORCE and the equations of chapter 1: expectations are exact sums over all trajectories of a small MDP."""

from collections import Counter
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, problems, seeds

import npg
from npg.algorithms import Reinforce
from npg.envs.tabular import TabularEnv
from npg.estimators import scores
from npg.exact import TabularMDP, enumerate_trajectories
from npg.features import Constant, OneHot
from npg.gradcheck import numerical_gradient
from npg.lab.collect import Collector
from npg.returns import discounted_returns
from npg.values import ridge_least_squares

gammas = st.sampled_from([0.0, 0.5, 0.9, 1.0])
forms = st.sampled_from(["to_go", "total"])
many = examples(200)


def layered(rng: np.random.Generator, gamma: float, horizon: int, width: int, n_actions: int) -> TabularMDP:
    """``horizon`` layers of ``width`` states; each step goes to the next layer or to the end, and pays R[s, a, s']."""
    end = horizon * width
    P, R = np.zeros((2, end + 1, n_actions, end + 1))
    for s in range(end):
        first = (s // width + 1) * width
        successors = [*range(first, min(first + width, end)), end]
        P[s][:, successors] = rng.dirichlet(np.ones(len(successors)), size=n_actions)
    P[end, :, end] = 1
    R[:end] = rng.normal(size=R[:end].shape)
    return TabularMDP(P, R, gamma, np.append(rng.dirichlet(np.ones(width)), np.zeros(end + 1 - width)))


class Problem:
    """A random MDP with a policy, a θ, and the expectation of a REINFORCE step over all batches of M episodes."""

    def __init__(self, seed: int, gamma: float, horizon: int = 2, width: int = 2, n_actions: int = 2) -> None:
        self.rng = np.random.default_rng(seed)
        self.mdp = layered(self.rng, gamma, horizon, width, n_actions)
        self.policy = npg.SoftmaxLinear(OneHot(self.mdp.n_states), n_actions)
        self.theta = self.rng.normal(size=self.policy.n_params)
        self.traj, self.p = enumerate_trajectories(self.mdp, self.policy, self.theta, horizon)

    def gradient(self) -> np.ndarray:
        """∇J, from values of J alone."""
        return numerical_gradient(lambda theta: self.mdp.J(self.policy, theta), self.theta, "complex")[0]

    def agent(self, features=None, **settings) -> Reinforce:
        settings = {"baseline": "none", "optimizer": "ascent", "alpha": 1.0, "gamma": self.mdp.gamma} | settings
        agent = Reinforce(self.policy, features or OneHot(self.mdp.n_states), **settings)
        agent.init(self.rng)
        return agent

    def step(self, agent: Reinforce, batch, w=None) -> np.ndarray:
        """What one update on a batch, the indices of its trajectories, adds to θ."""
        agent.theta = self.theta
        agent.w = np.zeros(agent.v.n_params) if w is None else w
        agent.update(self.traj[list(batch)], self.rng)
        return agent.theta - self.theta

    def batches(self, M: int) -> list[tuple[int, ...]]:
        return list(product(range(len(self.p)), repeat=M))

    def unordered(self, M: int) -> list[tuple[np.ndarray, float]]:
        """One batch, in any order, for all that hold the same trajectories, and the probability of these."""
        counts = Counter(tuple(sorted(batch)) for batch in self.batches(M))
        return [(self.rng.permutation(batch), orders * self.p[list(batch)].prod()) for batch, orders in counts.items()]

    def expected_step(self, agent: Reinforce, M: int = 1, w=None) -> np.ndarray:
        """Over ``unordered`` batches, which will do if the order makes no difference to a step."""
        if M > 1:
            some = self.rng.integers(len(self.p), size=M)
            step, other = (self.step(agent, batch, w) for batch in (some, some[::-1]))
            np.testing.assert_allclose(step, other, rtol=0, atol=1e-12 * max(1, np.abs(step).max()))
        return sum(probability * self.step(agent, batch, w) for batch, probability in self.unordered(M))


def field(mdp: TabularMDP, policy: npg.Policy, theta: np.ndarray, outer: float) -> np.ndarray:
    """Σ_s d(s) Σ_a ∇π(a|s) q(s, a), visits d discounted by ``outer``, action values as ever by γ."""
    d = mdp.visitation(policy, theta, gamma=outer)
    return policy.all_actions_gradient(theta, mdp.features(policy), mdp.action_value(policy, theta), d)


def close(a, b) -> bool:
    return np.abs(a - b).max() <= 1e-10 * np.abs(b).max()


def walks(traj: npg.Trajectories) -> list[tuple[int, ...]]:
    """States and actions of each episode, one after another."""
    return [
        tuple(int(part[at]) for at in episode for part in (traj.obs, traj.actions)) for episode in episodes_of(traj)
    ]


def episodes_of(traj: npg.Trajectories) -> list[list[tuple[int, int]]]:
    """Rows of each episode, column by column."""
    found = []
    for n, t in np.argwhere(traj.valid.T):
        if traj.t[t, n] == 0:
            found.append([])
        found[-1].append((t, n))
    return found


@pytest.mark.equation("1.2")
@many
@given(seeds)
def test_trajectory_probabilities_sum_to_one(seed):
    problem = Problem(seed, 1.0, horizon=3)
    traj, pi = problem.traj, problem.mdp.policy_matrix(problem.policy, problem.theta)
    steps = np.where(traj.valid, pi[traj.obs, traj.actions] * problem.mdp.P[traj.obs, traj.actions, traj.next_obs], 1)
    assert np.isclose(problem.p.sum(), 1, rtol=1e-12)
    assert np.allclose(problem.p, problem.mdp.rho0[traj.obs[0]] * steps.prod(axis=0), rtol=1e-12)
    assert len(set(walks(traj))) == len(problem.p)


@pytest.mark.equation("1.2")
def test_collected_episodes_have_the_probabilities_of_the_product_formula():
    problem, M = Problem(1, 1.0), 20_000
    agent = problem.agent()
    agent.theta = problem.theta
    traj = Collector(TabularEnv(problem.mdp), 0).collect(agent, npg.Episodes(M), np.random.default_rng(0))
    index = {walk: i for i, walk in enumerate(walks(problem.traj))}
    counts = np.bincount([index[walk] for walk in walks(traj)], minlength=len(index))
    z = (counts - M * problem.p) / np.sqrt(M * problem.p * (1 - problem.p))
    assert np.abs(z).max() < 6


@pytest.mark.equation("1.3", "1.4", defining=True)
@pytest.mark.equation("1.1", "1.5")
@many
@given(seeds, gammas)
def test_total_return_update_has_the_gradient_of_the_objective_as_its_mean(seed, gamma):
    problem = Problem(seed, gamma)
    assert close(problem.expected_step(problem.agent(returns="total")), problem.gradient())


@pytest.mark.equation("1.6")
@many
@given(seeds)
def test_score_has_zero_mean_along_trajectories(seed):
    problem = Problem(seed, 1.0)
    psi = scores(problem.policy, problem.theta, problem.traj)
    assert np.allclose(problem.p @ psi.sum(axis=0), 0, atol=1e-12)


@pytest.mark.equation("1.7", "1.16")
@many
@given(seeds, gammas)
def test_reward_to_go_update_has_the_gradient_of_the_objective_as_its_mean(seed, gamma):
    problem = Problem(seed, gamma)
    assert close(problem.expected_step(problem.agent()), problem.gradient())


@pytest.mark.equation("1.9")
@many
@given(problems())
def test_policy_gradient_theorem(problem):
    mdp, policy, theta, _ = problem
    numerical, _ = numerical_gradient(lambda theta: mdp.J(policy, theta), theta, "complex")
    assert close(field(mdp, policy, theta, mdp.gamma), numerical)


@pytest.mark.equation("1.10", defining=True)
@many
@given(seeds, gammas)
def test_without_the_outer_discount_states_are_weighed_by_undiscounted_visits(seed, gamma):
    problem = Problem(seed, gamma)
    step = problem.expected_step(problem.agent(outer_discount=False))
    assert close(step, field(problem.mdp, problem.policy, problem.theta, 1.0))
    assert close(step, problem.gradient()) == (gamma == 1)


@pytest.mark.equation("1.10")
@many
@given(seeds, gammas, st.booleans())
def test_only_with_the_outer_discount_is_the_field_a_gradient(seed, gamma, outer_discount):
    problem = Problem(seed, gamma)
    directions = 1e-30j * np.eye(len(problem.theta))  # complex steps: the Jacobian is exact to rounding
    outer = gamma if outer_discount else 1.0
    jacobian = np.array([field(problem.mdp, problem.policy, problem.theta + ih, outer).imag for ih in directions])
    assert close(jacobian, jacobian.T) == (outer == gamma)


@pytest.mark.equation("1.11")
@many
@given(seeds, gammas, forms, st.sampled_from([None, 0.5]))
def test_a_value_fitted_to_earlier_batches_does_not_change_the_mean(seed, gamma, returns, alpha_w):
    problem = Problem(seed, gamma)
    w = 10 * problem.rng.normal(size=problem.mdp.n_states)
    agent = problem.agent(baseline="linear", fit="earlier", returns=returns, alpha_w=alpha_w)
    assert close(problem.expected_step(agent, w=w), problem.gradient())


# (M, horizon, width): pairs of six trajectories, or triples of four.
sizes = st.sampled_from([(2, 2, 1), (3, 1, 2)])


@pytest.mark.equation("1.12", "1.13")
@many
@given(seeds, gammas, sizes, forms)
def test_leaving_the_own_episode_out_is_unbiased_and_the_batch_mean_is_not(seed, gamma, size, returns):
    M, *shape = size
    problem = Problem(seed, gamma, *shape)
    agent = problem.agent(baseline="leave_one_out", returns=returns, episodes=M)
    assert close(problem.expected_step(agent, M), problem.gradient())
    traj, batches = problem.traj, np.array(problem.batches(M))
    G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, gamma)[0, batches]
    psi = scores(problem.policy, problem.theta, traj).sum(axis=0)[batches]
    plain = np.einsum("km,kmn->kn", G - G.mean(axis=1, keepdims=True), psi) / M
    assert close(problem.p[batches].prod(axis=1) @ plain, (1 - 1 / M) * problem.gradient())
    if returns == "total":
        assert np.allclose(problem.step(agent, batches[1]), M / (M - 1) * plain[1], rtol=1e-10, atol=1e-14)


@pytest.mark.equation("5.10")
@many
@given(seeds, gammas, sizes, forms)
def test_the_optimal_constant_estimated_from_the_other_episodes_does_not_change_the_mean(seed, gamma, size, returns):
    M, *shape = size
    problem = Problem(seed, gamma, *shape)
    agent = problem.agent(baseline="optimal", returns=returns, episodes=M)
    assert close(problem.expected_step(agent, M), problem.gradient())


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


@pytest.mark.equation("1.15", defining=True)
@many
@given(seeds, gammas, st.sampled_from([0.0, 0.5]))
def test_fitting_to_the_same_batch_has_the_bias_of_the_hat_matrix(seed, gamma, ridge):
    problem, M = Problem(seed, gamma, width=1), 2
    step = problem.expected_step(problem.agent(baseline="linear", fit="same", ridge=ridge), M)
    bias = np.zeros_like(problem.theta)
    for batch, probability in problem.unordered(M):
        traj = problem.traj[batch]
        G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, gamma)[traj.valid]
        X = np.eye(problem.mdp.n_states)[traj.obs[traj.valid]]
        H = X @ np.linalg.pinv(X.T @ X + ridge * np.eye(X.shape[1])) @ X.T
        weights = probability * gamma ** traj.t[traj.valid] * (H @ G) / M
        bias -= problem.policy.weighted_score(problem.theta, traj.x[traj.valid], traj.actions[traj.valid], weights)
    assert close(step, problem.gradient() + bias)
    assert not close(step, problem.gradient())


@pytest.mark.equation("1.12", "1.15")
@pytest.mark.parametrize("M", [2, 3])
def test_in_one_state_a_fit_to_the_same_batch_is_the_batch_mean(M):
    problem = Problem(0, 1.0, horizon=1, width=1, n_actions=3)
    agent = problem.agent(baseline="linear", fit="same", ridge=0.0, episodes=M)
    assert close(problem.expected_step(agent, M), (1 - 1 / M) * problem.gradient())


@pytest.mark.equation("1.11")
@many
@given(seeds, st.sampled_from(["earlier", "same"]))
def test_the_books_incremental_fit_is_biased_where_states_share_features_unless_w_is_from_earlier(seed, fit):
    problem = Problem(seed, 0.9)
    agent = problem.agent(Constant(), baseline="linear", fit=fit, alpha_w=0.5)
    assert close(problem.expected_step(agent), problem.gradient()) == (fit == "earlier")


def recorded_batch(agent: Reinforce, limit: int, episodes: int = 8, columns: int = 4) -> npg.Trajectories:
    """CartPole episodes of which some fall and some reach the limit."""
    env = npg.make_vec("CartPole-v1", columns, max_episode_steps=limit)
    return Collector(env, 0).collect(agent, npg.Episodes(episodes), np.random.default_rng(0))


def cartpole_agent(**settings) -> Reinforce:
    settings = {"outer_discount": True, "normalize": None, "optimizer": "ascent", "alpha": 0.1} | settings
    agent = npg.make_agent("reinforce", npg.make_vec("CartPole-v1", 4), **settings)
    agent.init(np.random.default_rng(0))
    return agent


class Step(NamedTuple):
    """One step of an episode: its time, return, ∇ log π(A_t|S_t), and x(S_t) of the value."""

    t: int
    G: float
    psi: np.ndarray
    phi: np.ndarray


def written_out(agent: Reinforce, traj: npg.Trajectories) -> list[list[Step]]:
    """What the boxes say of each episode before they change θ and w, line by line."""
    features, value = agent.policy.features, agent.baseline_features
    W, found = agent.theta.reshape(2, -1), []
    for episode in episodes_of(traj):
        last, steps = episode[-1], []
        goes_on = traj.truncated[last] and not traj.terminated[last] and agent.baseline == "linear"
        G = agent.w @ value(traj.next_obs[last][None])[0] if goes_on else 0.0
        for t, at in reversed(list(enumerate(episode))):
            G = traj.rewards[at] + agent.gamma * G
            x = features(traj.obs[at][None])[0]
            p = np.exp(W @ x) / np.exp(W @ x).sum()
            psi = np.outer(np.eye(2)[traj.actions[at]] - p, x).ravel()
            steps.insert(0, Step(t, G, psi, value(traj.obs[at][None])[0]))
        found.append(steps)
    return found


def perturbed(agent: Reinforce) -> Reinforce:
    rng = np.random.default_rng(1)
    agent.theta, agent.w = rng.normal(size=agent.theta.shape), rng.normal(size=agent.w.shape)
    return agent


@pytest.mark.equation("1.8", "1.14", "1.16")
def test_update_is_the_box_line_by_line_on_a_batch_with_terminations_and_time_limits():
    agent = perturbed(cartpole_agent(gamma=0.9, ridge=2.0))
    theta, w, traj = agent.theta, agent.w, recorded_batch(agent, limit=20)
    assert traj.terminated.any()
    assert traj.truncated.any()
    steps = [step for episode in written_out(agent, traj) for step in episode]
    agent.update(traj, np.random.default_rng(0))
    direction = sum(0.9**s.t * (s.G - w @ s.phi) * s.psi for s in steps) / 8
    assert np.allclose(agent.theta, theta + 0.1 * direction, rtol=1e-12, atol=1e-12)
    X, G = np.array([s.phi for s in steps]), np.array([s.G for s in steps])
    fitted = np.linalg.solve(X.T @ X + 2 * np.eye(X.shape[1]), X.T @ G)
    assert np.allclose(agent.w, fitted, rtol=1e-9, atol=1e-10)  # normal equations: condition number × ε


@pytest.mark.parametrize("limit", [3, 500])
@pytest.mark.parametrize("fit", ["same", "earlier"])
def test_incremental_fit_is_the_box_of_the_book_line_by_line(fit, limit):
    agent = perturbed(cartpole_agent(gamma=0.9, episodes=1, alpha_w=0.01, fit=fit))
    theta, earlier, traj = agent.theta, agent.w, recorded_batch(agent, limit, episodes=1, columns=1)
    assert traj.terminated.any() == (limit == 500)
    (episode,) = written_out(agent, traj)
    diagnostics = agent.update(traj, np.random.default_rng(0))
    w, deltas, direction = earlier, [], 0.0
    for t, G, psi, phi in episode:
        delta = G - w @ phi
        w = w + 0.01 * delta * phi
        deltas.append(delta if fit == "same" else G - earlier @ phi)
        direction += 0.9**t * deltas[-1] * psi
    assert np.allclose(agent.w, w, rtol=1e-12, atol=1e-12)
    assert np.allclose(agent.theta, theta + 0.1 * direction, rtol=1e-12, atol=1e-12)
    assert np.isclose(diagnostics["advantage_std"], np.std(deltas), rtol=1e-12)


@pytest.mark.equation("5.10", defining=True)
@pytest.mark.parametrize("settings", [{}, {"outer_discount": False}, {"returns": "total"}], ids=str)
def test_update_with_the_optimal_constant_is_its_formula_written_out(settings):
    agent = perturbed(cartpole_agent(gamma=0.9, baseline="optimal", **settings))
    theta, traj = agent.theta, recorded_batch(agent, limit=20)
    assert not traj.valid.all()
    X, Psi = [], []
    for episode in written_out(agent, traj):
        discount = [1.0 if settings else 0.9**s.t for s in episode]
        returns = [episode[0].G if "returns" in settings else s.G for s in episode]
        X.append(sum(c * G * s.psi for c, G, s in zip(discount, returns, episode, strict=True)))
        Psi.append(sum(c * s.psi for c, s in zip(discount, episode, strict=True)))
    agent.update(traj, np.random.default_rng(0))
    direction = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        b = sum(X[j] @ Psi[j] for j in others) / sum(Psi[j] @ Psi[j] for j in others)
        direction += (X[i] - b * Psi[i]) / 8
    assert np.allclose(agent.theta, theta + 0.1 * direction, rtol=1e-12, atol=1e-12)


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


@given(st.floats(0.1, 10))
def test_normalised_steps_do_not_depend_on_the_scale_of_rewards(scale):
    agent = cartpole_agent(normalize="scale", baseline="leave_one_out")
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
    for normalize in (None, "scale"):
        agent = cartpole_agent(normalize=normalize, baseline="none", gamma=0.0)
        traj = recorded_batch(agent, limit=30)
        traj.rewards[:] = reward
        agent.update(traj, np.random.default_rng(0))
        steps.append(agent.theta)
    assert np.array_equal(*steps)


@pytest.mark.parametrize("baseline", ["leave_one_out", "optimal"])
def test_a_baseline_from_the_other_episodes_needs_two(baseline):
    with pytest.raises(ValueError, match=f"^episodes must be at least 2 with baseline='{baseline}', got 1$"):
        cartpole_agent(baseline=baseline, episodes=1)
