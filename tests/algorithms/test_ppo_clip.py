"""PPO with the clipped objective against its box with the same minibatches, and what clipping does not do."""

from itertools import pairwise

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    ONE_STATE,
    Case,
    Row,
    bandit,
    batch_of,
    batches,
    check_the_scale_of_rewards_does_not_matter,
    density,
    divergence,
    entropy_gradient,
    first_probability,
    kl,
    log_odds,
    made,
    near,
    normalised,
    scores,
    step_of,
)
from strategies import examples, instances, seeds

from npg import features as F
from npg.algorithms import PPOClip
from npg.optimizers import OPTIMIZERS
from npg.policies import SoftmaxLinear
from npg.surrogates import Surrogate

SETTINGS = {"gamma": 0.8, "lam": 0.7, "epochs": 3, "minibatch": 9, "epsilon": 0.2, "target_kl": None, "normalize": None}
SETTINGS |= {"beta": 0.0, "value_clip": None, "clip": None, "optimizer": "ascent", "alpha": 0.003, "alpha_w": 0.1}
ONE_STEP = {"epochs": 1, "minibatch": 10**6}


def shortened(g, c):
    """g, or along g with length c."""
    norm = np.sqrt(g @ g)
    return g * (c / norm) if c and norm > c else g


def value_gradient(v, v_old, G, c):
    """The derivative of ½ max((v − G)², (v_old + clip(v − v_old, −c, c) − G)²), row by row."""
    if c and abs(v - v_old) > c:
        edge = v_old + c if v > v_old else v_old - c
        if (edge - G) ** 2 > (v - G) ** 2:
            return 0.0
    return v - G


def box(case, theta, w, ascents, traj, rng, *, gamma, lam, epochs, minibatch, epsilon, target_kl, normalize, beta,
        value_clip, clip):  # fmt: skip
    """The box of chapter 11: new θ and w, the number of epochs, and how many rows were clipped in any minibatch."""
    policy, b = case.policy, batch_of(*case[:2], traj, w, gamma=gamma, lam=lam)
    B, theta_old, G = len(b.A), theta, b.A + b.v
    A, p = normalised(b.A) if normalize else b.A, density(policy, theta_old, b.X, b.a)
    used = clipped_rows = 0
    for _ in range(epochs):
        order = rng.permutation(B)
        for part in np.array_split(order, max(round(B / minibatch), 1)):
            X = tuple(x[part] for x in b.X)
            rho = density(policy, theta, X, b.a[part]) / p[part]
            clipped = ((A[part] > 0) & (rho > 1 + epsilon)) | ((A[part] < 0) & (rho < 1 - epsilon))
            rows = np.where(clipped, 0, rho * A[part])[:, None] * scores(policy, theta, X, b.a[part])
            g = np.mean(rows + beta * entropy_gradient(policy, theta, X), axis=0)
            v = b.X_v[part] @ w
            errors = [value_gradient(*row, value_clip) for row in zip(v, b.v[part], G[part], strict=True)]
            g_w = -np.array(errors) @ b.X_v[part] / len(part)
            theta = ascents[0].step(theta, shortened(g, clip))
            w = ascents[1].step(w, shortened(g_w, clip))
            clipped_rows += clipped.sum()
        used += 1
        if target_kl and np.mean(divergence(policy, theta_old, theta, b.X)) > target_kl:
            break
    return theta, w, used, clipped_rows


def check_box(kind, seed, **changed):
    """Two updates, so that what is kept from one to the next counts; the epochs and clipped rows of both."""
    case, setting, found = CASES[kind], SETTINGS | changed, []
    agent = made(PPOClip, case, seed, **setting)
    theta, w = agent.theta.copy(), agent.w.copy()
    optimizer = OPTIMIZERS[setting.pop("optimizer")]
    ascents = optimizer(len(theta), setting.pop("alpha")), optimizer(len(w), setting.pop("alpha_w"))
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    for traj in batches(case, seed):
        before = theta
        b = batch_of(*case[:2], traj, w, gamma=setting["gamma"], lam=setting["lam"])
        theta, w, epochs, clipped = box(case, theta, w, ascents, traj, rngs[0], **setting)
        diagnostics = agent.update(traj, rngs[1])
        near(agent.theta, theta)
        near(agent.w, w)
        rho = density(case.policy, theta, b.X, b.a) / density(case.policy, before, b.X, b.a)
        assert diagnostics["epochs"] == epochs
        assert diagnostics["kl"] == pytest.approx(np.mean(divergence(case.policy, before, theta, b.X)), abs=1e-12)
        assert diagnostics["clipped"] == np.mean((rho > 1 + setting["epsilon"]) | (rho < 1 - setting["epsilon"]))
        found += [(epochs, clipped)]
    return found


@pytest.mark.equation("7.20", "8.12", "8.13", "11.1", "11.7", "11.8", "11.9", "11.15", "11.16")
@pytest.mark.parametrize("kind", CASES)
@given(  # c of the values is no multiple of what a step can change them by, for there is a kink
    seeds,
    st.sampled_from([0.0, 0.7, 1.0]),
    st.integers(1, 4),
    st.sampled_from([1, 5, 9, 1000]),
    st.sampled_from([0.01, 0.2, 2.0]),
    st.sampled_from([None, "standardize"]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([None, 0.0517, 1.03]),
    st.sampled_from([None, 0.5]),
)
@examples(25)
def test_update_is_its_box_line_by_line(
    kind, seed, lam, epochs, minibatch, epsilon, normalize, beta, value_clip, clip
):  # fmt: skip
    how = {"lam": lam, "epochs": epochs, "minibatch": minibatch, "epsilon": epsilon, "normalize": normalize}
    alpha = 0.0003 if "gaussian" in kind else 0.1  # nothing holds the ratio of a row with Â < 0 back, nor 1/σ
    check_box(kind, seed, **how, beta=beta, value_clip=value_clip, clip=clip, alpha=alpha)


@pytest.mark.equation("8.13", "8.14", "11.9")
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["dense", "gaussian"])
def test_update_is_its_box_with_every_optimizer(kind, optimizer, clip):
    found = check_box(kind, 0, epochs=4, normalize="standardize", optimizer=optimizer, clip=clip, alpha=0.03)
    assert all(clipped > 0 for _, clipped in found) or optimizer == "ascent"


@pytest.mark.equation("11.10")
@pytest.mark.parametrize(("kind", "alpha"), [("one-hot", 0.3), ("dense", 0.1), ("gaussian", 0.01)])
def test_update_is_its_box_with_an_early_stop(kind, alpha):
    how = {"epochs": 8, "target_kl": 0.02, "alpha": alpha}
    found = [epochs for seed in range(5) for epochs, _ in check_box(kind, seed, **how)]
    assert min(found) < 8
    assert len(set(found)) > 1


@pytest.mark.equation("11.10")
@pytest.mark.parametrize("kind", ["dense", "gaussian"])
def test_passes_end_after_the_first_with_a_divergence_above_the_target_which_is_kept(kind):
    (traj,) = batches(CASES[kind], 0, count=1)

    def update(epochs, target_kl):
        agent = made(PPOClip, CASES[kind], 0, **SETTINGS | {"epochs": epochs, "target_kl": target_kl, "minibatch": 5})
        return agent.update(traj, np.random.default_rng(0)), agent.state()

    alone = [update(epochs, None) for epochs in range(1, 9)]
    divergences = np.array([diagnostics["kl"] for diagnostics, _ in alone])
    for target in (0.5 * divergences[0], divergences[:4].mean(), divergences[:7].mean(), 1e3):
        above = np.flatnonzero(divergences > target)
        k = above[0] if len(above) else 7
        diagnostics, state = update(8, target)
        assert diagnostics == alone[k][0]
        assert diagnostics["epochs"] == k + 1
        assert all(np.array_equal(state[name], value) for name, value in alone[k][1].items())


# The first step, and what comes after it


@pytest.mark.equation("8.12", "11.2", "11.7", "11.10")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([1e-6, 0.2, 10.0]), st.sampled_from([0.0, 0.3]))
@examples(8)
def test_the_first_step_is_the_plain_policy_gradient_whatever_epsilon(kind, seed, epsilon, beta):
    case, (traj,) = CASES[kind], batches(CASES[kind], seed, count=1)
    agent = made(PPOClip, case, seed, **SETTINGS | ONE_STEP | {"epsilon": epsilon, "beta": beta, "value_clip": 1e-6})
    theta, w = agent.theta, agent.w
    agent.update(traj, np.random.default_rng(0))
    b = batch_of(*case[:2], traj, w, gamma=0.8, lam=0.7)
    rows = b.A[:, None] * scores(case.policy, theta, b.X, b.a) + beta * entropy_gradient(case.policy, theta, b.X)
    near(agent.theta, theta + 0.003 * rows.mean(axis=0))
    near(agent.w, w + 0.1 * b.A @ b.X_v / len(b.A))


def two_rows(p: float, **changed) -> PPOClip:
    """The example of chapter 11: rows of either action with Â = ±1; action 0 has the probability p.

    A step of α in both logits is one of 2α in their difference.
    """
    agent = PPOClip(*ONE_STATE[:2], **SETTINGS | {"minibatch": 10, "alpha_w": 0.0} | changed)
    agent.init(np.random.default_rng(0))
    agent.theta = np.array([log_odds(p), 0.0])
    return agent


@pytest.mark.equation("11.10")
def test_a_ratio_far_beyond_the_clip_has_no_gradient_that_brings_it_back():
    for epochs in (1, 5):
        agent = two_rows(0.1, alpha=5.0, epochs=epochs)
        diagnostics = agent.update(bandit((1.0, -1.0), [1, 1]), np.random.default_rng(0))
        p = first_probability(agent)
        assert p == pytest.approx(0.9428, abs=5e-5)
        assert (p / 0.1, (1 - p) / 0.9) == (pytest.approx(9.43, abs=5e-3), pytest.approx(0.0635, abs=5e-5))
        assert diagnostics["kl"] == pytest.approx(2.256, abs=5e-4)
        assert diagnostics["clipped"] == 1
        assert agent.theta[0] - agent.theta[1] == pytest.approx(log_odds(0.1) + 5, abs=1e-14)


@pytest.mark.equation("11.9", "11.10")
def test_a_clipped_ratio_is_carried_on_by_other_rows():
    probabilities = [0.1]
    for epochs in (1, 10, 30, 75, 150, 300, 500, 600):
        agent = two_rows(0.1, alpha=0.02, epochs=epochs)
        diagnostics = agent.update(bandit((1.0, -1.0), [1, 1]), np.random.default_rng(0))
        probabilities.append(first_probability(agent))
    clipped_long_ago = [p for p in probabilities if 0.13 < p < 0.28]
    assert len(clipped_long_ago) >= 2
    assert all(before < after for before, after in pairwise(probabilities[:-1]))
    assert probabilities[-1] == probabilities[-2]  # both rows are clipped
    assert probabilities[-1] == pytest.approx(0.28, abs=1e-3)
    assert probabilities[-1] > 0.28
    assert diagnostics["kl"] == pytest.approx(0.0979, abs=1e-3)


@pytest.mark.equation("11.10")
def test_the_early_stop_ends_the_drift_and_does_not_undo_the_step_that_went_too_far():
    drift = two_rows(0.1, alpha=0.005, epochs=4000, target_kl=0.01)
    drift.update(bandit((1.0, -1.0), [1, 1]), np.random.default_rng(0))
    assert 0.01 < kl(0.1, first_probability(drift)) < 0.0103
    leap = two_rows(0.1, alpha=5.0, epochs=4000, target_kl=0.01)
    diagnostics = leap.update(bandit((1.0, -1.0), [1, 1]), np.random.default_rng(0))
    assert diagnostics["epochs"] == 1
    assert diagnostics["kl"] > 2


@pytest.mark.equation("11.10", defining=True)
@pytest.mark.equation("11.1", "11.9")
@given(instances(), st.sampled_from([0.05, 0.2, 1.0]), seeds)
@examples(200)
def test_to_first_order_a_ratio_moves_by_the_rows_that_are_not_clipped(p, epsilon, seed):
    theta = p.theta + 0.3 * np.random.default_rng(seed).normal(size=p.theta.shape)
    L = Surrogate(p.policy, p.theta, p.x, p.a, p.w)
    rho, psi = L.ratio(theta), p.policy.score(theta, p.x, p.a)
    clipped = ((p.w > 0) & (rho > 1 + epsilon)) | ((p.w < 0) & (rho < 1 - epsilon))
    expected = psi @ psi.T @ np.where(clipped, 0, rho * p.w) / len(p.w)
    g = L.gradient(theta, epsilon)
    step = 1e-30j * g
    moved = (p.policy.log_prob(theta + step, p.x, p.a) - p.policy.log_prob(theta - step, p.x, p.a)).imag / 2e-30
    size = np.abs(psi @ psi.T).sum(axis=1).max() * np.abs(rho * p.w).max()
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-12 * (1 + size))


@pytest.mark.equation("11.9", "11.10")
@pytest.mark.parametrize(("alpha", "further"), [(0.3, False), (0.01, True)])
def test_a_row_that_is_clipped_has_no_say(alpha, further):
    # One state for each row, so that no row moves the ratio of another.
    case = Case(SoftmaxLinear(F.OneHot(2), 2), F.OneHot(2), spaces.Discrete(2))
    rows = [Row(0, 0, 5.0, 0, True, False, 0), Row(1, 1, -0.1, 0, True, False, 0)]
    thetas = []
    for epochs in (1, 2, 3):
        agent = PPOClip(*case[:2], **SETTINGS | {"alpha": alpha, "epochs": epochs, "minibatch": 10})
        agent.init(np.random.default_rng(0))
        agent.update(step_of(case.policy, rows, rows[0]), np.random.default_rng(0))
        thetas.append(agent.theta.reshape(2, 2))
    assert (thetas[2][0, 0] > thetas[1][0, 0] > thetas[0][0, 0]) == further  # α = 0.3 leads to ρ = 1.36 at once
    assert (thetas[1][0, 0] == thetas[0][0, 0]) == (not further)
    assert thetas[2][1, 1] < thetas[1][1, 1] < thetas[0][1, 1]


# Advantages, values, and norms


@pytest.mark.equation("11.15")
@pytest.mark.parametrize("target_kl", [None, 0.01])
def test_with_normalised_advantages_the_scale_of_rewards_does_not_matter(target_kl):
    how = {"normalize": "standardize", "epsilon": 0.05, "target_kl": target_kl}
    check_the_scale_of_rewards_does_not_matter(PPOClip, **SETTINGS | how)


@pytest.mark.equation("11.15")
def test_advantages_that_differ_by_rounding_alone_are_not_normalised():
    (traj,) = batches(CASES["one-hot"], 0, count=1)
    traj.truncated |= traj.terminated
    traj.rewards[:], traj.terminated[:] = 0.7, False
    agents = [made(PPOClip, CASES["one-hot"], 0, **SETTINGS | {"normalize": how}) for how in (None, "standardize")]
    for agent in agents:
        agent.w[:] = 0.7 / (1 - 0.8)  # the value, up to rounding
        agent.update(traj, np.random.default_rng(0))
    assert np.array_equal(agents[0].theta, agents[1].theta)


@pytest.mark.equation("11.16")
@pytest.mark.parametrize(("v_old", "reward"), [(0.0, 1.0), (5.0, 2.0), (-1.0, 3.5)])
def test_with_value_clipping_a_value_rests_once_it_is_closer_by_c(v_old, reward):
    rest = []
    for value_clip in (0.2, None):
        agent = PPOClip(*ONE_STATE[:2], **SETTINGS | {"epochs": 400, "value_clip": value_clip, "alpha_w": 0.05})
        agent.init(np.random.default_rng(0))
        agent.w = np.array([v_old])
        agent.update(bandit((reward, reward), [1, 1]), np.random.default_rng(0))
        rest.append(float(agent.w[0]))
    gap = reward - v_old
    assert 0.2 < (rest[0] - v_old) * np.sign(gap) < 0.2 + 0.05 * abs(gap)
    assert rest[1] == pytest.approx(reward, abs=1e-6)


@pytest.mark.equation("11.16")
@pytest.mark.parametrize("kind", CASES)
@given(seeds)
@examples(20)
def test_a_value_clip_that_no_value_reaches_changes_nothing(kind, seed):
    agents = [made(PPOClip, CASES[kind], seed, **SETTINGS | {"value_clip": c, "minibatch": 3}) for c in (None, 1e6)]
    for traj in batches(CASES[kind], seed):
        for agent in agents:
            agent.update(traj, np.random.default_rng(0))
        assert np.array_equal(agents[0].w, agents[1].w)


@pytest.mark.equation("8.13")
@pytest.mark.parametrize("kind", ["one-hot", "gaussian"])
def test_no_step_is_longer_than_alpha_times_the_clip(kind):
    agent = made(PPOClip, CASES[kind], 0, **SETTINGS | ONE_STEP | {"clip": 0.01, "alpha": 2.0, "alpha_w": 3.0})
    theta, w, (traj,) = agent.theta, agent.w, batches(CASES[kind], 0, count=1)
    agent.update(traj, np.random.default_rng(0))
    assert np.linalg.norm(agent.theta - theta) == pytest.approx(0.02, rel=1e-10)
    assert np.linalg.norm(agent.w - w) == pytest.approx(0.03, rel=1e-10)


@pytest.mark.equation("8.12")
def test_the_entropy_alone_leads_to_the_uniform_policy():
    agent = two_rows(0.1, beta=0.5, epochs=300, alpha=0.5)
    diagnostics = agent.update(bandit((0.0, 0.0), [1, 1]), np.random.default_rng(0))
    assert first_probability(agent) == pytest.approx(0.5, abs=1e-6)
    assert diagnostics["entropy"] == pytest.approx(np.log(2), abs=1e-10)
