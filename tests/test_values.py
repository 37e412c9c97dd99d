"""Linear values and their fits; more on the ridge fit is with its equation in test_reinforce.py."""

from typing import NamedTuple

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import BOX, CASES, independent_features, stream, vector
from strategies import examples, generators, lams, layers, seeds

from npg import features as F
from npg.exact import enumerate_trajectories
from npg.features import OneHot, Polynomial
from npg.gradcheck import numerical_gradient
from npg.returns import discounted_returns
from npg.traces import add_traces
from npg.trajectories import Trajectories
from npg.values import LinearValue, clipped_error, fitted_td, least_mean_squares, lstd, ridge_least_squares


@pytest.mark.equation("1.14", defining=True)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_ridge_fit_is_the_least_squares_fit_of_the_rows_and_of_sqrt_kappa_rows(d, seed):
    rng = np.random.default_rng(seed)
    x, y, ridge = rng.normal(size=(30, d)), rng.normal(size=30), 0.7
    augmented = np.vstack([x, np.sqrt(ridge) * np.eye(d)]), np.concatenate([y, np.zeros(d)])
    expected = np.linalg.lstsq(*augmented, rcond=None)[0]
    assert np.allclose(ridge_least_squares(x, y, ridge), expected, rtol=1e-9, atol=1e-11)


def test_fit_on_noiseless_values_recovers_them():
    rng = np.random.default_rng(0)
    v = LinearValue(Polynomial(spaces.Box(-1, 1, (2,)), degree=2))
    obs, w = rng.uniform(-1, 1, size=(50, 2)), rng.normal(size=v.n_params)
    assert np.allclose(ridge_least_squares(v.x(obs), v.value(w, obs), 0.0), w)


def test_tabular_value_is_a_table_and_its_fit_the_mean_of_each_state():
    v = LinearValue(OneHot(3))
    obs, targets = np.array([0, 0, 2]), np.array([1.0, 3.0, 5.0])
    w = ridge_least_squares(v.x(obs), targets, 1e-12)
    assert np.allclose(w, [2, 0, 5])
    assert np.array_equal(v.value(w, np.array([2, 1])), w[[2, 1]])


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_a_fit_to_what_is_not_finite_says_so(ridge):
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="not finite"):
        ridge_least_squares(np.eye(2), np.array([1.0, np.inf]), ridge)


@pytest.mark.equation("1.14")
@given(st.integers(1, 6), st.integers(1, 9), seeds, st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_fit_with_a_centre_minimises_the_squares_and_the_distance_from_it(d, rows, seed, ridge):
    rng = np.random.default_rng(seed)
    x, y, centre = rng.normal(size=(rows, d)), rng.normal(size=rows), rng.normal(size=d)
    w = ridge_least_squares(x, y, ridge, centre)
    gradient = x.T @ (x @ w - y) + ridge * (w - centre)
    assert np.abs(gradient).max() <= 1e-9 * (1 + ridge)
    closest = ridge_least_squares(x, y, 0.0, centre)  # of all best fits the one nearest to the centre
    assert np.allclose(closest, centre + np.linalg.pinv(x, rcond=1e-12) @ (y - x @ centre), rtol=1e-6, atol=1e-9)
    assert np.allclose(ridge_least_squares(x, y, ridge, np.zeros(d)), ridge_least_squares(x, y, ridge))


def test_what_a_batch_does_not_say_a_fit_from_the_last_weights_keeps():
    v = LinearValue(OneHot(3))
    w = v.fit(np.array([1.0, 2.0, 3.0]), v.features(np.array([0, 0])), np.array([5.0, 7.0]), 2.0)
    np.testing.assert_allclose(w, [(12 + 2 * 1) / 4, 2, 3], rtol=1e-14)


def test_errors_of_a_fit_name_the_argument():
    x, y = np.ones((4, 2)), np.ones(4)
    with pytest.raises(ValueError, match=r"x and y must have shapes \(B, d\) and \(B,\)"):
        ridge_least_squares(x, np.ones(3), 1.0)
    with pytest.raises(ValueError, match="ridge must be a number of at least 0, got -1"):
        ridge_least_squares(x, y, -1)
    with pytest.raises(ValueError, match=r"centre must have shape \(2,\) to go with x, got \(3,\)"):
        ridge_least_squares(x, y, 1.0, np.ones(3))
    with pytest.raises(ValueError, match="ridge must be larger where features are dependent, or 0, got 1e-17"):
        ridge_least_squares(x, y, 1e-17)


def rows_of_data(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    return rng.normal(size=d), rng.normal(size=(n, d)), rng.normal(size=n)


@pytest.mark.equation("1.14")
@given(seeds, st.integers(1, 6))
def test_the_incremental_step_of_a_row_is_half_alpha_down_the_gradient_of_its_squared_error(seed, d):
    w, x, y = rows_of_data(seed, 1, d)
    gradient, _ = numerical_gradient(lambda w: ((x @ w - y) ** 2).sum(), w, "complex")
    after, before = least_mean_squares(w, x, y, 0.3)
    assert np.allclose(after, w - 0.15 * gradient, rtol=1e-12, atol=1e-13)
    assert np.allclose(before, x @ w, rtol=1e-12, atol=1e-13)


@given(seeds, st.integers(0, 8), st.integers(1, 6))
def test_an_incremental_fit_goes_row_by_row_in_order_and_leaves_its_arguments_alone(seed, split, d):
    w, x, y = rows_of_data(seed, 8, d)
    given_ = w.copy(), x.copy(), y.copy()
    half, before = least_mean_squares(w, x[:split], y[:split], 0.3)
    rest = least_mean_squares(half, x[split:], y[split:], 0.3)
    whole = least_mean_squares(w, x, y, 0.3)
    assert np.array_equal(whole[0], rest[0])
    assert np.array_equal(whole[1], [*before, *rest[1]])
    assert all(map(np.array_equal, given_, (w, x, y)))


@given(seeds)
def test_on_a_constant_feature_the_incremental_fit_is_an_exponential_average(seed):
    (w,), _, y = rows_of_data(seed, 10, 1)
    recency = 0.3 * 0.7 ** np.arange(10)[::-1]
    after, _ = least_mean_squares(np.array([w]), np.ones((10, 1)), y, 0.3)
    assert np.allclose(after, 0.7**10 * w + recency @ y, rtol=1e-12, atol=1e-13)


# Monte-Carlo regression, LSTD, fitted TD


class Data(NamedTuple):
    """What ``lstd`` takes, in its order."""

    x: np.ndarray
    rewards: np.ndarray
    x_next: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray

    def flat(self):
        """The valid rows for ``fitted_td``: x, rewards, x_next, terminated."""
        return tuple(a[self.valid] for a in self[:4])


def all_episodes(p, x, horizon=3):
    """Every trajectory, with x, rewards and x_next times √Pr: what is quadratic in them becomes its exact mean."""
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, horizon)
    root = np.sqrt(probability)
    features = (x[states] * (traj.valid * root)[..., None] for states in (traj.obs, traj.next_obs))
    return Data(next(features), traj.rewards * root, next(features), traj.terminated, traj.truncated, traj.valid)


@st.composite
def recorded(draw, terminate=False):
    """Random rows of a few columns, several episodes in each, whose successors are the next rows but for cuts."""
    rng = draw(generators)
    T, N, d = draw(st.integers(8, 14)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    terminated, truncated = rng.random((2, T, N)) < 0.2
    if terminate:
        truncated[:] = False
        terminated[-1] = True
    x, x_next = rng.normal(size=(2, T, N, d))
    x_next[:-1] = np.where((terminated | truncated)[:-1, :, None], x_next[:-1], x[1:])
    return Data(x, rng.normal(size=(T, N)), x_next, terminated, truncated, np.ones((T, N), dtype=bool))


def moments(data, gamma, lam):
    """Â and b̂, one row at a time."""
    x, rewards, x_next, terminated, truncated, valid = data
    d = x.shape[2]
    A, b = np.zeros((d, d)), np.zeros(d)
    for n in range(x.shape[1]):
        z = np.zeros(d)
        for t in range(x.shape[0]):
            if not valid[t, n]:
                continue
            z = gamma * lam * z + x[t, n]
            successor = np.zeros(d) if terminated[t, n] else x_next[t, n]
            A += np.outer(z, x[t, n] - gamma * successor)
            b += z * rewards[t, n]
            if terminated[t, n] or truncated[t, n]:
                z = np.zeros(d)
    return A, b


def same_solution(w, expected, A):
    """Equal to the error of a backward stable solution, condition number times rounding, with a factor of 1000."""
    assert np.abs(w - expected).max() <= 2e-13 * np.linalg.cond(A) * (1 + np.abs(expected).max())


@pytest.mark.equation("7.2", defining=True)
@given(layers, st.integers(1, 3))
@examples(200)
def test_monte_carlo_regression_on_all_episodes_is_the_projection_of_the_values(p, d):
    x = independent_features(p, d)
    data = all_episodes(p, x)
    G = discounted_returns(data.rewards, data.terminated, data.truncated, p.mdp.gamma)
    w = ridge_least_squares(data.x[data.valid], G[data.valid], 0.0)
    weight = p.mdp.visitation(p.policy, p.theta, gamma=1)[:-1]
    v, x = p.mdp.value(p.policy, p.theta)[:-1], x[:-1]
    projection = x @ np.linalg.solve(x.T @ (weight[:, None] * x), x.T @ (weight * v))
    assert np.allclose(x @ w, projection, rtol=0, atol=1e-9)
    assert np.allclose(x.T @ (weight * (v - x @ w)), 0, atol=1e-9)  # so that no other w is nearer in this norm
    elsewhere = p.rng.normal(size=d)
    step = np.einsum("tnd,tn->d", data.x, G - data.x @ elsewhere)
    assert np.allclose(step, x.T @ (weight * (v - x @ elsewhere)), rtol=0, atol=1e-9)


@pytest.mark.equation("7.2")
def test_monte_carlo_regression_is_biased_for_finitely_many_episodes():
    lengths = range(1, 51)  # longer ones have a probability of 1e-15
    returns = {T: np.arange(T, 0, -1.0) for T in lengths}

    def fit(*Ts):
        y = np.concatenate([returns[T] for T in Ts])
        return ridge_least_squares(np.ones((len(y), 1)), y, 0.0)[0]

    assert sum(fit(T) / 2**T for T in lengths) == pytest.approx(3 / 2, abs=1e-9)
    assert sum(fit(T, U) / 2 ** (T + U) for T in lengths for U in lengths) == pytest.approx(5 / 3, abs=1e-9)


@pytest.mark.equation("7.17", defining=True)
@given(recorded(), st.sampled_from([0.0, 0.5, 1.0]), lams, st.sampled_from([0.0, 0.3]))
@examples(200)
def test_lstd_solves_the_sums_over_all_rows(data, gamma, lam, ridge):
    A, b = moments(data, gamma, lam)
    A = A + ridge * np.eye(len(b))
    same_solution(lstd(*data, gamma, lam, ridge), np.linalg.solve(A, b), A)


@pytest.mark.equation("7.17")
@given(recorded(), st.sampled_from([0.5, 1.0]), lams)
def test_lstd_leaves_no_total_td_update(data, gamma, lam):
    w = lstd(*data, gamma, lam, 0.0)
    total = 0
    for n in range(data.x.shape[1]):
        z = 0
        for t in range(len(data.x)):
            z = gamma * lam * z + data.x[t, n]
            bootstrap = 0 if data.terminated[t, n] else gamma * w @ data.x_next[t, n]
            total = total + (data.rewards[t, n] + bootstrap - w @ data.x[t, n]) * z
            if data.terminated[t, n] or data.truncated[t, n]:
                z = 0
    assert np.abs(total).max() <= 1e-10 * (1 + np.abs(w).max())


@pytest.mark.equation("7.16", "7.17")
@given(layers, st.integers(1, 3), lams)
@examples(200)
def test_lstd_with_exact_moments_is_the_fixed_point_of_td(p, d, lam):
    x = independent_features(p, d)
    w = lstd(*all_episodes(p, x), p.mdp.gamma, lam, 0.0)
    expected = p.mdp.td_fixed_point(p.policy, p.theta, x=x, lam=lam)
    A, _ = moments(all_episodes(p, x), p.mdp.gamma, lam)
    same_solution(w, expected, A)


@pytest.mark.equation("7.16", "7.17")
@given(layers, lams)
def test_lstd_of_a_table_with_exact_moments_is_the_value_and_zero_in_the_state_without_rows(p, lam):
    w = lstd(*all_episodes(p, np.eye(4)), p.mdp.gamma, lam, 0.0)
    assert np.allclose(w, p.mdp.value(p.policy, p.theta), rtol=0, atol=1e-9)


@pytest.mark.equation("7.17")
@given(recorded(terminate=True), st.sampled_from([0.5, 1.0]), st.sampled_from([0.0, 0.3]))
def test_lstd_with_lambda_one_is_the_regression_on_returns_if_all_episodes_terminate(data, gamma, ridge):
    G = discounted_returns(data.rewards, data.terminated, data.truncated, gamma)
    x = data.x[data.valid]
    w = lstd(*data, gamma, 1.0, ridge)
    same_solution(w, ridge_least_squares(x, G[data.valid], ridge), x.T @ x + ridge * np.eye(x.shape[1]))


@pytest.mark.equation("7.17")
@pytest.mark.parametrize(("lam", "w_a"), [(0.0, 3 / 4), (0.5, 3 / 8), (1.0, 0.0)])
def test_lstd_has_the_values_of_the_ab_example(lam, w_a):
    columns = [["a", "b"], *[["b"]] * 7]
    x, x_next = np.zeros((2, 2, 8, 2))
    rewards, (terminated, truncated, valid) = np.zeros((2, 8)), np.zeros((3, 2, 8), dtype=bool)
    for n, states in enumerate(columns):
        for t, s in enumerate(states):
            x[t, n, "ab".index(s)] = valid[t, n] = 1
        terminated[len(states) - 1, n] = True
    x_next[0, 0] = [0, 1]
    rewards[0, 1:7] = 1
    w = lstd(x, rewards, x_next, terminated, truncated, valid, 1.0, lam, 0.0)
    assert w == pytest.approx([w_a, 3 / 4], abs=1e-14)


def two_state_chain(truncated_after=None):
    """s_0 → s_1 → end with x = 1 and 2 and rewards 0 and 1; its first row alone if truncated there."""
    x, x_next = np.array([[[1.0]], [[2.0]]]), np.array([[[2.0]], [[0.0]]])
    flags = np.array([[False], [True]]), np.array([[False], [False]]), np.array([[True], [True]])
    if truncated_after:
        return Data(x[:1], np.zeros((1, 1)), x_next[:1], flags[1][:1], ~flags[1][:1], flags[2][:1])
    return Data(x, np.array([[0.0], [1.0]]), x_next, *flags)


@pytest.mark.equation("7.2", "7.16", "7.17")
@pytest.mark.parametrize(("lam", "w"), [(0.0, 2 / 3), (0.5, 5 / 8), (1.0, 3 / 5)])
def test_lstd_has_the_numbers_of_the_two_state_chain(lam, w):
    assert lstd(*two_state_chain(), 1.0, lam, 0.0) == pytest.approx([w], abs=1e-15)
    A = 3 + 2 * lam
    assert lstd(*two_state_chain(), 1.0, lam, 1.5) == pytest.approx([(2 + lam) / (A + 1.5)], abs=1e-15)


@pytest.mark.equation("7.17", "8.10")
@pytest.mark.parametrize(("lam", "as_termination"), [(0.0, 50.25), (0.9, 48.12), (1.0, 37.24)])
def test_a_time_limit_leaves_the_value_alone_and_a_termination_in_its_place_does_not(lam, as_termination):
    T, gamma = 100, 0.99
    x, rewards, no = np.ones((T, 1, 1)), np.ones((T, 1)), np.zeros((T, 1), dtype=bool)
    last = np.arange(T)[:, None] == T - 1
    assert lstd(x, rewards, x, no, last, ~no, gamma, lam, 0.0) == pytest.approx([100.0], abs=1e-9)
    assert lstd(x, rewards, x, last, no, ~no, gamma, lam, 0.0) == pytest.approx([as_termination], abs=0.005)
    assert lstd(x, rewards, x, last, last, ~no, gamma, lam, 0.0) == pytest.approx([as_termination], abs=0.005)


@pytest.mark.equation("7.11", "7.17")
@pytest.mark.parametrize(
    ("terminated", "truncated", "A", "b"),
    [([0, 1], [0, 0], 1 / 2 + 2, 2), ([0, 1], [1, 0], 1 / 2 + 1, 1), ([1, 1], [0, 0], 1 + 1, 1)],
    ids=["one episode", "truncated", "terminated"],
)
def test_traces_stop_at_terminations_and_time_limits(terminated, truncated, A, b):
    x, x_next, rewards = np.ones((2, 1, 1)), np.array([[[0.5]], [[0.0]]]), np.array([[0.0], [1.0]])
    flags = (np.array(flag, dtype=bool)[:, None] for flag in (terminated, truncated, [1, 1]))
    assert lstd(x, rewards, x_next, *flags, 1.0, 1.0, 0.0) == pytest.approx([b / A], abs=1e-15)


@pytest.mark.equation("7.17")
@given(recorded(), lams, seeds)
def test_rows_that_are_no_transitions_change_nothing_wherever_they_are(data, lam, seed):
    rng = np.random.default_rng(seed)
    T = len(data.x)
    where = np.sort(rng.permutation(T + 3)[:T])
    more = []
    for a in data:
        padded = np.full((T + 3, *a.shape[1:]), True if a.dtype == bool else np.nan)
        padded[where] = a
        more.append(padded)
    more[5][:] = np.isin(np.arange(T + 3), where)[:, None]
    A, _ = moments(data, 0.9, lam)
    same_solution(lstd(*more, 0.9, lam, 0.0), lstd(*data, 0.9, lam, 0.0), A)


@pytest.mark.equation("7.17")
@given(recorded(terminate=True), lams)
def test_episodes_side_by_side_and_one_after_another_give_the_same(data, lam):
    in_one_column = [np.concatenate(a.swapaxes(0, 1))[:, None] for a in data]
    A, _ = moments(data, 0.9, lam)
    same_solution(lstd(*in_one_column, 0.9, lam, 0.0), lstd(*data, 0.9, lam, 0.0), A)


@pytest.mark.equation("7.17")
@given(recorded(), lams)
def test_the_successor_of_a_termination_is_not_read_and_arguments_stay_as_they_were(data, lam):
    unread = data._replace(x_next=np.where(data.terminated[..., None], np.nan, data.x_next))
    before = [a.copy() for a in unread]
    assert np.array_equal(lstd(*data, 0.9, lam, 0.1), lstd(*unread, 0.9, lam, 0.1))
    assert all(np.array_equal(a, b, equal_nan=a.dtype != bool) for a, b in zip(unread, before, strict=True))


@given(recorded(), lams)
def test_lstd_of_dependent_features_has_the_values_of_independent_ones(data, lam):
    A, _ = moments(data, 0.9, lam)
    more = [np.concatenate([a, a.sum(axis=2, keepdims=True)], axis=2) for a in (data.x, data.x_next)]
    w = lstd(*data, 0.9, lam, 0.0)
    again = lstd(*data._replace(x=more[0], x_next=more[1]), 0.9, lam, 0.0)
    assert np.isfinite(again).all()
    same_solution(again[:-1] + again[-1], w, A)


def test_no_rows_give_no_values():
    data = two_state_chain()
    assert lstd(*data._replace(valid=~data.valid), 0.9, 0.5, 0.0).tolist() == [0]


@pytest.mark.equation("7.18", defining=True)
@given(recorded(), st.integers(1, 4), seeds, st.sampled_from([0.1, 1.0]))
def test_a_sweep_of_fitted_td_is_a_regression_on_the_target_of_the_last_weights(data, sweeps, seed, ridge):
    x, rewards, x_next, terminated = data.flat()
    w = start = np.random.default_rng(seed).normal(size=x.shape[1])
    for _ in range(sweeps):
        y = [rewards[i] + (0 if terminated[i] else 0.9 * w @ x_next[i]) for i in range(len(x))]
        w = np.linalg.solve(x.T @ x + ridge * np.eye(len(w)), x.T @ np.array(y))
    unread = np.where(terminated[:, None], np.nan, x_next)
    before = start.copy()
    actual = fitted_td(start, x, rewards, unread, terminated, 0.9, ridge, sweeps)
    assert np.allclose(actual, w, rtol=1e-9, atol=1e-9)
    assert np.array_equal(start, before)


@pytest.mark.equation("7.18")
@given(recorded(), st.sampled_from([0.0, 0.5]))
@examples(200)
def test_the_fixed_point_of_fitted_td_is_that_of_lstd_with_lambda_zero(data, ridge):
    w = lstd(*data, 0.9, 0.0, ridge)
    again = fitted_td(w, *data.flat(), 0.9, ridge, 1)
    x = data.flat()[0]
    C = x.T @ x + ridge * np.eye(x.shape[1])
    A, _ = moments(data, 0.9, 0.0)
    A = A + ridge * np.eye(len(A))
    assert np.abs(again - w).max() <= 2e-13 * (np.linalg.cond(A) + np.linalg.cond(C) ** 2) * (1 + np.abs(w).max())


@pytest.mark.equation("7.18")
@given(recorded(terminate=True), st.sampled_from([0.0, 0.5]), seeds)
@examples(200)
def test_fitted_td_contracts_if_all_episodes_terminate(data, ridge, seed):
    x, rewards, x_next, terminated = data.flat()
    C = x.T @ x + ridge * np.eye(x.shape[1])
    start, fixed = np.random.default_rng(seed).normal(size=x.shape[1]), lstd(*data, 0.9, 0.0, ridge)

    def distance(w):
        return np.sqrt((w - fixed) @ C @ (w - fixed))

    swept = fitted_td(start, x, rewards, x_next, terminated, 0.9, ridge, 20)
    assert distance(swept) <= 0.9**20 * distance(start) + 1e-8
    successors = np.where(terminated[:, None], 0, x_next)
    radius = np.abs(np.linalg.eigvals(np.linalg.solve(C, x.T @ successors))).max()  # for γ = 1
    assert radius < 1


@pytest.mark.equation("7.18")
def test_fitted_td_diverges_on_one_truncated_row_where_lstd_does_not():
    data = two_state_chain(truncated_after=1)
    w = [fitted_td(np.ones(1), *data.flat(), 0.9, 0.0, k)[0] for k in (1, 2, 10)]
    assert w == pytest.approx([1.8, 3.24, 1.8**10], rel=1e-13)
    assert lstd(*data, 0.9, 0.0, 0.0).tolist() == [0]


GOOD_ROWS = dict(zip(Data._fields, two_state_chain(), strict=True)) | {"gamma": 0.9, "lam": 0.5, "ridge": 0.1}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"gamma": 1.1}, ValueError, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"lam": -0.1}, ValueError, r"lam must lie in \[0, 1\], got -0.1"),
        ({"lam": np.nan}, ValueError, r"lam must lie in \[0, 1\], got nan"),
        ({"ridge": -1e-9}, ValueError, "ridge must be a number of at least 0, got -1e-09"),
        ({"ridge": None}, ValueError, "ridge must be a number of at least 0, got None"),
        ({"rewards": np.zeros(2)}, ValueError, r"'rewards': \(2,\)"),
        ({"valid": np.ones((2, 2), dtype=bool)}, ValueError, r"'valid': \(2, 2\)"),
        ({"valid": np.ones((2, 1))}, TypeError, "valid must be boolean, got float64"),
        ({"truncated": np.zeros((2, 1))}, TypeError, "truncated must be boolean, got float64"),
        ({"x": np.zeros((2, 1))}, ValueError, r"x and x_next must have shape \(2, 1, d\) to go with rewards"),
        ({"x": np.zeros((3, 1, 1))}, ValueError, r"\(2, 1, d\) to go with rewards, got \(3, 1, 1\) and \(2, 1, 1\)"),
        ({"x_next": np.zeros((2, 1, 3))}, ValueError, r"to go with rewards, got \(2, 1, 1\) and \(2, 1, 3\)"),
    ],
)
def test_bad_arguments_of_lstd_are_named(changed, error, message):
    with pytest.raises(error, match=message):
        lstd(**GOOD_ROWS | changed)


FLAT = dict(zip(Data._fields[:4], two_state_chain().flat(), strict=True)) | {"w": np.zeros(1), "gamma": 0.9}
FLAT |= {"ridge": 0.1, "sweeps": 2}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"gamma": np.nan}, ValueError, r"gamma must lie in \[0, 1\], got nan"),
        ({"ridge": -1}, ValueError, "ridge must be a number of at least 0, got -1"),
        ({"sweeps": 0}, ValueError, "sweeps must be an integer of at least 1, got 0"),
        ({"w": np.zeros(2)}, ValueError, r"w must have shape \(1,\) to go with x, got \(2,\)"),
        ({"rewards": np.zeros((2, 1))}, ValueError, r"one shape \(B,\), got \(2, 1\) and \(2,\)"),
        ({"terminated": np.zeros(3, dtype=bool)}, ValueError, r"one shape \(B,\), got \(2,\) and \(3,\)"),
        ({"terminated": np.zeros(2)}, TypeError, "terminated must be boolean, got float64"),
        ({"x": np.zeros(2)}, ValueError, r"x and x_next must have shape \(2, d\) to go with rewards, got \(2,\)"),
        ({"x_next": np.zeros((2, 2))}, ValueError, r"to go with rewards, got \(2, 1\) and \(2, 2\)"),
    ],
)
def test_bad_arguments_of_fitted_td_are_named(changed, error, message):
    with pytest.raises(error, match=message):
        fitted_td(**FLAT | changed)


@pytest.mark.parametrize("name", ["x", "rewards", "x_next"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_are_not_finite_are_an_error_of_both_fits(name, value):
    for fit, rows in ((lstd, GOOD_ROWS), (fitted_td, FLAT)):
        bad = rows[name].copy()
        bad[0] = value
        with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="not finite"):
            fit(**rows | {name: bad})


def test_weights_that_are_not_finite_are_an_error_of_fitted_td():
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="not finite"):
        fitted_td(**FLAT | {"w": np.array([np.inf])})


def test_moments_that_overflow_are_an_error():
    with pytest.raises(FloatingPointError, match="not finite"):
        lstd(**GOOD_ROWS | {"x": 1e200 * GOOD_ROWS["x"]})


# Linear values


@pytest.mark.equation("7.22")
@pytest.mark.parametrize("n_actions", [1, 3])
@pytest.mark.parametrize("features", [Polynomial(BOX, degree=2), F.TileCoding(BOX, 4, 2)], ids=["dense", "tiles"])
def test_a_linear_value_is_the_sum_of_weights_times_features(features, n_actions):
    rng, v = np.random.default_rng(0), LinearValue(features, n_actions)
    obs, d = rng.uniform(-1, 1, size=(6, 2)), features.n_features
    w = rng.normal(size=v.n_params)
    expected = [[w[a * d : (a + 1) * d] @ vector(features, s) for a in range(n_actions)] for s in obs]
    assert v.n_params == n_actions * d
    assert np.allclose(v.action_values(w, obs), expected, rtol=0, atol=1e-13)
    if n_actions == 1:
        assert np.array_equal(v.value(w, obs), v.action_values(w, obs)[:, 0])
    else:
        with pytest.raises(ValueError, match="size not equal to one"):
            v.value(w, obs)
    assert np.array_equal(v.x(obs), [vector(features, s) for s in obs])


@given(seeds, st.integers(1, 4), st.integers(1, 6))
def test_add_traces_adds_each_trace_times_its_error_in_place(seed, columns, n):
    rng = np.random.default_rng(seed)
    w, z, error = rng.normal(size=n), rng.normal(size=(columns, n)), rng.normal(size=columns)
    expected = [w[i] + sum(error[k] * z[k, i] for k in range(columns)) for i in range(n)]
    unchanged = z.copy(), error.copy()
    new = add_traces(w, z, error)
    assert np.allclose(new, expected, rtol=0, atol=1e-14)
    assert np.shares_memory(new, w)
    assert all(map(np.array_equal, unchanged, (z, error)))


# Values of recorded steps, and how far they may move on them


@pytest.mark.parametrize("kind", CASES)
def test_values_on_a_batch_are_those_of_its_valid_rows_and_zero_elsewhere(kind):
    features = CASES[kind].value_features
    v, T, N = LinearValue(features), 16, 3
    made = stream(CASES[kind], seed=0, steps=T, columns=N, resets=True)
    names = [name for name in Trajectories.__slots__ if name != "x"]  # features of the policy, which are not read
    traj = Trajectories(x=None, **{name: np.concatenate([getattr(step, name) for step in made]) for name in names})
    assert 0 < np.count_nonzero(~traj.valid) < traj.valid.size
    w = np.random.default_rng(1).normal(size=v.n_params)
    x, values, next_values = v.on(w, traj)
    at = 0
    for t, n in np.ndindex(T, N):
        if not traj.valid[t, n]:
            assert values[t, n] == next_values[t, n] == 0
            continue
        now, after = vector(features, traj.obs[t, n]), vector(features, traj.next_obs[t, n])
        assert values[t, n] == pytest.approx(w @ now, rel=1e-12, abs=1e-13)
        assert next_values[t, n] == pytest.approx(w @ after, rel=1e-12, abs=1e-13)  # where it terminates too
        assert np.array_equal(F.dense(x[at : at + 1], features.n_features)[0], now)  # valid rows in order, by time
        at += 1
    assert at == len(x)
    assert values.shape == next_values.shape == (T, N)
    assert np.array_equal(v.model.forward(w, x)[:, 0], values[traj.valid])


def test_rows_that_are_no_transitions_need_not_hold_observations():
    v = LinearValue(OneHot(spaces.Discrete(3, start=5)))
    states, no = np.array([[5, 0], [7, 6]]), np.zeros((2, 2), dtype=bool)
    valid = np.array([[True, False], [True, True]])
    traj = Trajectories(
        states, states[..., None], states, np.ones((2, 2)), states, no, no, valid, np.zeros((2, 2), int)
    )
    x, values, next_values = v.on(np.array([1.0, 2.0, 3.0]), traj)
    assert np.array_equal(x, [[0], [2], [1]])
    assert np.array_equal(values, [[1, 0], [3, 2]])
    assert np.array_equal(next_values, values)


def value_loss(v, v_old, G, c):
    """(11.16) of one row."""
    v_c = v_old + min(max(v - v_old, -c), c)
    return 0.5 * max((v - G) ** 2, (v_c - G) ** 2)


@pytest.mark.equation("11.16", defining=True)
@given(seeds, st.sampled_from([0.05, 0.2, 1.0, 5.0]))
@examples(200)
def test_clipped_error_is_minus_the_derivative_of_the_clipped_loss_away_from_its_kinks(seed, c):
    rng, h = np.random.default_rng(seed), 1e-5
    v_old, v, G = rng.normal(size=(3, 20))
    m = np.maximum(0, np.abs(G - v_old) - c)
    found = clipped_error(v, v_old, G, c)
    assert found.shape == (20,)
    for row in range(20):
        if abs(abs(v[row] - G[row]) - m[row]) > 2 * h and abs(abs(v[row] - v_old[row]) - c) > 2 * h:
            ahead, behind = (value_loss(v[row] + s * h, v_old[row], G[row], c) for s in (1, -1))
            slope = (ahead - behind) / (2 * h)  # exact for a quadratic, but for 1e-16/h of rounding
            assert found[row] == pytest.approx(-slope, abs=1e-9)
    flat = np.abs(v - G) < m
    assert np.array_equal(found, np.where(flat, 0, G - v))


@pytest.mark.equation("11.16")
@given(seeds, st.integers(1, 4))
def test_the_clipped_error_times_the_features_is_minus_the_gradient_of_the_mean_loss(seed, d):
    rng, B, c = np.random.default_rng(seed), 6, 0.5
    x, w, v_old, G = rng.normal(size=(B, d)), rng.normal(size=d), rng.normal(size=B), 2 * rng.normal(size=B)
    v = x @ w
    m = np.maximum(0, np.abs(G - v_old) - c)
    reach = 1e-2 * (1 + np.abs(x).max())
    assume((np.abs(np.abs(v - G) - m) > reach).all() and (np.abs(np.abs(v - v_old) - c) > reach).all())

    def loss(weights):
        return sum(value_loss(x[b] @ weights, v_old[b], G[b], c) for b in range(B)) / B

    step = x.T @ clipped_error(v, v_old, G, c) / B
    assert np.allclose(step, -numerical_gradient(loss, w)[0], rtol=0, atol=1e-8)


@pytest.mark.equation("11.16")
@pytest.mark.parametrize(
    ("v", "loss", "error"),
    [(-0.5, 1.125, 1.5), (0.1, 0.405, 0.9), (0.5, 0.32, 0.0), (1.5, 0.32, 0.0), (1.9, 0.405, -0.9)],
)
@pytest.mark.parametrize("mirror", [1, -1])
def test_the_clipped_loss_has_a_flat_bottom_around_the_target(v, loss, error, mirror):
    assert value_loss(mirror * v, 0.0, mirror * 1.0, 0.2) == pytest.approx(loss, rel=1e-14)
    found = clipped_error(mirror * np.array([v]), np.zeros(1), mirror * np.ones(1), 0.2)
    assert found == pytest.approx(mirror * np.array([error]), rel=1e-14)


@pytest.mark.equation("11.16")
@given(seeds, st.sampled_from([0.1, 1.0]))
def test_a_target_within_c_of_the_old_value_is_followed_all_the_way(seed, c):
    rng = np.random.default_rng(seed)
    v_old, v = rng.normal(size=(2, 20))
    G = v_old + c * rng.uniform(-1, 1, size=20)
    assert np.array_equal(clipped_error(v, v_old, G, c), G - v)
    assert np.array_equal(clipped_error(v_old, v_old, v, c), v - v_old)  # before the first step nothing is clipped


@pytest.mark.equation("11.16")
@given(seeds)
def test_without_c_the_error_is_the_plain_one(seed):
    v, v_old, G = np.random.default_rng(seed).normal(size=(3, 20))
    assert np.array_equal(clipped_error(v, v_old, G, None), G - v)
    assert np.array_equal(clipped_error(v, v_old, G, np.inf), G - v)


@pytest.mark.equation("11.16")
def test_a_value_that_is_nan_keeps_a_nan_error():
    assert np.isnan(clipped_error(np.array([np.nan]), np.zeros(1), np.ones(1), 0.2))


def test_a_ridge_fit_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="ridge must be a number of at least 0"):
        ridge_least_squares(np.ones((3, 1)), np.ones(3), -1.0)
    with pytest.raises(ValueError, match="x and y must have shapes"):
        ridge_least_squares(np.ones((3, 1)), np.ones(2), 1.0)


@pytest.mark.equation("7.2", "1.14")
def test_fits_of_action_values_are_fits_to_the_features_of_pairs():
    rng = np.random.default_rng(0)
    value, s, a = LinearValue(F.OneHot(3), 2), rng.integers(3, size=60), rng.integers(2, size=60)
    G = rng.normal(size=60)
    w = ridge_least_squares(value.x(s, a), G, 0.0)
    table = np.array([[G[(s == i) & (a == j)].mean() for i in range(3)] for j in range(2)])
    np.testing.assert_allclose(w.reshape(2, 3), table, atol=1e-13)
    np.testing.assert_allclose(value.action_values(w, np.arange(3)), table.T, atol=1e-13)
