"""Surrogate objectives of a batch: ratios, clipping and divergence against sums written out, and their derivatives."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import strategies as S
from gymnasium import spaces
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import score, vector
from scipy import special
from strategies import examples, layers

from npg import features as F
from npg.distributions import Categorical
from npg.exact import TabularMDP, enumerate_trajectories
from npg.gradcheck import EPS, check_gradient, numerical_gradient
from npg.optimizers import kl_step
from npg.policies import GaussianLinear, Policy, SoftmaxLinear
from npg.surrogates import Surrogate, minibatches, natural_step

theorem = S.examples(200)
ONE_STATE = SoftmaxLinear(F.Constant(), 2)


class Batch(NamedTuple):
    """A surrogate and another θ, on what ``strategies.Instance`` holds."""

    i: S.Instance
    L: Surrogate
    theta: np.ndarray


@st.composite
def batches(draw: Any, which: Any = S.policies) -> Batch:
    """The weights of the instance are the advantages; log ratios and the divergence are of order one at most."""
    i = draw(S.instances(which))
    v = draw(S.reals(i.policy.n_params))
    along = i.policy.score(i.theta, i.x, i.a) @ v
    curvature = max(v @ i.policy.fisher(i.theta, i.x, row) @ v for row in np.eye(len(i.a)))
    size = max(1.0, np.abs(along).max(), np.sqrt(max(curvature, 0.0)))
    theta = i.theta + draw(st.floats(0.01, 1.0)) * v / size
    return Batch(i, Surrogate(i.policy, i.theta, i.x, i.a, i.w), theta)


def is_softmax(i: S.Instance) -> bool:
    return isinstance(i.policy.distribution, Categorical)


def outputs(i: S.Instance, theta: np.ndarray, obs: Any) -> list[np.ndarray]:
    """The logits of an observation, or its means and log σ, written out."""
    m, features = i.policy.distribution.n_actions, i.policy.features
    parts, found, start = [features] if is_softmax(i) else [features.mean, features.scale], [], 0
    for part in parts:
        x = vector(part, obs)
        found.append(np.array([theta[start + j * len(x) : start + (j + 1) * len(x)] @ x for j in range(m)]))
        start += m * len(x)
    return found


def log_pi(i: S.Instance, theta: np.ndarray) -> np.ndarray:
    """log π(a|s) of each row, written out."""
    found = []
    for obs, a in zip(i.obs, i.a, strict=True):
        if is_softmax(i):
            (logits,) = outputs(i, theta, obs)
            found.append(logits[a] - np.log(sum(np.exp(logits))))
        else:
            mu, log_sigma = outputs(i, theta, obs)
            found.append(sum(-((a - mu) ** 2) / (2 * np.exp(2 * log_sigma)) - log_sigma - np.log(2 * np.pi) / 2))
    return np.array(found)


def ratios(b: Batch) -> np.ndarray:
    return np.exp(log_pi(b.i, b.theta) - log_pi(b.i, b.i.theta))


def scores(b: Batch) -> np.ndarray:
    """∇ log π_θ(a|s) of each row, written out."""
    return np.array([score(b.i.policy, b.theta, obs, a) for obs, a in zip(b.i.obs, b.i.a, strict=True)])


def by_sign(rho: float, A: float, epsilon: float) -> float:
    """(11.8)."""
    return min(rho, 1 + epsilon) * A if A > 0 else max(rho, 1 - epsilon) * A


def near(actual: Any, expected: Any, size: float = 1.0) -> None:
    """Equal to 1e-11 of ``size``: the logits are below 1e2, so that log ratios have an error of about 1e-13."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11 * size)


def assert_gradient(f: Any, grad: np.ndarray, theta: np.ndarray, floor: float) -> None:
    """By the complex step; and by central differences, whose h⁴ f⁽⁵⁾/30 matters where scores are large: to 1e-5."""
    check = check_gradient(f, grad, theta, method="complex", floor=floor)
    assert check.passed, check
    check = check_gradient(f, grad, theta, rtol=1e-5, floor=floor)
    assert check.passed, check


def rows_of(policy: Policy, old: np.ndarray, a: Any, A: Any) -> Surrogate:
    """Rows of one state, whose features are constant."""
    ones = np.ones((len(a), 1))
    softmax = isinstance(policy.distribution, Categorical)
    return Surrogate(policy, old, ones if softmax else (ones, ones), np.array(a), np.array(A, dtype=float))


def bandit(A: tuple[float, float]) -> Surrogate:
    """Two actions, the good one taken by the old policy with probability 0.2, and each as often as it is on average."""
    return rows_of(ONE_STATE, np.log([0.2, 0.8]), [0, 1, 1, 1, 1], [A[0]] + 4 * [A[1]])


# The ratio


@pytest.mark.equation("11.1", defining=True)
@given(batches())
def test_ratio_is_the_probability_over_that_of_the_old_policy(b):
    np.testing.assert_allclose(b.L.ratio(b.theta), ratios(b), rtol=1e-11)


@pytest.mark.equation("11.1")
@given(batches())
def test_ratio_has_the_gradient_ratio_times_score(b):
    expected = ratios(b)[:, None] * scores(b)
    for row in range(len(b.i.a)):
        one = Surrogate(b.i.policy, b.i.theta, b.L.x, b.i.a, np.eye(len(b.i.a))[row] * len(b.i.a))
        size = 1 + np.abs(expected[row]).max()
        near(one.gradient(b.theta), expected[row], 10 * size)
        assert_gradient(lambda th, row=row: b.L.ratio(th)[row], expected[row], b.theta, size)


@pytest.mark.equation("11.1", "11.15")
@given(batches(S.softmax_policies() | S.tabular_policies() | S.tile_policies()), st.data())
@theorem
def test_the_ratio_has_mean_one_and_its_gradient_mean_zero_under_the_old_policy_in_every_state(b, data):
    i, B = b.i, len(b.i.a)
    old = special.softmax(i.policy.eta(i.theta, i.x), axis=1)
    mean, weights, gradient = 0, data.draw(S.weights(B)), 0
    for a in range(i.policy.distribution.n_actions):
        L = Surrogate(i.policy, i.theta, i.x, np.full(B, a), weights * old[:, a])
        mean = mean + old[:, a] * L.ratio(b.theta)
        gradient = gradient + L.gradient(b.theta)
    near(mean, 1)
    near(gradient, 0, 10)


@pytest.mark.equation("11.1", "11.15")
@given(st.floats(-1, 1), st.floats(-0.5, 0.5), st.floats(-1, 1), st.floats(-0.5, 0.3))
def test_the_ratio_of_a_gaussian_has_mean_one_and_its_gradient_mean_zero(mu_old, log_sigma_old, mu, log_sigma):
    policy, old, new = GaussianLinear(F.Constant(), F.Constant(), 1), (mu_old, log_sigma_old), (mu, log_sigma)
    a, step = np.linspace(-25, 25, 2001, retstep=True)  # the trapezoidal rule: exact to rounding for a normal density
    density = np.exp(-0.5 * ((a - mu_old) / np.exp(log_sigma_old)) ** 2 - log_sigma_old) / np.sqrt(2 * np.pi)
    keep = density > 1e-200  # beyond, at 30 standard deviations, 1/density is no longer a number
    L = rows_of(policy, np.array(old), a[keep, None], (density * step)[keep] * keep.sum())
    near(L.value(np.array(new)), 1)
    near(L.gradient(np.array(new)), 0, 10)


@pytest.mark.equation("11.2")
@given(batches())
def test_at_the_old_policy_ratios_are_one_and_the_gradient_is_that_of_the_score_exactly(b):
    i, B = b.i, len(b.i.a)
    np.testing.assert_array_equal(b.L.ratio(i.theta), np.ones(B))
    assert b.L.value(i.theta) == i.w.mean()
    np.testing.assert_array_equal(b.L.gradient(i.theta), i.policy.weighted_score(i.theta, i.x, i.a, i.w / B))


# The surrogate


@pytest.mark.equation("11.2", defining=True)
@given(batches())
def test_surrogate_and_gradient_are_their_sums_over_rows(b):
    rho, psi, B, value, gradient = ratios(b), scores(b), len(b.i.a), 0.0, np.zeros(len(b.theta))
    for row in range(B):
        value += rho[row] * b.i.w[row] / B
        gradient += rho[row] * b.i.w[row] * psi[row] / B
    near(b.L.value(b.theta), value, 3 * (1 + rho.max()))
    near(b.L.gradient(b.theta), gradient, 30 * (1 + np.abs(rho[:, None] * psi).max()))


@pytest.mark.equation("11.2")
@given(batches())
def test_gradient_is_the_derivative_of_the_surrogate(b):
    g = b.L.gradient(b.theta)
    size = 1 + np.abs(b.L.ratio(b.theta)[:, None] * scores(b)).max()
    assert_gradient(b.L.value, g, b.theta, size)


@st.composite
def counted(draw: Any) -> tuple[TabularMDP, Policy, np.ndarray, np.ndarray, np.ndarray]:
    """A bandit with contexts whose ρ_0(s) π_old(a|s) are fractions, the number of rows of each, and two θ."""
    rng, S_, A_ = draw(S.generators), draw(st.integers(1, 4)), draw(st.integers(2, 3))
    count = rng.integers(1, 6, size=(S_, A_))
    P = rng.dirichlet(np.ones(S_), size=(S_, A_))
    mdp = TabularMDP(P, rng.normal(size=(S_, A_)), 0.0, count.sum(axis=1) / count.sum())
    policy = SoftmaxLinear(F.OneHot(S_), A_)
    return mdp, policy, count, np.log(count).T.ravel(), rng.normal(size=policy.n_params)


@pytest.mark.equation("11.2", "6.2")
@given(counted())
@theorem
def test_rows_as_frequent_as_they_are_on_average_give_the_exact_surrogate_and_divergence(problem):
    mdp, policy, count, old, new = problem
    s, a = (np.repeat(index.ravel(), count.ravel()) for index in np.indices(count.shape))
    pi_old, pi = mdp.policy_matrix(policy, old), mdp.policy_matrix(policy, new)
    L = Surrogate(policy, old, policy.features(s), a, mdp.advantage(policy, old)[s, a])
    near(mdp.J(policy, old) + L.value(new), mdp.surrogate(pi, pi_old))
    near(L.gradient(old), mdp.gradient(policy, old))
    near(L.kl(new), mdp.rho0 @ (pi_old * np.log(pi_old / pi)).sum(axis=1))


@pytest.mark.equation("11.2", "1.10")
@given(layers)
@theorem
def test_the_mean_over_all_episodes_is_the_exact_surrogate_with_states_as_often_as_they_are_met(p):
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, 3)
    new, v = p.theta + p.rng.normal(size=len(p.theta)), traj.valid
    s, a = traj.obs[v], traj.actions[v]
    A, pi_old, pi = p.mdp.advantage(p.policy, p.theta), *(p.mdp.policy_matrix(p.policy, th) for th in (p.theta, new))
    weight = (probability * v)[v] * v.sum()  # so that the mean over rows is E Σ_t
    L = Surrogate(p.policy, p.theta, traj.x[v], a, weight * A[s, a])
    d_1 = p.mdp.visitation(p.policy, p.theta, gamma=1)
    near(L.value(new), d_1 @ (pi * A).sum(axis=1), 10)
    q = p.mdp.action_value(p.policy, p.theta)
    near(L.gradient(p.theta), p.policy.all_actions_gradient(p.theta, p.mdp.features(p.policy), q, d_1), 10)
    discounted = Surrogate(p.policy, p.theta, traj.x[v], a, L.A * p.mdp.gamma ** traj.t[v])
    near(p.mdp.J(p.policy, p.theta) + discounted.value(new), p.mdp.surrogate(pi, pi_old), 10)
    near(discounted.gradient(p.theta), p.mdp.gradient(p.policy, p.theta), 10)


@pytest.mark.equation("11.2")
def test_the_logarithm_of_the_policy_in_the_surrogate_makes_its_gradient_point_the_other_way():
    L = bandit((0.8, -0.2))
    old = L.theta_old

    def merged(theta):
        return (L.ratio(theta) * ONE_STATE.log_prob(theta, L.x, L.a) * L.A).mean()

    assert L.gradient(old)[0] == pytest.approx(0.16, rel=1e-14)
    assert numerical_gradient(merged, old, "complex")[0][0] == pytest.approx(-0.05315, abs=5e-6)

    def of_log(theta):
        return (ONE_STATE.log_prob(theta, L.x, L.a) * L.A).mean()

    near(numerical_gradient(of_log, old, "complex")[0], L.gradient(old))  # the same here
    away = old + np.array([0.5, 0.0])
    assert np.abs(numerical_gradient(of_log, away, "complex")[0] - L.gradient(away)).max() > 0.01  # but nowhere else


@given(batches(), st.data())
def test_an_index_selects_rows_and_minibatches_average_to_the_batch(b, data):
    B = len(b.i.a)
    epsilon = data.draw(st.sampled_from([0.1, 0.3, np.inf]))
    order = np.array(data.draw(st.permutations(range(B))))
    parts = [part for part in np.array_split(order, 2) if len(part)]
    for f in (
        lambda L: L.value(b.theta, epsilon),
        lambda L: L.gradient(b.theta, epsilon),
        lambda L: L.kl(b.theta),
        lambda L: L.kl_gradient(b.theta),
    ):
        mean = sum(len(part) / B * f(b.L[part]) for part in parts)
        near(mean, f(b.L), 100 * (1 + np.abs(f(b.L)).max() + np.abs(b.L.ratio(b.theta)[:, None] * scores(b)).max()))
    for part in parts:
        np.testing.assert_allclose(b.L[part].ratio(b.theta), b.L.ratio(b.theta)[part], rtol=1e-11)


# Clipping

epsilons = st.sampled_from([0.01, 0.1, 0.2, 0.5, 0.9, 2.0])


@pytest.mark.equation("11.7", defining=True)
@given(batches(), epsilons)
def test_clipped_objective_is_the_mean_of_the_minima(b, epsilon):
    rho, A = b.L.ratio(b.theta), b.i.w
    terms = [min(r * a, min(max(r, 1 - epsilon), 1 + epsilon) * a) for r, a in zip(rho, A, strict=True)]
    near(b.L.value(b.theta, epsilon), sum(terms) / len(terms), 1 + np.abs(terms).max())


@pytest.mark.equation("11.7")
@given(batches(), epsilons, epsilons)
@theorem
def test_clipping_never_raises_the_surrogate_and_narrower_clipping_never_raises_it_either(b, one, other):
    narrow, wide = sorted([one, other])
    values = [b.L.value(b.theta, epsilon) for epsilon in (narrow, wide, np.inf)]
    assert values == sorted(values)  # exactly: rounding keeps the order of sums of ordered terms


@pytest.mark.equation("11.7")
@given(batches(), epsilons)
def test_at_the_old_policy_clipping_changes_neither_value_nor_gradient(b, epsilon):
    assert b.L.value(b.i.theta, epsilon) == b.L.value(b.i.theta)
    np.testing.assert_array_equal(b.L.gradient(b.i.theta, epsilon), b.L.gradient(b.i.theta))


@pytest.mark.equation("11.8", defining=True)
@given(batches(), epsilons)
@theorem
def test_a_row_is_cut_above_where_its_advantage_is_positive_and_below_where_it_is_negative(b, epsilon):
    rho = b.L.ratio(b.theta)
    for sign in (1.0, -1.0, 0.0):
        A = sign * np.abs(b.i.w)
        for row in range(len(A)):
            one = Surrogate(b.i.policy, b.i.theta, b.L.x, b.i.a, A * (np.arange(len(A)) == row))
            assert one.value(b.theta, epsilon) * len(A) == pytest.approx(by_sign(rho[row], A[row], epsilon), rel=1e-14)


@pytest.mark.equation("11.7", "11.8", "11.9")
@pytest.mark.parametrize(
    ("p", "A", "value", "counts"),
    [
        (0.45, 2.0, 1.8, True),
        (0.55, 2.0, 2.2, True),
        (0.65, 2.0, 2.4, False),  # the row has gained: cut at 1.2
        (0.35, 2.0, 1.4, True),  # the row has lost: not cut at 0.8
        (0.45, -2.0, -1.8, True),
        (0.35, -2.0, -1.6, False),
        (0.65, -2.0, -2.6, True),
        (0.65, 0.0, 0.0, False),
    ],
)
def test_only_the_side_on_which_a_row_has_gained_is_clipped(p, A, value, counts):
    L, theta = rows_of(ONE_STATE, np.zeros(2), [0], [A]), np.log([p, 1 - p])
    assert L.value(theta, 0.2) == pytest.approx(value, rel=1e-14)
    g = 2 * p * A * (1 - p) if counts else 0.0
    np.testing.assert_allclose(L.gradient(theta, 0.2), [g, -g], rtol=1e-14)


def sides(L: Surrogate, theta: np.ndarray, epsilon: float) -> np.ndarray:
    rho = L.ratio(theta)
    return np.sign([rho - 1 - epsilon, rho - 1 + epsilon])


def crosses(L: Surrogate, theta: np.ndarray, epsilon: float) -> bool:
    """Whether a ratio reaches a bound at a point where ``numerical_gradient`` evaluates."""
    for j, h in enumerate(EPS**0.2 * np.maximum(1, np.abs(theta))):
        for k in (-2, -1, 1, 2):
            if (sides(L, theta + k * h * np.eye(len(theta))[j], epsilon) != sides(L, theta, epsilon)).any():
                return True
    return False


@pytest.mark.equation("11.9")
@given(batches(), st.data())
def test_clipped_gradient_is_the_derivative_of_the_clipped_objective_away_from_the_kinks(b, data):
    rho = b.L.ratio(b.theta)
    distance = np.unique([0, *np.abs(rho - 1), 0.1 + np.abs(rho - 1).max()])
    epsilon = data.draw(st.sampled_from(list((distance[1:] + distance[:-1]) / 2)))  # far from every kink
    assume(not crosses(b.L, b.theta, epsilon))
    size = 1 + np.abs(rho[:, None] * scores(b)).max()
    assert_gradient(lambda th: b.L.value(th, epsilon), b.L.gradient(b.theta, epsilon), b.theta, size)


@pytest.mark.equation("11.9", defining=True)
@given(batches(), epsilons)
def test_clipped_gradient_is_the_sum_over_the_rows_that_are_not_clipped(b, epsilon):
    rho, psi, A, expected = b.L.ratio(b.theta), scores(b), b.i.w, np.zeros(len(b.theta))
    for row in range(len(A)):
        if not ((A[row] > 0 and rho[row] > 1 + epsilon) or (A[row] < 0 and rho[row] < 1 - epsilon)):
            expected += rho[row] * A[row] * psi[row] / len(A)
    near(b.L.gradient(b.theta, epsilon), expected, 30 * (1 + np.abs(rho[:, None] * psi).max()))


@pytest.mark.equation("11.9")
@given(batches())
def test_rows_that_are_clipped_do_not_pull(b):
    gain = b.L.ratio(b.theta) - 1
    epsilon = np.abs(gain).max() / 2
    assume(epsilon > 1e-6)
    L = Surrogate(b.L.policy, b.L.theta_old, b.L.x, b.L.a, np.sign(gain))[np.abs(gain) > epsilon]
    np.testing.assert_array_equal(L.gradient(b.theta, epsilon), 0)
    assert L.value(b.theta, epsilon) == pytest.approx(np.mean(L.A + epsilon), rel=1e-12)
    other_way = Surrogate(L.policy, L.theta_old, L.x, L.a, -L.A)  # each has lost
    np.testing.assert_array_equal(other_way.gradient(b.theta, epsilon), other_way.gradient(b.theta))


KINKED = {
    "softmax": (SoftmaxLinear(F.Constant(), 3), lambda rng: rng.integers(3)),
    "Gaussian": (GaussianLinear(F.Constant(), F.Constant(), 1), lambda rng: rng.normal(size=1)),
}


@pytest.mark.equation("11.9")
@pytest.mark.parametrize("kind", KINKED)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@given(S.generators)
def test_at_a_kink_the_one_sided_derivatives_are_zero_outside_and_the_gradient_inside(kind, sign, rng):
    policy, draw = KINKED[kind]
    old = rng.normal(scale=0.5, size=policy.n_params)
    theta, a = old + rng.normal(scale=0.3, size=policy.n_params), draw(rng)
    A = sign * rng.uniform(0.5, 2)
    L = rows_of(policy, old, [a], [A])
    (rho,), psi = L.ratio(theta), policy.score(theta, L.x, L.a)[0]
    epsilon = abs(rho - 1)
    bound = 1 + epsilon if rho > 1 else 1 - epsilon
    assume(epsilon > 1e-3 and bound == rho < 5 and np.linalg.norm(psi) > 0.3)  # ρ is the bound to the last bit
    np.testing.assert_array_equal(L.gradient(theta, epsilon), L.gradient(theta))
    assert L.value(theta, epsilon) == L.value(theta) == rho * A
    kink = (rho > 1) == (sign > 0)
    clipped = L.gradient(theta, epsilon - 1e-9)  # now ρ lies beyond
    np.testing.assert_array_equal(clipped, 0 if kink else L.gradient(theta))
    np.testing.assert_array_equal(L.gradient(theta, epsilon + 1e-9), L.gradient(theta))

    v, h = psi / (psi @ psi), 1e-6  # log ρ changes by h
    for direction in (v, -v):
        f = [L.value(theta + k * h * direction, epsilon) for k in range(3)]
        slope = (-3 * f[0] + 4 * f[1] - f[2]) / (2 * h)  # off by h² f'''/3 with f''' < 1e5, and 1e-15/h
        inside = L.gradient(theta, epsilon) @ direction
        expected = min(0, inside) if kink else inside
        assert inside == pytest.approx(rho * A * (1 if direction is v else -1), rel=1e-11)
        assert slope == pytest.approx(expected, abs=1e-6)


@pytest.mark.equation("11.8", "11.9")
@pytest.mark.parametrize(("side", "A"), [(1, 2.0), (-1, -2.0)])
@pytest.mark.parametrize("epsilon", [0.1, 0.2, 0.3, 0.5])
def test_a_policy_made_to_lie_on_a_kink_has_the_value_of_the_bound_and_one_of_two_gradients(side, A, epsilon):
    p = (1 + side * epsilon) / 2
    L, theta = rows_of(ONE_STATE, np.zeros(2), [0], [A]), np.log([p, 1 - p])
    (rho,) = L.ratio(theta)
    assert abs(rho - (1 + side * epsilon)) <= 4 * EPS
    assert L.value(theta, epsilon) == pytest.approx((1 + side * epsilon) * A, rel=4 * EPS)
    outside = side * rho > side * (1 + side * epsilon)
    np.testing.assert_array_equal(L.gradient(theta, epsilon), 0 if outside else L.gradient(theta))


@pytest.mark.equation("11.1", "11.7", "11.9")
def test_a_ratio_that_would_overflow_is_huge_and_counts_for_nothing_where_it_is_clipped_or_has_no_advantage():
    old, theta = np.array([0.0, 1000.0]), np.array([1000.0, 0.0])
    good, bad, none = (rows_of(ONE_STATE, old, [0, 1], [A, -0.5]) for A in (3.0, -3.0, 0.0))
    np.testing.assert_allclose(good.ratio(theta), [np.exp(700), 0], rtol=1e-12)
    assert 1e304 < good.value(theta) < np.inf
    assert good.value(theta, 0.2) == pytest.approx((1.2 * 3 - 0.8 * 0.5) / 2, rel=1e-15)
    np.testing.assert_array_equal(good.gradient(theta, 0.2), [0, 0])
    assert bad.value(theta) == bad.value(theta, 0.2) < -1e304  # not clipped: a line search sees the worst
    assert none.value(theta) == 0
    np.testing.assert_array_equal(none.gradient(theta), [0, 0])
    np.testing.assert_array_equal(good.kl(theta), 1000)


@pytest.mark.equation("11.1", "11.2")
def test_a_ratio_that_underflows_is_zero_and_keeps_everything_finite():
    old, theta = np.array([1000.0, 0.0]), np.array([0.0, 1000.0])
    L = rows_of(ONE_STATE, old, [0], [3.0])
    assert L.ratio(theta) == L.value(theta) == L.value(theta, 0.2) == 0
    np.testing.assert_array_equal(L.gradient(theta), [0, 0])
    np.testing.assert_array_equal(L.gradient(theta, 0.2), [0, 0])


# The divergence


@pytest.mark.equation("9.5", "11.6")
@given(batches())
def test_divergence_is_the_mean_over_rows_with_the_old_policy_first(b):
    i, total = b.i, 0.0
    for obs in i.obs:
        (u, *s), (v, *t) = (outputs(i, theta, obs) for theta in (i.theta, b.theta))
        if is_softmax(i):
            p, q = np.exp(u) / np.exp(u).sum(), np.exp(v) / np.exp(v).sum()
            total += sum(p * np.log(p / q))
        else:
            variance, other = np.exp(2 * s[0]), np.exp(2 * t[0])
            total += sum(0.5 * np.log(other / variance) + (variance + (u - v) ** 2) / (2 * other) - 0.5)
    near(b.L.kl(b.theta), total / len(i.obs), 10 * (1 + total))


@pytest.mark.equation("9.5", defining=True)
@given(S.problems())
@theorem
def test_divergence_of_rows_weighted_by_visits_is_the_mean_over_the_visitation(p):
    """With K(s) rows of state s it is Σ d(s) KL_s for d = K/ΣK, and its Hessian Σ d(s) F_s."""
    count = p.rng.integers(0, 4, size=p.mdp.n_states)
    count[0] += 1
    states, d = np.repeat(np.arange(p.mdp.n_states), count), count / count.sum()
    x, x_all = p.policy.features(states), p.mdp.features(p.policy)
    new = p.theta + p.rng.normal(size=len(p.theta))
    L = Surrogate(p.policy, p.theta, x, np.zeros(len(states), dtype=int), np.zeros(len(states)))
    pi_old, pi = (p.mdp.policy_matrix(p.policy, theta) for theta in (p.theta, new))
    near(L.kl(new), d @ (pi_old * np.log(pi_old / pi)).sum(axis=1), 10)
    v = p.rng.normal(size=len(p.theta))
    product, _ = numerical_gradient(lambda t: L.kl_gradient(p.theta + t[0] * v) @ v, np.zeros(1), "complex")
    near(product, v @ p.policy.fisher(p.theta, x_all, d) @ v, 10)


@pytest.mark.equation("11.6", defining=True)
@pytest.mark.equation("9.5")
@pytest.mark.parametrize("kind", ["softmax", "Gaussian"])
def test_halving_a_step_divides_what_is_left_of_the_divergence_by_eight(kind):
    rng, B = np.random.default_rng(0), 6
    affine = F.Affine(spaces.Box(-1.0, 1.0, (2,), dtype=np.float64))
    policy = {"softmax": SoftmaxLinear(affine, 3), "Gaussian": GaussianLinear(affine, affine, 2)}[kind]
    x, old = policy.features(rng.uniform(-1, 1, size=(B, 2))), rng.normal(scale=0.5, size=policy.n_params)
    L = Surrogate(policy, old, x, policy.mode(old, x), np.zeros(B))
    v = rng.normal(size=policy.n_params)
    steps = 0.1 / 2.0 ** np.arange(5)
    left = [L.kl(old + t * v) - 0.5 * t**2 * v @ policy.fisher_vector_product(old, x, v) for t in steps]
    reverse = [policy.kl(old + t * v, old, x).mean() - 0.5 * t**2 * v @ policy.fisher(old, x) @ v for t in steps]
    for remainder in (np.array(left), np.array(reverse)):
        factor = remainder[:-1] / remainder[1:]
        assert np.abs(factor[-1] - 8) < 0.2
        assert (np.diff(np.abs(factor - 8)) < 0).all()
    assert np.abs(left[0] - reverse[0]) > 0.3 * np.abs(left[0])  # the directions differ from the third order on


@pytest.mark.equation("11.6")
@pytest.mark.parametrize(
    ("p", "q", "first", "reversed_"),
    [
        (0.1, 0.2, 0.03669, 0.04440),
        (0.9, 0.95, 0.02065, 0.01671),
        (0.5, 0.9, 0.5108, 0.3681),
        (0.5, 0.99, 1.6145, 0.6371),
        (0.5, 0.999, 2.7612, 0.6852),
    ],
)
def test_the_directions_of_the_divergence_have_the_numbers_of_the_table(p, q, first, reversed_):
    old, new = np.log([p, 1 - p]), np.log([q, 1 - q])
    digits = 5e-5 if first > 0.1 else 5e-6
    assert rows_of(ONE_STATE, old, [0], [1.0]).kl(new) == pytest.approx(first, abs=digits)
    assert rows_of(ONE_STATE, new, [0], [1.0]).kl(old) == pytest.approx(reversed_, abs=digits)


@pytest.mark.equation("11.6")
def test_only_the_divergence_with_the_old_policy_first_forbids_a_deterministic_policy():
    uniform = np.zeros(2)
    for logit in (50.0, 100.0, 200.0):
        sure = np.array([logit, 0.0])
        assert rows_of(ONE_STATE, uniform, [0], [1.0]).kl(sure) == pytest.approx(logit / 2 - np.log(2), rel=1e-12)
        assert ONE_STATE.kl(sure, uniform, np.ones((1, 1)))[0] == pytest.approx(np.log(2), rel=1e-12)


@pytest.mark.equation("11.6")
@given(batches())
def test_the_divergence_is_not_negative_and_zero_with_a_zero_gradient_at_the_old_policy(b):
    assert b.L.kl(b.theta) >= -1e-14
    assert b.L.kl(b.i.theta) == 0
    np.testing.assert_array_equal(b.L.kl_gradient(b.i.theta), 0)


# The penalty


@pytest.mark.equation("11.6", "11.11")
@given(batches())
def test_the_gradient_of_the_divergence_is_its_derivative(b):
    assert_gradient(b.L.kl, b.L.kl_gradient(b.theta), b.theta, 1.0)


@pytest.mark.equation("11.11", defining=True)
@given(batches(), st.sampled_from([0.1, 1.0, 10.0]))
def test_the_penalised_objective_has_the_gradient_of_surrogate_less_beta_times_that_of_the_divergence(b, beta):
    g = b.L.gradient(b.theta) - beta * b.L.kl_gradient(b.theta)
    size = 1 + beta + np.abs(b.L.ratio(b.theta)[:, None] * scores(b)).max()
    assert_gradient(lambda th: b.L.value(th) - beta * b.L.kl(th), g, b.theta, size)


@pytest.mark.equation("11.11", "11.4")
@given(S.generators, st.integers(1, 5), st.sampled_from([1e-3, 0.1, 10.0]))
def test_in_the_quadratic_model_a_penalty_is_a_radius_with_its_multiplier(rng, n, delta):
    J, g = rng.normal(size=(n + 2, n)), rng.normal(size=n)
    fisher = J.T @ J + 0.1 * np.eye(n)
    u = np.linalg.solve(fisher, g)
    beta = np.sqrt(g @ u / (2 * delta))
    step = u / beta
    np.testing.assert_allclose(g - beta * fisher @ step, 0, atol=1e-11 * np.abs(g).max())
    assert 0.5 * step @ fisher @ step == pytest.approx(delta, rel=1e-11)
    np.testing.assert_allclose(step, kl_step(u, fisher @ u, delta), rtol=1e-10)

    def model(d):
        return g @ d - beta / 2 * d @ fisher @ d

    assert all(model(step + d) <= model(step) for d in rng.normal(size=(20, n)))


@pytest.mark.equation("11.11")
def test_under_a_strong_penalty_the_natural_step_leaves_a_gradient_of_second_order():
    policy, rng = GaussianLinear(F.Constant(), F.Constant(), 2), np.random.default_rng(0)
    old = rng.normal(scale=0.3, size=4)
    a = policy.sample(old, (np.ones((8, 1)),) * 2, rng)
    L = rows_of(policy, old, a, rng.normal(size=8))
    g = L.gradient(old)
    u = np.linalg.solve(policy.fisher(old, L.x), g)
    left = []
    for beta in (1e2, 2e2, 4e2):
        at = old + u / beta
        left.append(np.linalg.norm(L.gradient(at) - beta * L.kl_gradient(at)) / np.linalg.norm(g))
    assert left[0] < 0.1
    assert left[0] / left[1] == pytest.approx(2, rel=0.05)
    assert left[1] / left[2] == pytest.approx(2, rel=0.05)


# Normalised advantages


@pytest.mark.equation("11.15")
@given(batches(), st.floats(-2, 2), st.floats(0.1, 10), st.sampled_from([0.0, 0.5]))
@theorem
def test_normalised_advantages_shift_and_scale_the_penalised_objective(b, m, sigma, beta):
    L = b.L
    normal = Surrogate(L.policy, L.theta_old, L.x, L.a, (L.A - m) / sigma)
    rho = L.ratio(b.theta)
    expected = (L.value(b.theta) - m * rho.mean() - beta * sigma * L.kl(b.theta)) / sigma
    near(normal.value(b.theta) - beta * L.kl(b.theta), expected, 100 * (1 + rho.max()))


@pytest.mark.equation("11.15")
@given(batches(), st.floats(0.1, 10), epsilons)
@theorem
def test_a_positive_scale_of_the_advantages_scales_the_clipped_objective_and_its_gradient(b, scale, epsilon):
    scaled = Surrogate(b.L.policy, b.L.theta_old, b.L.x, b.L.a, scale * b.L.A)
    size = 100 * (1 + np.abs(b.L.ratio(b.theta)[:, None] * scores(b)).max() + b.L.ratio(b.theta).max())
    near(scaled.value(b.theta, epsilon), scale * b.L.value(b.theta, epsilon), size)
    near(scaled.gradient(b.theta, epsilon), scale * b.L.gradient(b.theta, epsilon), size)


@pytest.mark.equation("11.15")
@pytest.mark.parametrize(("A", "clipped"), [((1.0, 0.0), 0.0), ((0.8, -0.2), 0.042), ((0.5, -0.5), 0.105)])
def test_a_shift_leaves_the_mean_gradient_alone_but_not_the_clipped_one(A, clipped):
    L, theta = bandit(A), np.log([0.3, 0.7])
    np.testing.assert_allclose(L.ratio(theta), [1.5, 0.875, 0.875, 0.875, 0.875], rtol=1e-14)
    assert L.gradient(theta)[0] == pytest.approx(0.21, rel=1e-13)
    assert L.gradient(theta, 0.2)[0] == pytest.approx(clipped, rel=1e-13, abs=1e-16)


# Minibatches


@given(S.seeds, st.integers(1, 60), st.integers(1, 80))
def test_minibatches_hold_every_row_once_in_parts_of_about_the_size_asked_for(seed, n, size):
    parts = list(minibatches(np.random.default_rng(seed), n, size))
    lengths = [len(part) for part in parts]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1
    if n <= size:
        assert len(parts) == 1
    else:
        assert 0.75 * size <= n / len(parts) <= 1.5 * size
    if n % size == 0:
        assert set(lengths) == {size}


@pytest.mark.parametrize(
    ("n", "size", "lengths"), [(7, 4, [4, 3]), (5, 4, [5]), (10, 4, [5, 5]), (11, 4, [4, 4, 3]), (3, 10, [3])]
)
def test_the_number_of_minibatches_is_rounded_to_the_nearest(n, size, lengths):
    assert [len(part) for part in minibatches(np.random.default_rng(0), n, size)] == lengths


def test_minibatches_come_in_a_new_order_each_time_and_in_the_same_from_the_same_seed():
    first, again = np.random.default_rng(0), np.random.default_rng(0)
    a, b = list(minibatches(first, 20, 5)), list(minibatches(first, 20, 5))
    np.testing.assert_array_equal(a, list(minibatches(again, 20, 5)))
    assert not np.array_equal(a, b)
    counts = np.zeros((6, 6))  # row r in place k
    for _ in range(6000):
        counts[np.concatenate(list(minibatches(first, 6, 2))), np.arange(6)] += 1
    assert np.abs(counts - 1000).max() <= 6 * np.sqrt(6000 * 5 / 36)  # a deviation beyond 6 σ has probability 2e-9


# Errors


@pytest.mark.parametrize("A", [np.ones(1), np.ones(3), np.ones((2, 1)), np.array(1.0)], ids=lambda A: str(A.shape))
def test_advantages_that_do_not_go_with_the_actions_are_an_error_that_names_them(A):
    with pytest.raises(ValueError, match=r"^A must have shape \(2,\) to go with a"):
        Surrogate(ONE_STATE, np.zeros(2), np.ones((2, 1)), np.zeros(2, dtype=int), A)


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match=r"^A must have shape .* at least one row"):
        Surrogate(ONE_STATE, np.zeros(2), np.ones((0, 1)), np.zeros(0, dtype=int), np.zeros(0))


@pytest.mark.parametrize("name", ["value", "gradient"])
@pytest.mark.parametrize("epsilon", [0, 0.0, -0.1, np.nan, -np.inf, True])
def test_an_epsilon_that_is_not_positive_is_an_error_that_names_it(name, epsilon):
    L = rows_of(ONE_STATE, np.zeros(2), [0], [1.0])
    with pytest.raises(ValueError, match=r"^epsilon must be a positive number or inf"):
        getattr(L, name)(np.zeros(2), epsilon)


@pytest.mark.parametrize("name", ["ratio", "value", "gradient", "kl", "kl_gradient"])
def test_theta_of_another_length_is_an_error_that_names_it(name):
    L = rows_of(ONE_STATE, np.zeros(2), [0], [1.0])
    for theta in (np.zeros(1), np.zeros(3), np.zeros((1, 2))):
        with pytest.raises(ValueError, match=r"^theta must"):
            getattr(L, name)(theta)


# Natural steps


@pytest.mark.equation("9.6", "9.7")
@given(S.instances(), st.floats(1e-4, 2.0))
@examples(200)
def test_a_natural_step_has_its_radius_to_second_order_and_at_most_twice_as_much_in_truth(instance, delta):
    policy, theta, x, rng = instance.policy, instance.theta, instance.x, np.random.default_rng(0)
    u = rng.normal(size=policy.n_params)
    new = natural_step(policy, theta, x, u, delta, 0.3)
    full = kl_step(u, policy.fisher_vector_product(theta, x, u), delta)
    halvings = 0
    while policy.kl(theta, theta + full / 2**halvings, x).mean() > 2 * delta:
        halvings += 1
    np.testing.assert_array_equal(new, theta + full / 2**halvings)
    np.testing.assert_array_equal(natural_step(policy, theta, x, u, None, 0.3), theta + 0.3 * u)


@pytest.mark.equation("9.7")
def test_near_a_deterministic_policy_the_quadratic_step_turns_the_policy_round():
    policy, x, theta, u = SoftmaxLinear(F.Constant(), 2), np.ones((1, 1)), np.array([10.0, 0.0]), np.array([-1.0, 1.0])
    step = kl_step(u, policy.fisher_vector_product(theta, x, u), 0.01)
    assert step[1] - step[0] == pytest.approx(20.98974, rel=1e-6)
    assert policy.kl(theta, theta + step, x) == pytest.approx([10.98876], rel=1e-6)


def test_near_a_deterministic_policy_a_natural_step_keeps_to_its_radius_and_then_stops():
    policy, x = SoftmaxLinear(F.Constant(), 2), np.ones((1, 1))
    for logit in (10.0, 20.0, 30.0):  # probabilities of 5e-5, 2e-9, 1e-13
        theta = np.array([logit, 0.0])
        new = natural_step(policy, theta, x, np.array([-1.0, 1.0]), 0.01, 0.0)
        assert 0 < policy.kl(theta, new, x)[0] <= 0.02
        assert np.abs(new - theta).max() < logit
    theta = np.array([40.0, 0.0])  # the other action has a probability of 4e-18: F is 0 to working precision
    np.testing.assert_array_equal(natural_step(policy, theta, x, np.array([-1.0, 1.0]), 0.01, 0.0), theta)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_direction_that_is_not_finite_ends_in_a_theta_that_shows_it(bad):
    policy, x = SoftmaxLinear(F.Constant(), 2), np.ones((1, 1))
    with np.errstate(invalid="ignore", over="ignore"):
        assert not np.isfinite(natural_step(policy, np.zeros(2), x, np.array([bad, 0.0]), 0.01, 0.0)).all()
