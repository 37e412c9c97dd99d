"""Gradient estimators, chapters 5 and 6: every mean and covariance is an exact sum over all trajectories."""

from functools import partial
from itertools import combinations_with_replacement
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import eigvalsh, norm
from strategies import examples, generators, problems

from npg import SoftmaxLinear
from npg import estimators as est
from npg.algorithms import Reinforce
from npg.baselines import leave_one_out_mean, optimal_baseline
from npg.exact import TabularMDP, enumerate_trajectories
from npg.features import Constant, OneHot
from npg.gradcheck import check_gradient
from npg.problems import garnet, two_state
from npg.returns import discounted_returns
from npg.values import ridge_least_squares

theorem = examples(200)


class Case:
    """A problem, every trajectory of at most H steps with its probability, and the exact gradient of J_H."""

    def __init__(self, mdp, policy, theta, horizon, rng=None):
        self.mdp, self.policy, self.theta, self.H, self.rng = mdp, policy, theta, horizon, rng
        self.gamma, self.live = mdp.gamma, ~mdp.terminal
        self.traj, self.p = enumerate_trajectories(mdp, policy, theta, horizon)
        self.valid = self.traj.valid
        self.psi = est.scores(policy, theta, self.traj)
        self.data, self.model = (self.psi, self.traj, self.gamma), (policy, theta, self.traj, self.gamma)
        self.gradient = mdp.gradient(policy, theta, horizon)
        self.steps = np.arange(horizon)
        self.discount = self.gamma ** self.steps[:, None]
        powers = np.triu(self.gamma ** np.maximum(self.steps - self.steps[:, None], 0))
        self.G = powers @ self.traj.rewards  # Σ_{k≥t} γ^{k−t} R_{k+1}

    def draw(self, *shape):
        """(H, …) numbers, one row for each time."""
        return self.rng.normal(size=(self.H, *shape))

    def along(self, f):
        """f (H, S, …) at the states of the trajectories: (H, N, …)."""
        return f[self.steps[:, None], self.traj.obs]

    def taken(self, f):
        """f (H, S, A) at their states and actions: (H, N)."""
        return f[self.steps[:, None], self.traj.obs, self.traj.actions]

    def pi(self, theta=None):
        return self.mdp.policy_matrix(self.policy, self.theta if theta is None else theta)

    def q(self, theta=None):
        """Action values of the H − t steps to go: (H, S, A)."""
        theta = self.theta if theta is None else theta
        return np.array([self.mdp.action_value(self.policy, theta, self.H - t) for t in self.steps])

    def marginals(self, theta=None):
        """Pr(S_t = s) of running episodes: (H, S)."""
        theta = self.theta if theta is None else theta
        return self.mdp.state_marginals(self.policy, theta, horizon=self.H)[:-1] * self.live

    def d_pi(self, theta=None):
        """∇π(a|s) = π(a|s) ∇log π(a|s): (S, A, n)."""
        theta, pi = (self.theta if theta is None else theta), self.pi(theta)
        s, a = (index.ravel() for index in np.indices(pi.shape))
        return pi[..., None] * self.policy.score(theta, self.policy.features(s), a).reshape(*pi.shape, -1)

    def all_actions_mean(self, f, theta=None):
        """Σ_t γ^t Σ_s Σ_a ∇π(a|s) f_t(s, a), with the marginals in f (H, S, A) and the gradient at θ: (n,)."""
        return np.einsum("t,tsa,san->n", self.discount[:, 0], f, self.d_pi(theta))

    def cov(self, X):
        Y = X - self.p @ X
        return (self.p * Y.T) @ Y

    def trace(self, X):
        return np.trace(self.cov(X))

    def unbiased(self, X, gradient=None):
        gradient = self.gradient if gradient is None else gradient
        return agree(self.p @ X, gradient)

    def batches(self, M):
        """Every batch of M independent trajectories, in one order that stands for all: (K, M), and probabilities."""
        index = np.array(list(combinations_with_replacement(range(len(self.p)), M)))
        run, ties = np.ones((2, len(index)))  # what is equal stands together: the factorials of the numbers of each
        for j in range(1, M):
            run = np.where(index[:, j] == index[:, j - 1], run + 1, 1)
            ties = ties * run
        return index, factorial(M) / ties * self.p[index].prod(axis=1)

    def mean_over_batches(self, M, of_batches):
        """Of what ``of_batches`` makes of all batches (K, M), K rows."""
        index, probability = self.batches(M)
        return probability @ of_batches(index)


def each(estimate):
    """Estimates of all batches from that of one."""
    return lambda batches: np.array([estimate(index) for index in batches])


def agree(a, b, scale=None):
    """Whether a = b to 1e-10 of b's size; the rounding of sums over at most some thousand terms is 1e-13 or less."""
    return norm(np.ravel(a - b)) <= 1e-10 * (norm(np.ravel(b)) if scale is None else scale)


def positive_semidefinite(C, scale):
    return eigvalsh(C).min() >= -1e-12 * scale


def n_trajectories(mdp, horizon):
    branches = np.where(mdp.terminal[:, None], np.eye(mdp.n_states), (mdp.P > 0).sum(axis=1))
    return (mdp.rho0 > 0) @ np.linalg.matrix_power(branches, horizon).sum(axis=1)


def with_horizon(draw, mdp, policy, theta, rng, limit):
    """A ``Case`` of two to four steps, fewer where these have more than ``limit`` trajectories.

    Other than in a Garnet, the end of an episode is up to the actions, and rewards may depend on the next state.
    """
    P, R, live = mdp.P, mdp.R, ~mdp.terminal[:, None, None]
    if mdp.terminal.any():
        stop = rng.uniform(size=(*R.shape, 1)) * live
        P = (1 - stop) * P + stop * np.eye(mdp.n_states)[-1]
    if draw(st.booleans()):
        R = R[:, :, None] + rng.normal(size=P.shape) * live
    mdp = TabularMDP(P, R, mdp.gamma, mdp.rho0)
    horizon = draw(st.integers(2, 4))
    while horizon > 1 and n_trajectories(mdp, horizon) > limit:
        horizon -= 1
    return Case(mdp, policy, theta, horizon, rng)


@st.composite
def cases(draw):
    """Problems of 2 or 3 states and 2 or 3 actions with at most 1000 trajectories."""
    return with_horizon(draw, *draw(problems(most=3)), limit=1000)


@st.composite
def tiny_cases(draw, limit=16):
    """Problems of 2 states, begun in the first, with so few trajectories that batches of them can be enumerated."""
    mdp, policy, theta, rng = draw(problems(most=2))
    mdp = TabularMDP(mdp.P, mdp.R, mdp.gamma, np.eye(mdp.n_states)[0])
    return with_horizon(draw, mdp, policy, theta, rng, limit)


@st.composite
def batched_cases(draw):
    M = draw(st.sampled_from([2, 3]))
    return draw(tiny_cases(limit=16 if M == 2 else 10)), M


def fixed(P, R, pi, horizon, gamma=1.0):
    """A problem begun in state 0, with the same tabular policy π in every state."""
    S, A = np.shape(R)
    theta = np.repeat(np.log(pi), S)
    return Case(TabularMDP(P, np.array(R), gamma, np.eye(S)[0]), SoftmaxLinear(OneHot(S), A), theta, horizon)


def line(S):
    """Each state leads to the next whatever the action; the last is terminal."""
    s, P = np.arange(S), np.zeros((S, 2, S))
    P[s, :, np.minimum(s + 1, S - 1)] = 1
    return P


def stay_or_leave(stay, leave, p):
    P = np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]])
    return fixed(P, [[stay, leave], [0, 0]], [p, 1 - p], 2)


CHAIN = fixed(line(3), [[1, 0], [1, 0], [0, 0]], [0.5, 0.5], 2)
UP_AND_DOWN = fixed(line(3), [[1, 1], [-1, -1], [0, 0]], [0.5, 0.5], 2)
BANDIT = fixed(line(2), [[1, 0], [0, 0]], [0.75, 0.25], 1)
STAY_OR_LEAVE = stay_or_leave(1, -1, 0.75)


def forms(case):
    """(X, Ψ, X with a constant baseline b) of the total-return and of the reward-to-go form."""
    for estimator, Psi in (
        (est.total_return, case.psi.sum(axis=0)),
        (est.reward_to_go, np.einsum("t,tnk->nk", case.discount[:, 0], case.psi)),
    ):
        yield estimator(*case.data), Psi, partial(estimator, *case.data)


def zoo(case):
    """The estimators of the table that ends chapter 5."""
    q = case.q()
    v = (case.pi() * q).sum(axis=2)
    (total, _, total_less), (to_go, _, to_go_less) = forms(case)
    b_total, b_to_go = (optimal_baseline(X, Psi, probabilities=case.p) for X, Psi, _ in forms(case))
    return {
        "total return": total,
        "total return, b*": total_less(b_total),
        "to go": to_go,
        "to go, b*": to_go_less(b_to_go),
        "to go, v": to_go_less(case.along(v)),
        "q": est.score_sums(case.psi, case.discount * case.taken(q)),
        "q, v": est.score_sums(case.psi, case.discount * (case.taken(q) - case.along(v))),
        "corrected": est.action_baseline(*case.model, case.along(q)),
        "all actions": est.all_actions(*case.model, case.along(q)),
    }


class Target:
    """Another θ, with ratios over the policy of the case, which is the behaviour."""

    def __init__(self, case, theta):
        log_b = np.full(case.valid.shape, np.nan)  # not to be read after the end
        log_b[case.valid] = case.policy.log_prob(case.theta, case.traj.x[case.valid], case.traj.actions[case.valid])
        self.theta = theta
        self.psi = est.scores(case.policy, theta, case.traj)
        self.ratios = est.importance_ratios(case.policy, theta, case.traj, log_b)
        self.rho = self.ratios.cumprod(axis=0)  # ρ_{0:t}
        self.data = (self.psi, case.traj, case.gamma)
        self.gradient = case.mdp.gradient(case.policy, theta, case.H)
        self.p = enumerate_trajectories(case.mdp, case.policy, theta, case.H)[1]


def target(case, scale=0.5):
    return Target(case, case.theta + scale * case.rng.normal(size=case.theta.shape))


# Chapter 5: means


@pytest.mark.equation("5.1", defining=True)
@theorem
@given(batched_cases())
def test_mean_squared_error_of_a_batch_is_squared_bias_plus_variance_over_its_size(drawn):
    case, M = drawn
    for X in (
        est.reward_to_go(*case.data),
        est.gpomdp(*case.data, case.along(case.draw(case.mdp.n_states)) * case.valid),  # biased
    ):
        error = case.mean_over_batches(M, lambda i, X=X: ((X[i].mean(axis=1) - case.gradient) ** 2).sum(axis=1))
        bias = case.p @ X - case.gradient
        assert agree(error, bias @ bias + case.trace(X) / M)


@pytest.mark.equation("1.5", "5.2", defining=True)
@theorem
@given(cases())
def test_total_return_is_unbiased_with_any_baseline_of_the_first_state(case):
    b = case.rng.normal(size=case.mdp.n_states)
    for baseline in (0.0, 10 * b[0], b[case.traj.obs[0]]):
        X = est.total_return(*case.data, baseline)
        assert case.unbiased(X)
        assert agree(X, np.einsum("n,tnk->nk", case.G[0] - baseline, case.psi))


@pytest.mark.equation("1.7", "1.11", "5.3", defining=True)
@theorem
@given(cases())
def test_reward_to_go_is_unbiased_with_any_baseline_of_time_and_state(case):
    for b in (0 * case.draw(case.mdp.n_states), 10 * case.draw(case.mdp.n_states)):
        X = est.reward_to_go(*case.data, case.along(b))
        assert case.unbiased(X)
        assert agree(X, np.einsum("tn,tnk->nk", case.discount * (case.G - case.along(b)), case.psi))
        J = check_gradient(lambda th: case.mdp.J(case.policy, th, case.H), case.p @ X, case.theta, method="complex")
        assert J.passed


@pytest.mark.equation("5.4", "5.5", defining=True)
@theorem
@given(cases())
def test_gpomdp_is_the_double_sum_over_rewards_and_earlier_scores(case):
    b = case.draw(len(case.p))
    X = est.gpomdp(*case.data, b)
    double_sum = sum(
        case.gamma**k * (case.traj.rewards[k] - b[k])[:, None] * case.psi[: k + 1].sum(axis=0) for k in case.steps
    )
    assert agree(X, double_sum)
    plain, to_go = (f(*case.data) for f in (est.gpomdp, est.reward_to_go))
    assert agree(plain, to_go)


@pytest.mark.equation("5.4", "5.6")
@theorem
@given(cases())
def test_gpomdp_is_unbiased_with_constants_that_are_subtracted_even_after_the_end(case):
    assert case.unbiased(est.gpomdp(*case.data, 10 * case.draw(1)))


@pytest.mark.equation("5.6", defining=True)
@theorem
@given(cases(), st.booleans())
def test_gpomdp_with_a_baseline_until_the_end_loses_the_gradient_of_the_sum_of_baselines(case, constant):
    S = case.mdp.n_states
    b = np.broadcast_to(case.draw(1 if constant else S), (case.H, S)) * case.live
    lost = case.gradient - case.p @ est.gpomdp(*case.data, case.along(b) * case.valid)

    def sum_of_baselines(theta):
        p = case.mdp.state_marginals(case.policy, theta, horizon=case.H)
        return sum(case.gamma**k * p[k] @ b[k] for k in case.steps)

    floor = max(1.0, np.abs(case.gradient).max())  # a gradient of zero comes out as rounding
    assert check_gradient(sum_of_baselines, lost, case.theta, method="complex", floor=floor).passed


@pytest.mark.equation("5.6")
@theorem
@given(cases())
def test_gpomdp_with_a_baseline_of_the_state_has_the_mean_for_rewards_less_the_baseline(case):
    b = case.rng.normal(size=case.mdp.n_states) * case.live
    mean = case.p @ est.gpomdp(*case.data, b[case.traj.obs] * case.valid)
    other = TabularMDP(case.mdp.P, case.mdp.expected_reward - b[:, None], case.gamma, case.mdp.rho0)
    assert agree(mean, other.gradient(case.policy, case.theta, case.H))


@pytest.mark.equation("5.6")
def test_a_constant_per_reward_is_harmless_only_if_it_outlasts_the_episode():
    case, w = STAY_OR_LEAVE, np.array([1, 0, -1, 0])  # logits of stay and leave in the state, and in the terminal one
    none, running, all_steps = (est.gpomdp(*case.data, b) for b in (0.0, 1.0 * case.valid, 1.0))
    for X, mean in ((none, 3 / 4), (running, 9 / 16), (all_steps, 3 / 4)):
        assert case.p @ X == pytest.approx(mean * w, abs=1e-14)
    assert [case.trace(none), case.trace(all_steps)] == pytest.approx([0, 57 / 32], abs=1e-14)


@pytest.mark.equation("5.3", "5.4")
def test_in_the_chain_half_of_every_reward_is_the_value_baseline():
    v = np.array([1, 1 / 2, 0])[CHAIN.traj.obs]
    assert est.gpomdp(*CHAIN.data, 1 / 2) == pytest.approx(est.reward_to_go(*CHAIN.data, v), abs=1e-15)


# Chapter 1: baselines from the batch


def batch_of(case, index):
    """Scores, trajectories and returns of some columns."""
    return case.psi[:, index], case.traj[index], case.G[:, index]


def means(case, index, estimator, baselines):
    """The mean of the estimator over each batch of ``index`` (K, M), with baselines (…, K, M): (K, n)."""
    b = np.broadcast_to(baselines, (*baselines.shape[:-2], *index.shape))
    columns = index.ravel()
    X = estimator(case.psi[:, columns], case.traj[columns], case.gamma, b.reshape(*b.shape[:-2], -1))
    return X.reshape(*index.shape, -1).mean(axis=1)


@pytest.mark.equation("1.12", defining=True)
@theorem
@given(batched_cases())
def test_the_mean_of_the_batch_as_baseline_shortens_the_gradient_by_one_part_in_its_size(drawn):
    case, M = drawn

    def total(index):
        return means(case, index, est.total_return, case.G[0, index].mean(axis=1, keepdims=True))

    def to_go(index):
        return means(case, index, est.reward_to_go, case.G[:, index].mean(axis=2, keepdims=True))

    for of_batches in (total, to_go):
        assert agree(case.mean_over_batches(M, of_batches), (1 - 1 / M) * case.gradient)


@pytest.mark.equation("1.13")
@theorem
@given(batched_cases())
def test_the_mean_of_the_other_episodes_as_baseline_is_unbiased(drawn):
    case, M = drawn

    def total(index):
        b = [leave_one_out_mean(np.zeros(M, dtype=int), G, total=True) for G in case.G[0, index]]
        return means(case, index, est.total_return, np.array(b))

    def to_go(index):
        valid, t, G = case.valid[:, index], case.traj.t[:, index], case.G[:, index]
        b = np.zeros(G.shape)
        for k, v in enumerate(valid.swapaxes(0, 1)):
            b[:, k][v] = leave_one_out_mean(t[:, k][v], G[:, k][v])
        return means(case, index, est.reward_to_go, b)

    for of_batches in (total, to_go):
        assert agree(case.mean_over_batches(M, of_batches), case.gradient)


@pytest.mark.equation("1.11", "1.15")
@theorem
@given(tiny_cases(limit=10), st.sampled_from([0.0, 0.5]))
def test_a_value_fitted_to_the_same_batch_is_biased_and_one_fitted_to_the_other_episodes_is_not(case, ridge):
    S = case.mdp.n_states

    def fitted_to(sources):
        """The estimates whose trajectory j has the value fitted to the trajectories ``sources(j)`` of its batch."""

        def of_batches(index):
            obs, valid, G = case.traj.obs[:, index], case.valid[:, index], case.G[:, index]
            b = np.zeros(G.shape)
            for k, j in np.ndindex(index.shape):
                used = np.zeros_like(valid[:, k])
                used[:, sources(j)] = valid[:, k, sources(j)]
                w = ridge_least_squares(np.eye(S)[obs[:, k][used]], G[:, k][used], ridge)
                b[:, k, j] = w[obs[:, k, j]]
            return means(case, index, est.reward_to_go, b)

        return of_batches

    def hat_matrix_loss(index):
        psi, traj, G = batch_of(case, index)
        X = np.eye(S)[traj.obs[traj.valid]]
        hat = X @ np.linalg.pinv(X.T @ X + ridge * np.eye(S)) @ X.T
        weights = (case.discount * traj.valid)[traj.valid] * (hat @ G[traj.valid]) / 2
        return -weights @ psi[traj.valid]

    bias = case.mean_over_batches(2, fitted_to(lambda j: [0, 1])) - case.gradient
    assert agree(bias, case.mean_over_batches(2, each(hat_matrix_loss)))
    assert norm(bias) > 1e-3 * norm(case.gradient)
    assert agree(case.mean_over_batches(2, fitted_to(lambda j: [1 - j])), case.gradient)


# Chapter 5: variance


@pytest.mark.equation("5.7", defining=True)
@theorem
@given(cases())
def test_past_rewards_raise_the_variance_by_their_square_and_twice_their_correlation(case):
    earlier = np.tril(np.ones((case.H, case.H)), -1) @ (case.discount * case.traj.rewards)  # Σ_{k<t} γ^k R_{k+1}
    D = np.einsum("tn,tnk->nk", earlier, case.psi)
    total, to_go = (f(*case.data) for f in (est.total_return, est.reward_to_go))
    raised = case.p @ ((D * D).sum(axis=1) + 2 * (D * to_go).sum(axis=1))
    assert agree(case.trace(total) - case.trace(to_go), raised, scale=case.trace(total) + case.trace(to_go))


VARIANCES = {  # tr Cov in the chain, up and down, the bandit, stay or leave
    "total return": (5 / 4, 0, 3 / 128, 9 / 32),
    "total return, b*": (1 / 4, 0, 0, 9 / 56),
    "to go": (3 / 4, 1 / 2, 3 / 128, 0),
    "to go, b*": (3 / 16, 1 / 4, 0, 0),
    "to go, v": (1 / 8, 0, 3 / 32, 183 / 512),
    "q": (5 / 8, 1 / 2, 3 / 128, 9 / 128),
    "q, v": (0, 0, 3 / 32, 291 / 512),
    "corrected": (1 / 8, 0, 0, 63 / 512),
    "all actions": (0, 0, 0, 27 / 512),
}


@pytest.mark.equation("5.7", "5.8", "5.11", "5.13", "5.14")
@pytest.mark.parametrize("name", VARIANCES)
def test_variances_in_the_four_problems_are_those_of_the_table(name):
    for case, variance in zip((CHAIN, UP_AND_DOWN, BANDIT, STAY_OR_LEAVE), VARIANCES[name], strict=True):
        X = zoo(case)[name]
        assert case.p @ X == pytest.approx(case.gradient, abs=1e-14)
        assert case.trace(X) == pytest.approx(variance, abs=1e-14)


@pytest.mark.equation("5.7", "5.11")
@pytest.mark.parametrize(
    ("substitute", "original", "raises"),
    [("to go", "total return", UP_AND_DOWN), ("to go, v", "to go", BANDIT), ("q", "to go", STAY_OR_LEAVE)],
)
def test_each_usual_substitution_lowers_the_variance_in_the_chain_and_raises_it_elsewhere(substitute, original, raises):
    def change(case):
        X = zoo(case)
        return case.trace(X[substitute]) - case.trace(X[original])

    assert change(CHAIN) < -0.1
    assert change(raises) > 0.05


@pytest.mark.equation("5.14", "5.15")
def test_over_an_episode_all_actions_can_vary_more_than_sampled_ones():
    case = stay_or_leave(-1, 2, 0.5)
    X = zoo(case)
    variances = [case.trace(X[name]) for name in ("all actions", "to go", "q")]
    assert variances == pytest.approx([9 / 32, 1 / 4, 1 / 16], abs=1e-14)


@pytest.mark.equation("5.7", "5.8")
@pytest.mark.parametrize("p", [0.1, 0.5, 0.6, 0.7, 0.95])
def test_value_baseline_of_the_bandit_is_worse_than_none_where_the_good_action_has_more_than_two_thirds(p):
    case = fixed(line(2), [[1, 0], [0, 0]], [p, 1 - p], 1)
    none, value, best = (case.trace(est.reward_to_go(*case.data, b)) for b in (0.0, p, 1 - p))
    assert none == pytest.approx(2 * p * (1 - p) ** 3, rel=1e-12)
    assert value == pytest.approx(2 * p * (1 - p) * (1 - 2 * p) ** 2, rel=1e-12, abs=1e-15)
    assert best == pytest.approx(0, abs=1e-15)
    assert (value > none) == (p > 2 / 3)


@st.composite
def layered_cases(draw):
    """Tabular policies where no state comes twice: the scores of different times are orthogonal."""
    rng = draw(generators)
    S, A = 4, draw(st.integers(2, 3))
    P = np.zeros((S, A, S))
    for s in range(S - 1):
        P[s, :, s + 1 :] = rng.dirichlet(np.ones(S - 1 - s), size=A)
    P[-1, :, -1] = 1
    R = np.abs(rng.normal(size=(S, A))) * (np.arange(S) < S - 1)[:, None]
    mdp = TabularMDP(P, R, rng.uniform(0.1, 1), np.array([0.5, 0.5, 0, 0]))
    return Case(mdp, SoftmaxLinear(OneHot(S), A), rng.normal(size=S * A), draw(st.integers(2, 3)), rng)


@pytest.mark.equation("5.7", "5.11", "5.14")
@theorem
@given(layered_cases())
def test_where_no_state_comes_twice_the_usual_order_holds(case):
    X = zoo(case)
    order = [case.trace(X[name]) for name in ("all actions", "q", "to go", "total return")]
    assert (np.diff(order) >= -1e-12 * order[-1]).all()


@pytest.mark.equation("5.8", defining=True)
@theorem
@given(cases())
def test_optimal_constant_baseline_beats_every_other_constant_for_its_own_estimator(case):
    for X, Psi, estimate in forms(case):
        E_XPsi, E_Psi2 = case.p @ (X * Psi).sum(axis=1), case.p @ (Psi * Psi).sum(axis=1)
        best = optimal_baseline(X, Psi, probabilities=case.p)
        assert agree(best, E_XPsi / E_Psi2)
        assert np.abs(case.p @ Psi).max() <= 1e-13 * np.sqrt(E_Psi2)
        least = case.trace(estimate(best))
        scale = case.trace(X) + best**2 * E_Psi2
        assert agree(least, case.trace(X) - E_XPsi**2 / E_Psi2, scale)
        for b in (0.0, case.p @ case.G[0], best + 1e-2, *case.rng.normal(best, 1 + abs(best), size=3)):
            variance = case.trace(estimate(b))
            assert agree(variance, case.trace(X) - 2 * b * E_XPsi + b**2 * E_Psi2, scale + b**2 * E_Psi2)
            assert agree(variance - least, (b - best) ** 2 * E_Psi2, scale + b**2 * E_Psi2)
            assert variance > least
        assert case.unbiased(estimate(best))


@pytest.mark.equation("5.8")
def test_each_estimator_has_an_optimal_constant_of_its_own():
    bests = [optimal_baseline(X, Psi, probabilities=CHAIN.p) for X, Psi, _ in forms(CHAIN)]
    assert bests == pytest.approx([1, 3 / 4], rel=1e-14)
    assert [optimal_baseline(X, Psi, probabilities=BANDIT.p) for X, Psi, _ in forms(BANDIT)] == pytest.approx(
        [1 / 4] * 2
    )
    to_go = [CHAIN.trace(est.reward_to_go(*CHAIN.data, b)) for b in (1, 3 / 4)]
    assert to_go == pytest.approx([1 / 4, 3 / 16], rel=1e-13)  # that of the total return is not the best here
    X, Psi, _ = next(forms(STAY_OR_LEAVE))
    assert optimal_baseline(X, Psi, probabilities=STAY_OR_LEAVE.p) == pytest.approx(3 / 7, rel=1e-14)


@pytest.mark.equation("5.9", defining=True)
@theorem
@given(cases())
def test_optimal_baseline_per_parameter_beats_every_other_constant_in_each_component(case):
    for X, Psi, estimate in forms(case):
        b = optimal_baseline(X, Psi, probabilities=case.p, per_parameter=True)
        moment = case.p @ (Psi * Psi)
        assert agree(b * moment, case.p @ (X * Psi))

        def variances(b, X=X, Psi=Psi):
            return np.diag(case.cov(X - b * Psi))

        best, slack = variances(b), 1e-12 * (variances(0 * b) + b**2 * moment)
        for other in (0 * b, np.full_like(b, case.p @ case.G[0]), b + case.rng.normal(size=b.shape)):
            assert (variances(other) >= best - slack).all()
            assert agree(variances(other) - best, (other - b) ** 2 * moment, scale=variances(other).sum() + best.sum())
        constant = optimal_baseline(X, Psi, probabilities=case.p)
        assert agree(constant * moment.sum(), b @ moment, scale=np.abs(b) @ moment)
        assert best.sum() <= case.trace(estimate(constant)) * (1 + 1e-12) + slack.sum()
        assert case.unbiased(X - b * Psi)


@pytest.mark.equation("5.9")
def test_per_parameter_baselines_of_the_chain_are_the_values_of_its_states():
    _, (X, Psi, _) = forms(CHAIN)
    b = optimal_baseline(X, Psi, probabilities=CHAIN.p, per_parameter=True)
    assert b == pytest.approx([1, 1 / 2, 0, 1, 1 / 2, 0], rel=1e-14)  # no score at the terminal state
    assert CHAIN.trace(X - b * Psi) == pytest.approx(1 / 8, rel=1e-14)


@pytest.mark.equation("5.10")
@theorem
@given(batched_cases(), st.booleans())
def test_optimal_baseline_of_the_other_trajectories_is_unbiased(drawn, per_parameter):
    case, M = drawn
    for X, Psi, _ in forms(case):

        def estimate(index, X=X, Psi=Psi):
            x, psi = X[index], Psi[index]
            b = optimal_baseline(x, psi, per_parameter=per_parameter, leave_one_out=True)
            return (x - b * psi).mean(axis=0)

        assert agree(case.mean_over_batches(M, each(estimate)), case.gradient)


@pytest.mark.equation("5.8", "5.9", "5.10")
@pytest.mark.parametrize("per_parameter", [False, True])
def test_leave_one_out_baselines_are_those_of_the_batch_without_one_trajectory(per_parameter):
    rng = np.random.default_rng(0)
    X, Psi = rng.normal(size=(2, 5, 3))
    Psi[0] = Psi[1] = Psi[2:, 2] = 0
    b = optimal_baseline(X, Psi, per_parameter=per_parameter, leave_one_out=True)
    others = [np.arange(5) != i for i in range(5)]
    expected = [optimal_baseline(X[o], Psi[o], per_parameter=per_parameter) for o in others]
    assert b == pytest.approx(np.reshape(expected, (5, -1)), rel=1e-13)
    assert (b[:, -1] == 0).all() == per_parameter  # no score, no baseline
    weighted = optimal_baseline(X, Psi, per_parameter=per_parameter, probabilities=np.full(5, 0.2))
    assert weighted == pytest.approx(optimal_baseline(X, Psi, per_parameter=per_parameter), rel=1e-14)
    assert optimal_baseline(X, 0 * Psi) == 0


@pytest.mark.equation("5.10")
@pytest.mark.parametrize("per_parameter", [False, True])
def test_leaving_out_a_large_score_keeps_the_digits_of_the_small_ones(per_parameter):
    p = 1 - 1e-9  # under a nearly deterministic policy the score of the rare action is a billion times as long
    Psi = np.array([[-p], [1 - p], [1 - p]])
    b = optimal_baseline([[0], [3], [5]] * Psi, Psi, per_parameter=per_parameter, leave_one_out=True)
    assert b.ravel() == pytest.approx([4, 0, 0], rel=1e-12, abs=1e-12)


@pytest.mark.equation("5.10")
def test_in_the_bandit_leaving_one_out_is_unbiased_and_costs_variance_and_taking_all_in_is_biased():
    case, g = BANDIT, BANDIT.gradient
    _, (X, Psi, _) = forms(case)

    def moments(**settings):
        def less_baseline(index):
            b = optimal_baseline(X[index], Psi[index], **settings)
            return X[index] - b * Psi[index]

        mean = case.mean_over_batches(2, each(lambda index: less_baseline(index).mean(axis=0)))
        of_mean = case.mean_over_batches(2, each(lambda index: ((less_baseline(index).mean(axis=0) - g) ** 2).sum()))
        of_one = case.mean_over_batches(2, each(lambda index: ((less_baseline(index) - g) ** 2).sum(axis=1).mean()))
        return mean, of_mean, of_one

    mean, of_mean, of_one = moments(leave_one_out=True)
    assert mean == pytest.approx(g, abs=1e-15)
    assert (of_mean, of_one) == pytest.approx((15 / 128, 21 / 128), rel=1e-13)
    assert moments()[0] == pytest.approx(3 / 10 * g, abs=1e-15)


def moments_given_state_and_action(case, t):
    """Pr(S_t = s, A_t = a), and mean and variance of G_t given these: (S, A) each."""
    at = (case.traj.obs[t], case.traj.actions[t])
    sums = []
    for power in range(3):
        total = np.zeros(case.pi().shape)
        np.add.at(total, at, case.p * case.valid[t] * case.G[t] ** power)
        sums.append(total)
    mass = np.where(sums[0] > 0, sums[0], 1)
    return sums[0], sums[1] / mass, sums[2] / mass - (sums[1] / mass) ** 2


@pytest.mark.equation("5.11", defining=True)
@theorem
@given(cases())
def test_exact_action_values_take_the_variance_of_the_return_out_of_one_term(case):
    for t, q in enumerate(case.q()):
        mass, mean, variance = moments_given_state_and_action(case, t)
        assert agree(mean, q * (mass > 0))
        at, one = (case.traj.obs[t], case.traj.actions[t]), slice(t, t + 1)
        returns, values = (est.score_sums(case.psi[one], w[None]) for w in (case.G[t], q[at]))
        scale = case.trace(returns) + case.trace(values)
        less = case.cov(returns) - case.cov(values)
        assert agree(less, np.einsum("n,nk,nl->kl", case.p * variance[at], case.psi[t], case.psi[t]), scale)
        assert positive_semidefinite(less, scale)


@pytest.mark.equation("5.12", defining=True)
@theorem
@given(cases())
def test_a_baseline_that_sees_the_action_is_biased_by_its_own_all_actions_gradient(case):
    b = case.draw(case.mdp.n_states, case.mdp.n_actions)
    X = est.action_baseline(*case.model, case.along(b), corrected=False)
    lost = case.all_actions_mean(case.marginals()[:, :, None] * b)
    assert agree(case.p @ X, case.gradient - lost, scale=norm(lost) + norm(case.gradient))
    assert agree(X, est.reward_to_go(*case.data, case.taken(b)))
    assert norm(lost) > 1e-3 * norm(b) * np.sqrt(case.p @ (case.psi[0] ** 2).sum(axis=1))


@pytest.mark.equation("5.12")
@theorem
@given(cases())
def test_the_perfect_guess_of_the_return_uncorrected_leaves_nothing_of_the_gradient(case):
    X = est.action_baseline(*case.model, case.along(case.q()), corrected=False)
    assert agree(case.p @ X, 0, scale=norm(case.gradient))


@pytest.mark.equation("5.13")
@theorem
@given(cases())
def test_a_baseline_that_sees_the_action_is_unbiased_when_corrected(case):
    b = case.draw(case.mdp.n_states, case.mdp.n_actions)
    for f in (b, case.q()):
        assert case.unbiased(est.action_baseline(*case.model, case.along(f)))


@pytest.mark.equation("5.13", defining=True)
@pytest.mark.equation("5.15")
@theorem
@given(cases())
def test_corrected_term_varies_with_what_follows_the_action_and_the_state_and_only_the_second_depends_on_b(case):
    b, psi = case.draw(case.mdp.n_states, case.mdp.n_actions), case.psi
    for t, q in enumerate(case.q()):
        at = (case.traj.obs[t], case.traj.actions[t])
        expected, of_q = (
            np.einsum("san,sa->sn", case.d_pi(), f)[case.traj.obs[t]] * case.valid[t][:, None] for f in (b[t], q)
        )
        Y = (case.G[t] - b[t][at])[:, None] * psi[t] + expected
        variance = moments_given_state_and_action(case, t)[2]
        follows = np.einsum("n,nk,nl->kl", case.p * variance[at], psi[t], psi[t])
        guess = (q - b[t])[at][:, None] * psi[t] - (of_q - expected)  # of zero mean given the state
        scale = case.trace(Y)
        assert agree(case.cov(Y), follows + (case.p * guess.T) @ guess + case.cov(of_q), scale)
        only = np.zeros((case.H, len(case.p)))
        only[t] = 1
        full = est.action_baseline(*case.model, case.along(b * (case.steps == t)[:, None, None]))
        assert agree(
            full - est.reward_to_go(psi, case.traj, case.gamma),
            case.gamma**t * (Y - est.score_sums(psi, only * case.G)),
            scale=1 + np.abs(full).max(),
        )


@pytest.mark.equation("5.14", defining=True)
@pytest.mark.equation("4.10")
@theorem
@given(cases())
def test_all_actions_gradient_is_unbiased_with_exact_values_of_the_steps_to_go(case):
    q = case.along(case.q())
    q[~case.valid] = np.nan  # not to be read after the end
    X = est.all_actions(*case.model, q)
    assert case.unbiased(X)
    d_pi = case.d_pi()[case.traj.obs] * case.valid[..., None, None]
    assert agree(X, np.einsum("t,tna,tnak->nk", case.discount[:, 0], np.nan_to_num(q), d_pi))
    shifted = est.all_actions(*case.model, q + case.along(case.draw(case.mdp.n_states, 1)))
    assert agree(shifted, X)


@pytest.mark.equation("5.13", "5.14")
@theorem
@given(cases())
def test_all_actions_gradient_is_the_corrected_form_with_returns_and_baseline_both_exact(case):
    q = case.q()
    corrected = est.action_baseline(*case.model, case.along(q))
    luck = est.score_sums(case.psi, case.discount * (case.G - case.taken(q)))
    assert agree(
        est.all_actions(*case.model, case.along(q)),
        corrected - luck,
        scale=norm(corrected) + norm(luck),
    )


@pytest.mark.equation("5.14")
@theorem
@given(cases())
def test_all_actions_gradient_with_other_values_is_biased_by_their_error(case):
    q_hat = case.draw(case.mdp.n_states, case.mdp.n_actions)
    error = case.all_actions_mean(case.marginals()[:, :, None] * (q_hat - case.q()))
    X = est.all_actions(*case.model, case.along(q_hat))
    Y = est.score_sums(case.psi, case.discount * case.taken(q_hat))
    scale = norm(error) + norm(case.gradient)
    assert agree(case.p @ X, case.gradient + error, scale)
    assert agree(case.p @ Y, case.gradient + error, scale)


@pytest.mark.equation("5.15", defining=True)
@theorem
@given(cases())
def test_of_one_sampled_state_all_actions_have_no_more_covariance_than_a_sampled_one(case):
    q_hat = case.draw(case.mdp.n_states, case.mdp.n_actions)
    for t in case.steps:
        only = (case.steps == t)[:, None]
        sampled = est.score_sums(case.psi, only * case.discount * case.taken(q_hat))
        expected = est.all_actions(*case.model, case.along(q_hat * only[..., None]))
        scale, given_state = case.trace(sampled), np.zeros((case.theta.size,) * 2)
        for s in np.flatnonzero(case.live):
            here = case.valid[t] & (case.traj.obs[t] == s)
            mass = case.p @ here
            if mass > 0:
                p = case.p * here / mass
                assert agree(p @ sampled, p @ expected, scale=np.sqrt(p @ (sampled**2).sum(axis=1)))
                assert np.ptp(expected[here], axis=0).max() <= 1e-12 * np.abs(expected).max()  # a function of the state
                Y = sampled - p @ expected
                given_state += mass * (p * Y.T) @ Y
        less = case.cov(sampled) - case.cov(expected)
        assert agree(less, given_state, scale)
        assert positive_semidefinite(less, scale)


# Chapter 6: importance sampling


@pytest.mark.equation("6.14", "6.15", defining=True)
@theorem
@given(cases())
def test_products_of_ratios_turn_expectations_of_the_old_policy_into_those_of_the_new(case):
    new = target(case)
    rho, of_trajectory = new.rho, new.rho[-1]
    assert agree(case.p * of_trajectory, new.p)
    assert case.p @ of_trajectory == pytest.approx(1, rel=1e-12)
    assert (new.ratios[~case.valid] == 1).all()
    f = case.rng.normal(size=len(case.p))
    square = case.p @ (of_trajectory * f) ** 2
    variance = square - (case.p @ (of_trajectory * f)) ** 2
    assert agree(variance, new.p @ (of_trajectory * f**2) - (new.p @ f) ** 2, scale=square)
    values, sums = case.draw(*case.mdp.P.shape), case.traj.rewards.cumsum(axis=0)
    for t in case.steps:
        Y = values[t][case.traj.obs[t], case.traj.actions[t], case.traj.next_obs[t]] * (1 + sums[t])
        for k in range(t, case.H):  # ratios of later actions do no harm to the mean
            assert agree(case.p @ (rho[k] * Y), new.p @ Y, scale=new.p @ np.abs(Y))


@pytest.mark.equation("6.14")
def test_actions_that_the_behaviour_never_takes_are_missing_from_the_mean_of_the_ratio():
    case = Case(BANDIT.mdp, BANDIT.policy, np.array([0, 0, -1e4, 0]), 1)  # of probability 0: e^−10000 underflows
    assert case.p.tolist() == [1]
    assert case.p @ Target(case, np.zeros(4)).ratios[0] == 0.5


@pytest.mark.equation("6.16", defining=True)
@theorem
@given(cases())
def test_whole_trajectory_ratios_make_every_unbiased_estimator_unbiased_for_the_new_policy(case):
    new = target(case)
    X = est.importance_sampled(*new.data, new.ratios)
    assert case.unbiased(X, new.gradient)
    rho = new.rho[-1][:, None]
    assert agree(X, rho * est.reward_to_go(*new.data))
    assert case.unbiased(rho * est.total_return(*new.data, 2.0), new.gradient)
    b = case.along(case.draw(case.mdp.n_states, case.mdp.n_actions))
    corrected = est.action_baseline(case.policy, new.theta, case.traj, case.gamma, b)
    assert case.unbiased(rho * corrected, new.gradient)


@pytest.mark.equation("6.17", defining=True)
@pytest.mark.equation("6.18")
@theorem
@given(cases())
def test_per_decision_ratios_are_unbiased_for_the_new_policy(case):
    new = target(case)
    X = est.per_decision(*new.data, new.ratios)
    assert case.unbiased(X, new.gradient)
    r, later = case.traj.rewards, [new.ratios[t + 1 :] for t in case.steps]
    double_sum = sum(
        (case.gamma**k * new.rho[t] * later[t][: k - t].prod(axis=0) * r[k])[:, None] * new.psi[t]
        for t in case.steps
        for k in range(t, case.H)
    )
    assert agree(X, double_sum)
    weights = case.discount * new.rho * case.along(case.draw(case.mdp.n_states))
    assert case.unbiased(X - est.score_sums(new.psi, weights), new.gradient)


@pytest.mark.equation("6.17")
def test_per_decision_ratios_can_vary_more_than_those_of_whole_trajectories():
    case = UP_AND_DOWN  # every return is zero, and not every return to go
    new = Target(case, case.theta + np.arange(6) / 6)
    assert case.trace(new.rho[-1][:, None] * est.total_return(*new.data)) == 0
    assert case.trace(est.per_decision(*new.data, new.ratios)) > 0.1


@pytest.mark.equation("6.18")
@theorem
@given(cases())
def test_return_with_ratios_has_the_new_action_value_as_its_mean(case):
    new = target(case)
    flags = (case.traj.terminated, case.traj.truncated)
    G = discounted_returns(case.traj.rewards, *flags, case.gamma, ratios=new.ratios)
    assert agree(G[-1] * case.valid[-1], case.traj.rewards[-1])
    for t, q in enumerate(case.q(new.theta)):
        if t + 1 < case.H:
            recursion = case.traj.rewards[t] + case.gamma * new.ratios[t + 1] * G[t + 1] * case.valid[t + 1]
            assert agree(G[t] * case.valid[t], recursion * case.valid[t])
        total, mass = np.zeros((2, *q.shape))
        for sums, w in ((total, G[t]), (mass, 1)):
            np.add.at(sums, (case.traj.obs[t], case.traj.actions[t]), case.p * case.valid[t] * w)
        assert agree(total, mass * q)


@pytest.mark.equation("6.18", defining=True)
@theorem
@given(generators, st.integers(1, 8), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_ratios_do_not_reach_beyond_the_end_of_an_episode_or_into_the_bootstrap(rng, T, rate, gamma):
    rewards, bootstrap = rng.normal(size=(2, T, 3))
    ratios = rng.uniform(0.1, 3, size=(T, 3))
    terminated, truncated = rng.random((2, T, 3)) < rate
    arguments = rewards, terminated, truncated, gamma, bootstrap
    G = discounted_returns(*arguments, ratios)
    assert np.array_equal(discounted_returns(*arguments, 1.0), discounted_returns(*arguments))
    for t, n in np.ndindex(T, 3):
        expected, weight = 0.0, 1.0
        for k in range(t, T):
            expected += weight * rewards[k, n]
            if terminated[k, n]:
                break
            if truncated[k, n] or k == T - 1:
                expected += weight * gamma * bootstrap[k, n]
                break
            weight *= gamma * ratios[k + 1, n]
        assert G[t, n] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.equation("6.19")
@theorem
@given(cases())
def test_second_moment_of_the_ratio_lies_between_powers_of_the_least_and_the_largest_divergence(case):
    new = target(case)
    chi2 = ((case.pi(new.theta) - case.pi()) ** 2 / case.pi()).sum(axis=1)[case.live]
    for t, moment in enumerate(new.rho**2 @ case.p):
        assert moment <= (1 + chi2.max()) ** (t + 1) * (1 + 1e-12)
        assert case.mdp.terminal.any() or moment >= (1 + chi2.min()) ** (t + 1) * (1 - 1e-12)


@pytest.mark.equation("6.19", defining=True)
@theorem
@given(generators, st.integers(2, 3), st.integers(2, 6))
def test_second_moment_of_the_ratio_is_exponential_in_the_horizon_where_states_are_alike(rng, A, horizon):
    mdp = garnet(2, A, 1, seed=rng)
    case = Case(mdp, SoftmaxLinear(Constant(), A), rng.normal(size=A), horizon if A == 2 else min(horizon, 4), rng)
    new = target(case, scale=1.0)
    pi = case.pi()[0]
    chi2 = ((case.pi(new.theta)[0] - pi) ** 2 / pi).sum()
    moments = new.rho**2 @ case.p
    assert moments == pytest.approx((1 + chi2) ** np.arange(1, case.H + 1), rel=1e-10)


@pytest.mark.equation("6.20", defining=True)
@theorem
@given(tiny_cases())
def test_weighted_estimate_of_one_or_two_trajectories_has_the_bias_of_the_expansion(case):
    new = target(case)
    X, rho = est.reward_to_go(*new.data), new.rho[-1]

    def mean(M):
        return case.mean_over_batches(M, each(lambda index: est.self_normalized(X[index], new.ratios[:, index])))

    assert agree(mean(1), case.p @ X)
    u, v, mu = rho[:, None] * (X - new.gradient), rho - 1, new.gradient
    leading = -(case.p * rho) @ u  # −E[ρ² (X − μ)], which is −Cov(ρX − ρμ, ρ)
    assert agree(leading, -((case.p * v) @ u), scale=norm(leading) + norm(mu))

    def remainder(index):
        U, V = u[index].mean(axis=1), v[index].mean(axis=1, keepdims=True)
        return -U * V**3 / (1 + V)

    second = (case.p * v**2) @ u
    bias = leading / 2 + second / 4 + case.mean_over_batches(2, remainder)
    assert agree(mean(2) - mu, bias, scale=norm(mu) + norm(leading) + norm(second))


@pytest.mark.equation("6.20")
@theorem
@given(cases())
def test_weighted_estimate_lies_among_its_samples_and_leaves_a_constant_alone(case):
    new = target(case)
    X = case.rng.normal(size=(len(case.p), 2))
    X[:, 1] = 3.0
    value = est.self_normalized(X, new.ratios)
    assert X[:, 0].min() <= value[0] <= X[:, 0].max()
    assert value[1] == pytest.approx(3.0, rel=1e-14)


# One parameter: the policy stays with probability p = 1/(1 + e^−x) in both of Kakade's states. Data have p = 1/2; the
# derivative with respect to x is wanted at p = 0.8.


def two_states(horizon, target=0.8):
    base = two_state(0.9)
    mdp = TabularMDP(base.P, base.R, 0.9, np.array([1.0, 0.0]))
    case = Case(mdp, SoftmaxLinear(Constant(), 2), np.zeros(2), horizon)
    new = Target(case, np.array([np.log(target / (1 - target)), 0]))
    G_rho = discounted_returns(
        case.traj.rewards, case.traj.terminated, case.traj.truncated, case.gamma, ratios=new.ratios
    )
    X = {
        "total": new.rho[-1][:, None] * est.total_return(*new.data),
        "whole": est.importance_sampled(*new.data, new.ratios),
        "per decision": est.per_decision(*new.data, new.ratios),
        "first order": est.first_order(*new.data, new.ratios),
        "counted twice": est.score_sums(new.psi, case.discount * new.rho * new.ratios * G_rho),
    }
    return case, new, {"ratio": new.rho[-1]} | {name: x[:, 0] for name, x in X.items()}


@pytest.mark.equation("6.16", "6.17", "6.20", "6.21")
def test_two_state_example_has_the_numbers_of_the_table():
    case, new, columns = two_states(2)
    assert case.traj.actions.T.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert new.gradient[0] == pytest.approx(0.2176, rel=1e-13)
    for name, values, mean, variance in (
        ("ratio", [2.56, 0.64, 0.64, 0.16], 1, 0.8496),
        ("total", [1.9456, -0.3840, -0.6912, 0], 0.2176, 1.0553),
        ("whole", [1.4336, 0.1280, -0.6912, 0], 0.2176, 0.5900),
        ("per decision", [1.2416, 0.3200, -0.6912, 0], 0.2176, 0.4831),
        ("first order", [0.896, 0.320, 0, 0], 0.3040, 0.1339),
        ("counted twice", [1.98656, 0.512, 0, 0], 0.62464, 0.6620),
    ):
        assert columns[name] == pytest.approx(values, rel=1e-13, abs=1e-14)
        assert case.p @ columns[name] == pytest.approx(mean, rel=1e-13)
        assert columns[name].var() == pytest.approx(variance, abs=5.1e-5)  # four decimals are printed


@pytest.mark.equation("6.22")
@pytest.mark.parametrize("p", [0.2, 0.49, 0.6, 0.8, 0.95])
def test_first_order_bias_in_the_two_states_is_of_first_order_in_the_step(p):
    case, new, columns = two_states(2, p)
    assert case.p @ columns["first order"] - new.gradient[0] == pytest.approx(1.8 * (p - 0.5) * p * (1 - p), rel=1e-12)


@pytest.mark.equation("5.1", "6.16", "6.17", "6.21")
@pytest.mark.parametrize(
    ("horizon", "gradient", "biased", "variances", "break_even"),
    [
        (2, 0.2176, 0.3040, (1.055, 0.590, 0.483, 0.134), 46),
        (5, 0.4039, 0.8308, (59.19, 20.04, 8.906, 1.662), 39),
        (10, 0.8561, 1.4112, (2542, 581.4, 129.0, 7.509), 394),
    ],
)
def test_variance_of_ratios_grows_with_the_horizon_and_pays_for_a_bias(
    horizon, gradient, biased, variances, break_even
):
    case, new, columns = two_states(horizon)
    X = [columns[name] for name in ("total", "whole", "per decision", "first order")]
    assert new.gradient[0] == pytest.approx(gradient, abs=5e-5)
    assert [case.p @ x for x in X] == pytest.approx([new.gradient[0]] * 3 + [biased], abs=5e-5)
    assert [x.var() for x in X] == pytest.approx(variances, rel=1e-3)
    bias = case.p @ X[-1] - new.gradient[0]
    assert int((X[2].var() - X[3].var()) / bias**2) == break_even  # the largest N with the smaller squared error


@pytest.mark.equation("6.20")
def test_weighted_estimate_is_biased_like_one_over_n_and_consistent():
    case, new, _ = two_states(2)
    X, rho, mu = est.reward_to_go(*new.data)[:, :1], new.rho[-1], 0.2176
    leading = -case.p @ (rho**2 * (X[:, 0] - mu))
    assert leading == pytest.approx(-0.4249, abs=5e-5)
    bias, square = {}, {}
    for N in (1, 10, 20, 40):
        index, w = case.batches(N)
        error = each(lambda i: est.self_normalized(X[i], new.ratios[:, i])[0] - mu)(index)
        bias[N], square[N] = w @ error, w @ error**2
    assert [bias[N] for N in (1, 10, 40)] == pytest.approx([-0.2976, -0.0483, -0.0110], abs=5e-5)
    off = [N * bias[N] - leading for N in (20, 40)]
    assert off[0] / off[1] == pytest.approx(2, rel=0.2)  # what is left is of the next order in 1/N
    delta = case.p @ (rho**2 * (X[:, 0] - mu) ** 2)
    off = [N * square[N] - delta for N in (10, 20, 40)]
    assert off[0] / off[1] == pytest.approx(2, rel=0.2)
    assert off[1] / off[2] == pytest.approx(2, rel=0.2)
    exact = np.repeat(np.arange(4), 25)  # each trajectory as often as it is probable
    assert est.self_normalized(X[exact], new.ratios[:, exact]) == pytest.approx([mu], rel=1e-13)


@pytest.mark.equation("6.21", defining=True)
@pytest.mark.equation("6.3")
@theorem
@given(cases())
def test_first_order_estimate_has_the_gradient_of_the_surrogate_as_its_mean(case):
    new, q, p = target(case), case.q(), case.marginals()
    mean = case.p @ est.first_order(*new.data, new.ratios)
    assert agree(mean, case.all_actions_mean(p[:, :, None] * q, new.theta))
    advantage = q - (case.pi() * q).sum(axis=2, keepdims=True)

    def surrogate(theta):
        gain = np.einsum("t,ts,sa,tsa->", case.discount[:, 0], p, case.pi(theta), advantage)
        return case.mdp.J(case.policy, case.theta, case.H) + gain

    assert check_gradient(surrogate, mean, new.theta, method="complex").passed


@pytest.mark.equation("6.22", defining=True)
@theorem
@given(cases())
def test_first_order_bias_comes_from_the_old_states_and_the_old_values(case):
    new = target(case)
    bias = case.p @ est.first_order(*new.data, new.ratios) - new.gradient
    old, latest = (case.marginals(theta)[:, :, None] * case.q(theta) for theta in (case.theta, new.theta))
    assert agree(bias, case.all_actions_mean(old - latest, new.theta), scale=norm(new.gradient))


@pytest.mark.equation("6.22")
@theorem
@given(cases())
def test_first_order_bias_halves_with_the_step(case):
    direction = case.rng.normal(size=case.theta.shape)

    def bias(step):
        new = Target(case, case.theta + step * direction)
        return case.p @ est.first_order(*new.data, new.ratios) - new.gradient

    assert agree(bias(0.0), 0, scale=norm(case.gradient))
    # What is left is of second order, 1e-5 times the ratio of the derivatives; and bias may be zero, but for rounding,
    # where actions do not influence the next state.
    assert norm(2 * bias(0.5e-5) - bias(1e-5)) <= 1e-2 * norm(bias(1e-5)) + 1e-12 * norm(case.gradient)


@pytest.mark.equation("6.23", defining=True)
@theorem
@given(cases())
def test_one_ratio_corrects_the_action_and_not_the_state(case):
    new, f = target(case), case.draw(case.mdp.n_states, case.mdp.n_actions)
    of_target, along = (case.pi(new.theta) * f).sum(axis=2), case.discount * case.valid * case.taken(f)
    for weights, states in ((new.ratios, case.marginals()), (new.rho, case.marginals(new.theta))):
        mean, size = (case.p @ (weights * value).sum(axis=0) for value in (along, np.abs(along)))
        assert agree(mean, np.sum(case.discount * states * of_target), scale=size)


@pytest.mark.equation("6.23")
def test_rewards_with_one_ratio_are_not_the_objective_of_the_target():
    case, new, _ = two_states(1)
    behaviour, pi = case.pi(), case.pi(new.theta)
    d_b = case.mdp.visitation(behaviour)
    assert d_b == pytest.approx([5.5, 4.5], rel=1e-12)
    assert d_b @ (pi * case.mdp.R).sum(axis=1) == pytest.approx(11.6, rel=1e-12)
    assert case.mdp.visitation(pi) == pytest.approx([6.0870, 3.9130], abs=5e-5)
    assert case.mdp.J(pi) == pytest.approx(11.1304, abs=5e-5)
    H = 12
    case, new, _ = two_states(H)
    mean = case.p @ (case.discount * new.ratios * case.traj.rewards).sum(axis=0)
    # From the second step on both states are equally likely under b, and worth 0.8 and 1.6.
    assert mean == pytest.approx(11.6 - 0.9**H * 1.2 / (1 - 0.9), rel=1e-12)


# The method against the estimators


SETTINGS = [
    {"returns": "to_go", "baseline": "none"},
    {"returns": "to_go", "baseline": "none", "outer_discount": False},
    {"returns": "to_go", "baseline": "leave_one_out"},
    {"returns": "to_go", "baseline": "linear"},
    {"returns": "to_go", "baseline": "optimal"},
    {"returns": "to_go", "baseline": "optimal", "outer_discount": False},
    {"returns": "total", "baseline": "none"},
    {"returns": "total", "baseline": "leave_one_out"},
    {"returns": "total", "baseline": "linear"},
    {"returns": "total", "baseline": "optimal"},
]


def estimates(case, psi, traj, w, returns, baseline, outer_discount=True):
    """The estimates of one trajectory each that these settings stand for."""
    if baseline == "linear":  # v̂ completes what a time limit cuts
        traj.rewards = traj.rewards + case.gamma * traj.truncated * w[traj.next_obs]
    G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, case.gamma) * traj.valid
    weight = np.ones(G.shape)
    if returns == "total":
        X, G = est.total_return(psi, traj, case.gamma), G[0] * weight
    elif outer_discount:
        X, weight = est.reward_to_go(psi, traj, case.gamma), case.discount * weight
    else:
        X = est.score_sums(psi, G)
    if baseline == "optimal":
        Psi = est.score_sums(psi, weight)
        return X - optimal_baseline(X, Psi, leave_one_out=True) * Psi
    others = (G.sum(axis=1, keepdims=True) - G) / (G.shape[1] - 1)
    return X - est.score_sums(psi, weight * {"none": 0, "linear": w[traj.obs], "leave_one_out": others}[baseline])


@pytest.mark.equation("1.16", defining=True)
@pytest.mark.equation("1.5", "1.7", "1.10", "1.13", "5.2", "5.3", "5.10")
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting.values())))
@given(cases(), st.integers(2, 6))
def test_step_of_reinforce_is_the_mean_of_the_estimates_of_its_batch(setting, case, M):
    index = case.rng.choice(len(case.p), size=M, p=case.p)
    agent = Reinforce(
        case.policy, OneHot(case.mdp.n_states), gamma=case.gamma, optimizer="ascent", alpha=0.5, episodes=M, **setting
    )
    agent.init(case.rng)
    agent.theta, agent.w = case.theta, case.rng.normal(size=case.mdp.n_states)
    X = estimates(case, case.psi[:, index], case.traj[index], agent.w, **setting)
    agent.update(case.traj[index], case.rng)
    step = (agent.theta - case.theta) / agent.alpha
    assert agree(step, X.mean(axis=0), scale=norm(case.theta) + norm(X))


# Bad input


def two_episodes_in_a_column(traj):
    traj.t = np.where(np.arange(len(traj.t))[:, None] >= 1, 0, traj.t)
    return traj


def begun_late(traj):
    traj.t = traj.t + traj.valid
    return traj


@pytest.mark.parametrize("spoil", [two_episodes_in_a_column, begun_late])
def test_scores_need_one_episode_in_each_column_from_its_first_step(spoil):
    with pytest.raises(ValueError, match="one episode in each column, from its first step"):
        est.scores(CHAIN.policy, CHAIN.theta, spoil(CHAIN.traj[:]))


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        (((4, 3), (4, 2)), {}, r"one shape \(N, n\), got \(4, 3\) and \(4, 2\)"),
        (((4,), (4,)), {}, r"one shape \(N, n\), got \(4,\) and \(4,\)"),
        (((1, 3), (1, 3)), {"leave_one_out": True}, "at least 2 trajectories, got 1"),
        (
            ((4, 3), (4, 3)),
            {"leave_one_out": True, "probabilities": np.full(4, 0.25)},
            "probabilities must not be given",
        ),
    ],
)
def test_optimal_baseline_refuses_shapes_that_differ_and_leaving_out_what_it_cannot(shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        optimal_baseline(*map(np.ones, shapes), **arguments)


def test_ratios_of_another_shape_than_rewards_are_refused_by_name():
    flags = np.zeros((2, 1), dtype=bool)
    with pytest.raises(ValueError, match=r"'ratios': \(1, 1\)"):
        discounted_returns(np.ones((2, 1)), flags, flags, 1.0, ratios=np.ones((1, 1)))


def test_bad_arguments_of_every_estimator_are_named():
    case = BANDIT
    traj, psi, gamma = case.traj, case.psi, case.mdp.gamma
    ratios = np.ones(traj.valid.shape)
    for estimator in (est.total_return, est.reward_to_go, est.gpomdp):
        for bad in (2, np.nan):
            with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\]"):
                estimator(psi, traj, bad)
        with pytest.raises(ValueError, match="psi must have shape"):
            estimator(psi[:, :-1], traj, gamma)
    for estimator in (est.importance_sampled, est.first_order):
        with pytest.raises(ValueError, match="ratios must have shape"):
            estimator(psi, traj, gamma, ratios[0])
    with pytest.raises(ValueError, match="ratios must not all be 0"):
        est.self_normalized(psi[0], 0 * ratios)
    assert np.isnan(optimal_baseline([[np.nan]], [[np.nan]]))
    assert optimal_baseline([[1], [2]], [[1], [1]], leave_one_out=True).tolist() == [[2], [1]]
    with pytest.raises(ValueError, match="X and Psi must have one shape"):
        optimal_baseline(np.zeros((0, 2)), np.zeros((0, 2)))
