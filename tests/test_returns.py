"""Returns and advantages against their definitions, written out as loops, and their means as sums over all episodes."""

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st

from npg.baselines import leave_one_out_mean
from npg.exact import TabularMDP, enumerate_trajectories
from npg.features import OneHot
from npg.policies import SoftmaxLinear
from npg.returns import (
    discounted_returns,
    gae,
    lambda_returns,
    n_step_returns,
    normalized_advantages,
    total_returns,
    weighted_advantages,
)

theorem = S.examples(200)
gammas = st.sampled_from([0.0, 0.3, 0.99, 1.0])


@st.composite
def segments(draw):
    """(T, N) rewards, flags and bootstrap values, with several episodes in a column."""
    T, N = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rate = draw(st.sampled_from([0.0, 0.3, 1.0]))
    terminated, truncated = rng.random((2, T, N)) < rate
    return rng.normal(size=(T, N)), terminated, truncated, rng.normal(size=(T, N))


def by_definition(rewards, terminated, truncated, gamma, bootstrap, t, n):
    """Σ_k γ^k R_{t+k+1} up to the end of the row's episode, and what is left at a cut."""
    total, discount = 0.0, 1.0
    for k in range(t, len(rewards)):
        total += discount * rewards[k, n]
        discount *= gamma
        if terminated[k, n]:
            return total
        if truncated[k, n] or k == len(rewards) - 1:
            return total + discount * bootstrap[k, n]
    raise AssertionError


@pytest.mark.equation("1.1", "1.8", defining=True)
@given(segments(), gammas)
def test_return_is_the_discounted_sum_to_the_end_of_the_episode(segment, gamma):
    rewards, terminated, truncated, bootstrap = segment
    G = discounted_returns(rewards, terminated, truncated, gamma, bootstrap)
    for t, n in np.ndindex(rewards.shape):
        assert G[t, n] == pytest.approx(by_definition(*segment[:3], gamma, bootstrap, t, n), rel=1e-12, abs=1e-13)


@pytest.mark.equation("1.8")
@given(segments(), gammas)
def test_termination_bootstraps_nothing_even_at_a_time_limit(segment, gamma):
    rewards, terminated, truncated, bootstrap = segment
    G = discounted_returns(rewards, terminated, truncated, gamma, bootstrap)
    assert np.array_equal(G[terminated], rewards[terminated])
    cut = truncated & ~terminated
    assert np.allclose(G[cut], rewards[cut] + gamma * bootstrap[cut], rtol=1e-15)


@given(segments(), gammas)
def test_columns_do_not_mix(segment, gamma):
    rewards, terminated, truncated, bootstrap = segment
    G = discounted_returns(rewards, terminated, truncated, gamma, bootstrap)
    for n in range(rewards.shape[1]):
        column = [a[:, [n]] for a in segment]
        assert np.array_equal(G[:, [n]], discounted_returns(*column[:3], gamma, column[3]))


def test_a_zero_bootstrap_may_be_given_as_a_number_and_inputs_are_left_alone():
    rewards, flags = np.ones((3, 1)), np.zeros((3, 1), dtype=bool)
    assert discounted_returns(rewards, flags, flags, 0.5).ravel().tolist() == [1.75, 1.5, 1.0]
    for eight in (8, 8.0, np.int64(8)):
        assert discounted_returns(rewards, flags, flags, 0.5, eight).ravel().tolist() == [2.75, 3.5, 5.0]
    lists = [a.tolist() for a in (rewards, flags, flags)]
    assert discounted_returns(*lists, 0.5).ravel().tolist() == [1.75, 1.5, 1.0]
    assert rewards.sum() == 3
    assert not flags.any()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_total_return_is_that_of_the_first_step_of_the_episode(lengths):
    t = np.concatenate([np.arange(k) for k in lengths])[:, None]
    returns = np.arange(len(t), dtype=float)[:, None]
    expected = np.concatenate([[returns[t.ravel() == 0][i, 0]] * k for i, k in enumerate(lengths)])
    assert total_returns(t == 0, returns).ravel().tolist() == expected.tolist()


@pytest.mark.equation("1.13", defining=True)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.booleans())
def test_leave_one_out_mean_is_the_mean_over_the_other_episodes(lengths, total):
    rng = np.random.default_rng(len(lengths))
    M, t = len(lengths), np.concatenate([np.arange(k) for k in lengths])
    episode = np.repeat(np.arange(M), lengths)
    G = np.zeros((M, max(lengths)))  # zero once the episode has ended
    for i, k in enumerate(lengths):
        G[i, :k] = rng.normal() if total else rng.normal(size=k)
    own = G[episode, 0] if total else G[episode, t]
    others = [[(G[j, 0] if total else G[j, s]) for j in range(M) if j != i] for i, s in zip(episode, t, strict=True)]
    b = leave_one_out_mean(t, own, total)
    assert np.allclose(b, np.mean(others, axis=1), rtol=1e-12, atol=1e-13)
    if total:
        G_bar = G[:, 0].mean()
        assert np.allclose(own - b, M / (M - 1) * (own - G_bar), rtol=1e-12, atol=1e-13)


# Values, n-step returns, λ-returns and advantages

lams = st.sampled_from([0.0, 0.5, 0.95, 1.0])


@st.composite
def valued_segments(draw, frozen=True):
    """rewards, values, next_values, terminated, truncated: with one v̂ for all rows if ``frozen``, NaN where unread."""
    rewards, terminated, truncated, next_values = draw(segments())
    values = np.random.default_rng(draw(S.seeds)).normal(size=rewards.shape)
    if frozen:
        values[1:] = np.where(terminated | truncated, values, next_values)[:-1]
    return rewards, values, np.where(terminated, np.nan, next_values), terminated, truncated


def windows(terminated, truncated):
    """L_t by looking for the cut."""
    L = np.zeros(terminated.shape, dtype=int)
    for t, n in np.ndindex(L.shape):
        k = t
        while not (terminated[k, n] or truncated[k, n] or k == len(L) - 1):
            k += 1
        L[t, n] = k - t + 1
    return L


def n_step_by_definition(rewards, next_values, terminated, truncated, gamma, n):
    """R_{t+1} + … + γ^{m−1} R_{t+m} + γ^m v̂(S_{t+m})."""
    L, G = windows(terminated, truncated), np.zeros(rewards.shape)
    for t, i in np.ndindex(G.shape):
        m = min(n, L[t, i])
        G[t, i] = sum(gamma**k * rewards[t + k, i] for k in range(m))
        if not terminated[t + m - 1, i]:
            G[t, i] += gamma**m * next_values[t + m - 1, i]
    return G


def td_errors(rewards, values, next_values, terminated, gamma):
    delta = np.zeros(rewards.shape)
    for t, n in np.ndindex(delta.shape):
        delta[t, n] = rewards[t, n] - values[t, n] + (0 if terminated[t, n] else gamma * next_values[t, n])
    return delta


def sums_of_td_errors(segment, discount, gamma, n=99):
    """Σ_{k<min(n, L_t)} c^k δ_{t+k}."""
    delta, L = td_errors(*segment[:4], gamma), windows(*segment[3:])
    return np.array(
        [
            [sum(discount**k * delta[t + k, i] for k in range(min(n, L[t, i]))) for i in range(L.shape[1])]
            for t in range(len(L))
        ]
    )


def weighted_by_definition(segment, gamma, lam):
    """Each row's n-step returns with the weights (1 − λ)λ^{n−1} and, on the longest, λ^{L−1}."""
    rewards, _, next_values, terminated, truncated = segment
    L, G = windows(terminated, truncated), np.zeros(rewards.shape)
    returns = [
        n_step_by_definition(rewards, next_values, terminated, truncated, gamma, n) for n in range(1, L.max() + 1)
    ]
    for t, i in np.ndindex(G.shape):
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, L[t, i])] + [lam ** (L[t, i] - 1)]
        assert sum(weights) == pytest.approx(1, rel=1e-14)
        G[t, i] = sum(w * returns[n][t, i] for n, w in enumerate(weights))
    return G


def equal(actual, expected):
    """To rounding: sums of at most 12 terms of a few units."""
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.equation("7.6", defining=True)
@theorem
@given(valued_segments(frozen=False), gammas, st.integers(1, 15))
def test_n_step_return_is_n_rewards_and_a_value_and_stops_where_its_window_does(segment, gamma, n):
    rewards, _, next_values, terminated, truncated = segment
    expected = n_step_by_definition(rewards, next_values, terminated, truncated, gamma, n)
    equal(n_step_returns(rewards, next_values, terminated, truncated, gamma, n), expected)


@pytest.mark.equation("7.6")
@given(valued_segments(frozen=False), gammas, st.integers(12, 2**40))
def test_more_steps_than_rows_give_the_whole_window(segment, gamma, n):
    rewards, _, next_values, terminated, truncated = segment
    actual = n_step_returns(rewards, next_values, terminated, truncated, gamma, n)
    equal(actual, discounted_returns(rewards, terminated, truncated, gamma, np.nan_to_num(next_values)))


@pytest.mark.equation("7.6", "7.9", "7.20", "8.10")
@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        ([0, 1, 0], [0, 0, 0], [1 + 0.5 * 2, 2, 4 + 0.5 * 30]),
        ([0, 0, 0], [0, 1, 0], [1 + 0.5 * 2 + 0.25 * 20, 2 + 0.5 * 20, 4 + 0.5 * 30]),
        ([0, 1, 0], [0, 1, 0], [1 + 0.5 * 2, 2, 4 + 0.5 * 30]),
        ([0, 0, 1], [0, 0, 0], [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4]),
    ],
    ids=["terminated", "truncated", "both", "end"],
)
def test_a_time_limit_bootstraps_from_the_true_successor_and_a_termination_does_not(terminated, truncated, expected):
    rewards, next_values = np.array([[1.0], [2], [4]]), np.array([[10.0], [20], [30]])
    flags = [np.array(flag, dtype=bool)[:, None] for flag in (terminated, truncated)]
    values = np.array([[7.0], [10], [20]])
    assert n_step_returns(rewards, next_values, *flags, 0.5, 3).ravel().tolist() == expected
    assert lambda_returns(rewards, next_values, *flags, 0.5, 1.0).ravel().tolist() == expected
    assert gae(rewards, values, next_values, *flags, 0.5, 1.0).ravel().tolist() == (expected - values.T)[0].tolist()
    one_step = rewards + 0.5 * next_values * ~flags[0]
    assert np.array_equal(gae(rewards, values, next_values, *flags, 0.5, 0.0), one_step - values)
    assert np.array_equal(lambda_returns(rewards, next_values, *flags, 0.5, 0.0), one_step)


@pytest.mark.equation("7.8", defining=True)
@pytest.mark.equation("7.9")
@theorem
@given(valued_segments(frozen=False), gammas, lams)
def test_lambda_return_is_the_weighted_mean_of_n_step_returns(segment, gamma, lam):
    rewards, _, next_values, terminated, truncated = segment
    actual = lambda_returns(rewards, next_values, terminated, truncated, gamma, lam)
    equal(actual, weighted_by_definition(segment, gamma, lam))


@pytest.mark.equation("7.9", defining=True)
@theorem
@given(valued_segments(frozen=False), gammas, lams)
def test_lambda_return_follows_its_recursion(segment, gamma, lam):
    rewards, _, next_values, terminated, truncated = segment
    G = lambda_returns(rewards, next_values, terminated, truncated, gamma, lam)
    for t, n in np.ndindex(G.shape):
        expected = rewards[t, n]
        if not terminated[t, n]:
            cut = truncated[t, n] or t == len(G) - 1
            later = next_values[t, n] if cut else (1 - lam) * next_values[t, n] + lam * G[t + 1, n]
            expected += gamma * later
        equal(G[t, n], expected)


@pytest.mark.equation("7.8", "7.9")
@given(valued_segments(frozen=False), gammas)
def test_ends_of_the_lambda_return_are_the_one_step_return_and_the_whole_window(segment, gamma):
    rewards, _, next_values, terminated, truncated = segment
    flags = terminated, truncated
    equal(
        lambda_returns(rewards, next_values, *flags, gamma, 0.0), n_step_returns(rewards, next_values, *flags, gamma, 1)
    )
    whole = discounted_returns(rewards, *flags, gamma, np.nan_to_num(next_values))
    equal(lambda_returns(rewards, next_values, *flags, gamma, 1.0), whole)


@pytest.mark.equation("7.10", defining=True)
@pytest.mark.equation("7.20")
@theorem
@given(valued_segments(), gammas, lams)
def test_lambda_return_minus_the_value_is_the_sum_of_td_errors_and_gae(segment, gamma, lam):
    rewards, values, next_values, *flags = segment
    expected = sums_of_td_errors(segment, gamma * lam, gamma)
    equal(lambda_returns(rewards, next_values, *flags, gamma, lam) - values, expected)
    equal(gae(*segment, gamma, lam), expected)


@pytest.mark.equation("7.10")
def test_the_sum_of_td_errors_needs_the_same_weights_in_all_terms():
    rewards, flags = np.zeros((2, 1)), np.zeros((2, 1), dtype=bool)
    values, next_values = np.array([[0.0], [1]]), np.array([[2.0], [0]])  # v̂(S_1) is 2 and then 1
    G = lambda_returns(rewards, next_values, flags, flags, 1.0, 1.0)
    assert (G - values).ravel().tolist() == [0, -1]
    assert gae(rewards, values, next_values, flags, flags, 1.0, 1.0).ravel().tolist() == [1, -1]


@pytest.mark.equation("7.19", defining=True)
@theorem
@given(valued_segments(), gammas, st.integers(1, 15))
def test_n_step_advantage_is_the_discounted_sum_of_n_td_errors(segment, gamma, n):
    rewards, values, next_values, *flags = segment
    A = n_step_returns(rewards, next_values, *flags, gamma, n) - values
    equal(A, sums_of_td_errors(segment, gamma, gamma, n))


@pytest.mark.equation("7.20", defining=True)
@theorem
@given(valued_segments(), gammas, lams)
def test_gae_is_the_exponentially_weighted_sum_of_n_step_advantages(segment, gamma, lam):
    expected = weighted_by_definition(segment, gamma, lam) - segment[1]
    equal(weighted_advantages(*segment, gamma, lam), expected)
    equal(gae(*segment, gamma, lam), expected)


@pytest.mark.equation("7.20")
@given(valued_segments(frozen=False), gammas, lams)
def test_gae_is_the_sum_of_td_errors_whatever_the_values(segment, gamma, lam):
    equal(gae(*segment, gamma, lam), sums_of_td_errors(segment, gamma * lam, gamma))


@pytest.mark.equation("7.19", "7.20")
@given(valued_segments(frozen=False), gammas, lams)
def test_weighted_advantage_is_the_lambda_return_minus_the_value_whatever_the_values(segment, gamma, lam):
    rewards, values, next_values, *flags = segment
    expected = lambda_returns(rewards, next_values, *flags, gamma, lam) - values
    equal(weighted_advantages(*segment, gamma, lam), expected)


def normalised(segment, gamma, lam):
    """The n-step advantages of the first row in the mean that lecture notes have, over the finite sum of weights."""
    rewards, values, next_values, *flags = segment
    weights = lam ** np.arange(len(rewards))
    G = [n_step_returns(rewards, next_values, *flags, gamma, n + 1)[0, 0] for n in range(len(rewards))]
    return weights @ (np.array(G) - values[0, 0]) / weights.sum()


@pytest.mark.equation("7.20")
@pytest.mark.parametrize("L", [1, 2, 3, 6])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.9, 1.0])
def test_the_mean_normalised_by_the_finite_sum_of_weights_has_other_weights_than_gae(L, gamma, lam):
    flags, zero = np.zeros((L, 1), dtype=bool), np.zeros((L, 1))
    for k in range(L):  # the weight of δ_k: a reward of 1 at step k, and no values
        reward = np.eye(L)[:, [k]]
        segment = reward, zero, zero, flags, flags
        equal(gae(*segment, gamma, lam)[0, 0], (gamma * lam) ** k)
        share = (L - k) / L if lam == 1 else (lam**k - lam**L) / (1 - lam**L)
        equal(normalised(segment, gamma, lam), gamma**k * share)
        same = L == 1 or lam == 0 or k == 0
        assert (abs(normalised(segment, gamma, lam) - gae(*segment, gamma, lam)[0, 0]) < 1e-12) == same


@pytest.mark.equation("7.20")
def test_for_two_steps_and_lambda_one_half_the_normalised_mean_has_a_third_where_gae_has_a_half():
    flags, zero = np.zeros((2, 1), dtype=bool), np.zeros((2, 1))
    segment = np.array([[0.0], [1]]), zero, zero, flags, flags
    equal(normalised(segment, 1.0, 0.5), 1 / 3)
    equal(gae(*segment, 1.0, 0.5)[0, 0], 1 / 2)
    equal(weighted_advantages(*segment, 1.0, 0.5)[0, 0], 1 / 2)


FUNCTIONS = {
    "n_step": lambda R, v, v_next, *flags, gamma, lam: n_step_returns(R, v_next, *flags, gamma, 3),
    "lambda": lambda R, v, v_next, *flags, gamma, lam: lambda_returns(R, v_next, *flags, gamma, lam),
    "gae": lambda *segment, gamma, lam: gae(*segment, gamma, lam),
    "weighted": lambda *segment, gamma, lam: weighted_advantages(*segment, gamma, lam),
}
each_function = pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS.keys())


@each_function
@given(valued_segments(frozen=False), gammas, lams)
def test_columns_do_not_mix_and_arguments_stay_as_they_were(f, segment, gamma, lam):
    before = [a.copy() for a in segment]
    whole = f(*segment, gamma=gamma, lam=lam)
    assert all(np.array_equal(a, b, equal_nan=a.dtype != bool) for a, b in zip(segment, before, strict=True))
    for n in range(whole.shape[1]):
        assert np.array_equal(whole[:, [n]], f(*(a[:, [n]] for a in segment), gamma=gamma, lam=lam))


@each_function
@given(valued_segments(frozen=False), gammas, lams)
def test_an_episode_does_not_see_the_one_after_it_in_its_column(f, segment, gamma, lam):
    _, _, _, terminated, truncated = segment
    whole = f(*segment, gamma=gamma, lam=lam)
    for n in range(whole.shape[1]):
        ends = [*np.flatnonzero((terminated | truncated)[:, n]) + 1, len(whole)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            if start < end:
                alone = f(*(a[start:end, [n]] for a in segment), gamma=gamma, lam=lam)
                equal(whole[start:end, [n]], alone)


@each_function
def test_lists_and_whole_numbers_will_do(f):
    segment = [[1], [2]], [[3], [4]], [[4], [5]], [[False], [True]], [[False], [False]]
    arrays = [np.array(a, dtype=float) for a in segment[:3]] + [np.array(a) for a in segment[3:]]
    assert np.array_equal(f(*segment, gamma=1, lam=1), f(*arrays, gamma=1.0, lam=1.0))
    assert f(*arrays, gamma=1.0, lam=1.0)[0, 0] == (3 if f in (FUNCTIONS["n_step"], FUNCTIONS["lambda"]) else 0)


# Means, by enumeration of all episodes


def expectation(probability, values, which):
    """Mean of ``values`` (N,) over the columns ``which``."""
    return probability[which] @ values[which] / probability[which].sum()


def chain(p):
    """P_π of a problem, with the rows and columns of terminal states zero, and r_π."""
    pi = p.mdp.policy_matrix(p.policy, p.theta)
    P, live = np.einsum("sa,sat->st", pi, p.mdp.P), ~p.mdp.terminal
    R = p.mdp.R if p.mdp.R.ndim == 2 else (p.mdp.P * p.mdp.R).sum(axis=2)
    return P * live * live[:, None], (pi * R).sum(axis=1)


def some_values(p):
    """v̂ at random, zero at terminal states."""
    return p.rng.normal(size=p.mdp.n_states) * ~p.mdp.terminal


def episodes(p, horizon, v_hat):
    """Every trajectory as (rewards, values, next_values, terminated, truncated), first states and actions, and odds."""
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, horizon)
    values, next_values = v_hat[traj.obs] * traj.valid, v_hat[traj.next_obs] * traj.valid
    segment = traj.rewards, values, next_values, traj.terminated, traj.truncated
    return segment, traj.obs[0], traj.actions[0], probability


def layered(rng, gamma, n=3, A=2):
    """A problem whose episodes end within n steps, as each leads to a higher state."""
    P, R = np.zeros((n + 1, A, n + 1)), rng.normal(size=(n + 1, A, n + 1))
    for s in range(n):
        P[s, :, s + 1 :] = rng.dirichlet(np.ones(n - s), size=A)
    P[n, :, n], R[n] = 1, 0
    mdp = TabularMDP(P, R, gamma, np.append(np.full(n, 1 / n), 0))
    policy = SoftmaxLinear(OneHot(n + 1), A)
    return S.Problem(mdp, policy, rng.normal(size=policy.n_params), rng)


layers = st.builds(layered, S.generators, st.sampled_from([0.5, 0.9, 1.0]))


def near(actual, expected):
    """Equal to 1e-10: systems with a condition number of at most 40 and values of at most 60 are solved to 1e-12."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.equation("7.1")
@theorem
@given(S.problems(most=3))
def test_mean_td_error_is_the_bellman_error(p):
    v_hat, (P, r) = some_values(p), chain(p)
    segment, s0, _, probability = episodes(p, 1, v_hat)
    delta = gae(*segment, p.mdp.gamma, 0.0)[0]
    for s in np.flatnonzero(~p.mdp.terminal):
        near(expectation(probability, delta, s0 == s), (r + p.mdp.gamma * P @ v_hat - v_hat)[s])


@pytest.mark.equation("7.7", defining=True)
@theorem
@given(S.problems(most=2), st.integers(1, 3), st.integers(1, 4))
def test_bias_of_an_n_step_return_is_that_of_the_value_n_steps_later(p, horizon, n):
    v_hat, (P, _), gamma = some_values(p), chain(p), p.mdp.gamma
    e = v_hat - p.mdp.value(p.policy, p.theta)
    (rewards, _, v_next, *flags), s0, _, probability = episodes(p, horizon, v_hat)
    G = n_step_returns(rewards, v_next, *flags, gamma, n)[0]
    m = min(n, horizon)  # the window is cut at the horizon
    expected = gamma**m * np.linalg.matrix_power(P, m) @ e
    live = np.flatnonzero(~p.mdp.terminal)
    bias = np.array([expectation(probability, G, s0 == s) for s in live]) - p.mdp.value(p.policy, p.theta)[live]
    near(bias, expected[live])
    assert np.abs(bias).max() <= gamma**m * np.abs(e).max() + 1e-10


@pytest.mark.equation("7.7")
@theorem
@given(layers)
def test_with_the_true_values_n_step_returns_are_unbiased_and_their_variance_does_not_fall_with_n(p):
    v = p.mdp.value(p.policy, p.theta)
    (rewards, _, v_next, *flags), s0, _, probability = episodes(p, 3, v)
    for s in range(3):
        G = [n_step_returns(rewards, v_next, *flags, p.mdp.gamma, n)[0] for n in (1, 2, 3)]
        near([expectation(probability, g, s0 == s) for g in G], v[s])
        variances = [expectation(probability, (g - v[s]) ** 2, s0 == s) for g in G]
        assert (np.diff(variances) >= -1e-12).all()


def fork():
    """The example of the chapter after the error reduction, its two episodes as columns, and their odds."""
    valid = np.array([[1, 1], [1, 1], [0, 1]], dtype=bool)
    terminated = np.array([[0, 0], [1, 0], [0, 1]], dtype=bool)
    v_hat = np.array([0.0, 1, -1, 1, 0])
    s = np.array([[0, 0], [1, 2], [4, 3]])
    s_next = np.array([[1, 2], [4, 3], [4, 4]])
    return (np.zeros((3, 2)), v_hat[s], v_hat[s_next], terminated, ~valid), np.array([0.5, 0.5])


@pytest.mark.equation("7.7")
@pytest.mark.parametrize(
    ("n", "returns", "bias", "variance"), [(1, [1, -1], 0, 1), (2, [0, 1], 0.5, 0.25), (3, [0, 0], 0, 0)]
)
def test_for_a_wrong_value_neither_bias_nor_variance_is_ordered_by_n(n, returns, bias, variance):
    (rewards, _, v_next, *flags), odds = fork()
    G = n_step_returns(rewards, v_next, *flags, 1.0, n)[0]
    assert G.tolist() == returns
    assert odds @ G == bias
    assert odds @ (G - bias) ** 2 == variance


@pytest.mark.equation("7.21")
@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_bias_of_gae_need_not_be_monotone_in_lambda(lam):
    segment, odds = fork()
    A = gae(*segment, 1.0, lam)[0]
    assert A.tolist() == [1 - lam, -((1 - lam) ** 2)]
    assert odds @ A == lam * (1 - lam) / 2 <= 1 / 8
    assert odds @ (A - odds @ A) ** 2 == (1 - lam) ** 2 * (2 - lam) ** 2 / 4


@pytest.mark.equation("7.21")
@given(valued_segments(), gammas)
def test_ends_of_gae_are_the_td_error_and_the_return_minus_the_value(segment, gamma):
    rewards, values, next_values, *flags = segment
    equal(gae(*segment, gamma, 0.0), td_errors(*segment[:4], gamma))
    G = discounted_returns(rewards, *flags, gamma, np.nan_to_num(next_values))
    equal(gae(*segment, gamma, 1.0), G - values)


def mean_gae(p, horizon, v_hat, lam):
    """E[Â_0 | s, a] over all trajectories, with NaN in terminal states: (S, A)."""
    segment, s0, a0, probability = episodes(p, horizon, v_hat)
    A, mean = gae(*segment, p.mdp.gamma, lam)[0], np.full(p.mdp.P.shape[:2], np.nan)
    for s, a in np.argwhere(np.ones(mean.shape)):
        if not p.mdp.terminal[s]:
            mean[s, a] = expectation(probability, A, (s0 == s) & (a0 == a))
    return mean


@pytest.mark.equation("7.21", defining=True)
@theorem
@given(layers, lams)
def test_bias_of_gae_over_whole_episodes_is_the_error_of_the_value_there_and_later(p, lam):
    v_hat, (P, _), gamma = some_values(p), chain(p), p.mdp.gamma
    e = v_hat - p.mdp.value(p.policy, p.theta)
    bias = mean_gae(p, 3, v_hat, lam) - p.mdp.advantage(p.policy, p.theta)
    seen = np.zeros(bias.shape)
    for k in range(3):
        seen += gamma * (1 - lam) * (gamma * lam) ** k * p.mdp.P @ np.linalg.matrix_power(P, k) @ e
    near(bias[:3], (seen - e[:, None])[:3])
    if gamma * lam < 1:
        assert np.abs(seen).max() <= gamma * (1 - lam) / (1 - gamma * lam) * np.abs(e).max() + 1e-12


@pytest.mark.equation("7.21")
@theorem
@given(S.problems(most=2), st.integers(1, 3), lams)
def test_bias_of_gae_cut_after_a_fixed_number_of_steps_has_the_bootstrap_there_in_full(p, L, lam):
    v_hat, (P, _), gamma = some_values(p), chain(p), p.mdp.gamma
    e = v_hat - p.mdp.value(p.policy, p.theta)
    bias = mean_gae(p, L, v_hat, lam) - p.mdp.advantage(p.policy, p.theta)
    later = [p.mdp.P @ np.linalg.matrix_power(P, k) @ e for k in range(L)]
    expected = gamma * (gamma * lam) ** (L - 1) * later[-1] - e[:, None]
    for k in range(L - 1):
        expected += gamma * (1 - lam) * (gamma * lam) ** k * later[k]
    live = ~p.mdp.terminal
    near(bias[live], expected[live])


@pytest.mark.equation("7.21")
@theorem
@given(S.problems(most=2), st.integers(1, 3), lams)
def test_with_the_true_values_gae_is_unbiased_and_its_variance_the_sum_of_those_of_its_terms(p, L, lam):
    v, gamma = p.mdp.value(p.policy, p.theta), p.mdp.gamma
    live = ~p.mdp.terminal
    near(mean_gae(p, L, v, lam)[live], p.mdp.advantage(p.policy, p.theta)[live])
    segment, s0, a0, probability = episodes(p, L, v)
    A, delta = (gae(*segment, gamma, x) for x in (lam, 0.0))
    for s, a in np.argwhere(np.ones(p.mdp.P.shape[:2])):
        which = (s0 == s) & (a0 == a)
        if live[s]:
            variances = []
            for x in (A[0], *delta):
                variances.append(expectation(probability, (x - expectation(probability, x, which)) ** 2, which))
            near(variances[0], (gamma * lam) ** (2 * np.arange(L)) @ variances[1:])


@pytest.mark.equation("8.10")
@pytest.mark.parametrize(("lam", "as_termination"), [(0.0, 50.25), (0.9, 48.12), (1.0, 37.24)])
def test_one_state_with_a_time_limit_has_its_value_only_if_truncation_is_no_termination(lam, as_termination):
    gamma, L = 0.99, 100
    rewards, no = np.ones((L, 1)), np.zeros((L, 1), dtype=bool)
    last = np.arange(L)[:, None] == L - 1

    def total(v, *flags):
        return gae(rewards, np.full((L, 1), v), np.full((L, 1), v), *flags, gamma, lam).sum()

    assert abs(total(1 / (1 - gamma), no, last)) < 1e-9
    below, above = total(as_termination - 0.005, last, no), total(as_termination + 0.005, last, no)
    assert above < 0 < below  # the errors of an episode sum to zero in between


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_outside_the_unit_interval_is_refused(gamma):
    flags = np.zeros((2, 1), dtype=bool)
    with pytest.raises(ValueError, match="gamma must lie in"):
        discounted_returns(np.ones((2, 1)), flags, flags, gamma)


@pytest.mark.parametrize("name", ["rewards", "terminated", "truncated", "bootstrap"])
def test_shapes_that_differ_are_refused_by_name(name):
    arrays = {name: np.zeros((2, 1), dtype=bool) for name in ("terminated", "truncated")}
    arrays |= {name: np.zeros((2, 1)) for name in ("rewards", "bootstrap")}
    arrays[name] = arrays[name][:1]
    with pytest.raises(ValueError, match=rf"'{name}': \(1, 1\)"):
        discounted_returns(**arrays, gamma=1.0)


def test_flat_arrays_and_flags_that_are_not_boolean_are_refused():
    flags = np.zeros((2, 1), dtype=bool)
    with pytest.raises(ValueError, match=r"\(T, N\)"):
        discounted_returns(np.ones(2), flags[:, 0], flags[:, 0], 1.0)
    with pytest.raises(TypeError, match="terminated must be boolean"):
        discounted_returns(np.ones((2, 1)), np.zeros((2, 1)), flags, 1.0)


def test_leave_one_out_of_one_episode_is_refused():
    with pytest.raises(ValueError, match="at least 2 episodes"):
        leave_one_out_mean(np.arange(3), np.ones(3))


@pytest.mark.parametrize(
    ("f", "name"), [(f, name) for f in FUNCTIONS for name in ("gamma", "lam") if (f, name) != ("n_step", "lam")]
)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.9", None])
def test_gamma_and_lambda_outside_the_unit_interval_are_refused_by_name(f, name, value):
    ones, flags = np.ones((2, 1)), np.zeros((2, 1), dtype=bool)
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {value!r}"):
        FUNCTIONS[f](ones, ones, ones, flags, flags, **{"gamma": 0.9, "lam": 0.9} | {name: value})


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None])
def test_a_number_of_steps_that_is_none_is_refused(n):
    ones, flags = np.ones((2, 1)), np.zeros((2, 1), dtype=bool)
    with pytest.raises(ValueError, match=f"n must be an integer of at least 1, got {n!r}"):
        n_step_returns(ones, ones, flags, flags, 0.9, n)


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (f, name)
        for f in FUNCTIONS
        for name in ("rewards", "values", "next_values", "terminated", "truncated")
        if name != "values" or f in ("gae", "weighted")
    ],
)
def test_arrays_of_another_shape_are_refused_by_name(f, name):
    names = ("rewards", "values", "next_values", "terminated", "truncated")
    arrays = dict.fromkeys(names[:3], np.ones((2, 1))) | dict.fromkeys(names[3:], np.zeros((2, 1), dtype=bool))
    with pytest.raises(ValueError, match=rf"'{name}': \(3, 1\)"):
        FUNCTIONS[f](*(arrays | {name: np.resize(arrays[name], (3, 1))}).values(), gamma=0.9, lam=0.9)
    with pytest.raises(ValueError, match=r"must all have one shape \(T, N\)"):
        FUNCTIONS[f](*(a[:, 0] for a in arrays.values()), gamma=0.9, lam=0.9)


@each_function
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_flags_that_are_not_boolean_are_refused_by_name(f, name):
    flags = {"terminated": np.zeros((2, 1), dtype=bool), "truncated": np.zeros((2, 1), dtype=bool)}
    flags[name] = np.zeros((2, 1))
    with pytest.raises(TypeError, match=f"{name} must be boolean, got float64"):
        f(*[np.ones((2, 1))] * 3, *flags.values(), gamma=0.9, lam=0.9)


# Standardised advantages

batches = st.integers(2, 12).flatmap(S.reals).filter(lambda A: np.ptp(A) > 1e-3)


@pytest.mark.equation("11.15", defining=True)
@given(batches)
def test_standardised_advantages_have_mean_zero_and_deviation_one_and_keep_their_proportions(A):
    before, B = A.copy(), len(A)
    mean = sum(A) / B
    deviation = (sum((a - mean) ** 2 for a in A) / B) ** 0.5
    found = normalized_advantages(A, "standardize", np.abs(A).max())
    np.testing.assert_allclose(found, [(a - mean) / deviation for a in A], rtol=0, atol=1e-11)
    np.testing.assert_array_equal(A, before)
    assert abs(found.mean()) < 1e-11
    assert found.std() == pytest.approx(1, rel=1e-12)


@pytest.mark.equation("11.15")
@given(batches, st.floats(-100, 100), st.sampled_from([1e-6, 0.1, 10.0, 1e6]))
def test_neither_the_level_nor_the_unit_of_advantages_matters(A, shift, unit):
    found = normalized_advantages(unit * (A + shift), "standardize", unit * 200)
    np.testing.assert_allclose(
        found, normalized_advantages(A, "standardize", 3.0), rtol=0, atol=1e-9
    )  # of 1e-14 in A + shift, over 1e-4


@pytest.mark.equation("11.15")
@pytest.mark.parametrize("A", [[0.0, 0.0], [3.7, 3.7, 3.7], [-2.0], [0.0]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_advantages_that_are_all_equal_say_that_no_row_is_better_than_another(A, scale):
    np.testing.assert_array_equal(normalized_advantages(np.array(A), "standardize", scale), np.zeros(len(A)))


@pytest.mark.equation("11.15")
@pytest.mark.parametrize(
    ("A", "scale", "rounding"),
    [
        ([1e-13, -1e-13], 1e3, True),  # differences of values of 1000: noise
        ([1e-13, -1e-13], 1e-6, False),  # of values of 1e-6: a signal
        ([1e-13, -1e-13], 0.0, False),
        ([1.0 + 1e-13, 1.0 - 1e-13], 0.0, True),  # nearly equal advantages
        ([1e-3, -1e-3], 1e3, False),
        ([5e-7, -5e-7], 1e3, True),
        ([2e-6, -2e-6], 1e3, False),  # either side of 1e-9 of the scale
    ],
)
def test_a_deviation_that_is_rounding_of_the_values_or_of_the_advantages_is_not_blown_up(A, scale, rounding):
    A = np.array(A)
    expected = [0.0, 0.0] if rounding else [1.0, -1.0]
    np.testing.assert_allclose(normalized_advantages(A, "standardize", scale), expected, rtol=1e-9)


@pytest.mark.equation("11.15")
def test_advantages_that_are_not_finite_stay_visible():
    with np.errstate(invalid="ignore"):
        assert np.isnan(normalized_advantages(np.array([1.0, np.nan]), "standardize", 1.0)).any()
        assert not np.isfinite(normalized_advantages(np.array([1.0, np.inf]), "standardize", 1.0)).all()
