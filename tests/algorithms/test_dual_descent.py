"""Dual descent against its box, what it converges to, and the multiplier that must not be negative."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    COUNTS,
    ONE_STATE,
    THREE_ACTIONS,
    VALUES,
    bandit,
    batch_of,
    batches,
    check_the_scale_of_rewards_does_not_matter,
    density,
    divergence,
    divergence_gradient,
    first_probability,
    fit,
    log_odds,
    made,
    maximiser,
    near,
    normalised,
    scores,
)
from strategies import examples, seeds

from npg import features as F
from npg.algorithms import DualDescent
from npg.optimizers import OPTIMIZERS
from npg.policies import SoftmaxLinear
from npg.surrogates import Surrogate

SETTINGS = {"gamma": 0.8, "lam": 0.7, "ridge": 0.5, "epsilon": 0.01, "dual_steps": 3, "primal_steps": 2, "mu": 0.5}
SETTINGS |= {"normalize": None, "optimizer": "ascent", "alpha": 0.02, "alpha_mu": 10.0}


def box(case, theta, w, mu, ascent, traj, *, gamma, lam, ridge, epsilon, dual_steps, primal_steps, normalize, alpha_mu):
    """The box of the method: new θ, w, μ, the divergence, and how often μ would have become negative."""
    policy, b = case.policy, batch_of(*case[:2], traj, w, gamma=gamma, lam=lam)
    theta_old, projected = theta, 0
    A, p = normalised(b.A) if normalize else b.A, density(policy, theta_old, b.X, b.a)
    for _ in range(dual_steps):
        for _ in range(primal_steps):
            rho = density(policy, theta, b.X, b.a) / p
            gain = (rho * A)[:, None] * scores(policy, theta, b.X, b.a)
            g = np.mean(gain - mu * divergence_gradient(policy, theta_old, theta, b.X), axis=0)
            theta = ascent.step(theta, g)
        d = np.mean(divergence(policy, theta_old, theta, b.X))
        mu = mu + alpha_mu * (d - epsilon)
        if mu < 0:
            mu, projected = 0.0, projected + 1
    return theta, fit(b.X_v, b.A + b.v, ridge, w), mu, d, projected


def check_box(kind, seed, **changed):
    """Three updates, so that what is kept from one to the next counts, μ too; how often μ was projected."""
    case, setting, count = CASES[kind], SETTINGS | changed, 0
    agent = made(DualDescent, case, seed, **setting)
    theta, w, mu = agent.theta.copy(), agent.w.copy(), setting.pop("mu")
    ascent = OPTIMIZERS[setting.pop("optimizer")](len(theta), setting.pop("alpha"))
    for traj in batches(case, seed, count=3):
        theta, w, mu, d, projected = box(case, theta, w, mu, ascent, traj, **setting)
        diagnostics = agent.update(traj, np.random.default_rng(0))
        near(agent.theta, theta)
        near(agent.w, w)
        assert diagnostics["mu"] == float(agent.multiplier) == pytest.approx(mu, rel=1e-10, abs=1e-12)
        assert diagnostics["kl"] == pytest.approx(d, rel=1e-10, abs=1e-13)
        assert agent.multiplier >= 0
        count += projected
    return count


@pytest.mark.equation("11.13", defining=True)
@pytest.mark.equation("7.20", "11.1", "11.2", "11.11", "11.15")
@pytest.mark.parametrize("kind", CASES)
@given(
    seeds,
    st.sampled_from([0.0, 0.7, 1.0]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1e-4, 0.01, 0.2]),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0.0, 1.0, 20.0]),
    st.sampled_from([None, "standardize"]),
)
@examples(15)
def test_update_is_its_box_line_by_line(kind, seed, lam, dual, primal, epsilon, mu, alpha_mu, normalize):
    how = {"lam": lam, "dual_steps": dual, "primal_steps": primal, "epsilon": epsilon, "mu": mu, "alpha_mu": alpha_mu}
    check_box(kind, seed, **how, normalize=normalize, alpha=0.0003 if "gaussian" in kind else 0.1)


@pytest.mark.equation("8.14", "11.13")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["dense", "gaussian"])
def test_update_is_its_box_with_every_optimizer(kind, optimizer):
    check_box(kind, 0, normalize="standardize", optimizer=optimizer)


# What the multiplier comes to


@pytest.mark.equation("11.13")
@pytest.mark.parametrize(("epsilon", "alpha_mu"), [(0.005, 200.0), (0.02, 60.0)])
def test_on_one_batch_it_comes_to_the_constrained_maximum_and_its_multiplier(epsilon, alpha_mu):
    how = {"dual_steps": 80, "primal_steps": 40, "alpha": 0.3, "alpha_mu": alpha_mu, "mu": 6.0, "normalize": None}
    agent = DualDescent(*THREE_ACTIONS[:2], epsilon=epsilon, optimizer="ascent", **how)
    agent.init(np.random.default_rng(0))
    agent.theta = np.log(COUNTS)
    diagnostics = agent.update(bandit(VALUES, COUNTS, THREE_ACTIONS), np.random.default_rng(0))
    pi, A, p = COUNTS / 10, np.array(VALUES), np.exp(agent.theta) / np.exp(agent.theta).sum()
    assert diagnostics["kl"] == pytest.approx(epsilon, rel=1e-6)
    assert (pi * np.log(pi / p)).sum() == pytest.approx(epsilon, rel=1e-6)
    mu = diagnostics["mu"]
    np.testing.assert_allclose(p, maximiser(pi, A, mu), rtol=0, atol=1e-8)
    model = np.sqrt(pi @ (A - pi @ A) ** 2 / (2 * epsilon))  # of (11.4)
    assert mu == pytest.approx(model, rel=0.1)
    rng = np.random.default_rng(0)
    for direction in rng.normal(size=(300, 3)):  # no policy within the radius has a larger surrogate
        for t in (0.1, 0.3, 1.0):
            q = pi * np.exp(t * direction)
            q = q / q.sum()
            assert (pi * np.log(pi / q)).sum() > epsilon or q @ A <= p @ A + 1e-9


@pytest.mark.equation("11.13")
def test_where_the_constraint_does_not_bind_the_multiplier_comes_to_zero():
    agent = DualDescent(*ONE_STATE[:2], epsilon=10.0, alpha=0.1, alpha_mu=0.01, mu=0.3, optimizer="ascent")
    agent.init(np.random.default_rng(0))
    agent.update(bandit((1.0, -1.0), [1, 1]), np.random.default_rng(0))
    assert agent.multiplier == 0
    assert first_probability(agent) > 0.9


def multipliers_of_the_model(alpha_mu: float, count: int) -> np.ndarray:
    """μ by the agent's own rule with D̄ = gᵀF⁻¹g/(2μ²), gᵀF⁻¹g = 0.08 and ε = 0.01, from 2.1."""
    found = []
    for steps in (count - 1, count):
        agent = DualDescent(
            *ONE_STATE[:2], mu=2.1, epsilon=0.01, alpha=0.0, alpha_mu=alpha_mu, dual_steps=steps, primal_steps=1
        )
        agent.init(np.random.default_rng(0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Surrogate, "kl", lambda self, theta, agent=agent: 0.04 / agent.multiplier**2)
            agent.update(bandit((1.0, 0.0), [1, 1]), np.random.default_rng(0))
        found.append(float(agent.multiplier))
    return np.array(found)


@pytest.mark.equation("11.13")
@pytest.mark.parametrize(
    ("alpha_mu", "count", "expected"),
    [
        (50.0, 2, (2.05351, 2.02779)), (50.0, 60, (2.0, 2.0)), (150.0, 2, (1.96054, 2.02152)), (150.0, 60, (2.0, 2.0)),
        (201.0, 2, (1.91313, 2.09981)), (201.0, 1000, (1.9164, 2.0956)),
    ],
)  # fmt: skip
def test_in_the_quadratic_model_it_converges_or_alternates_as_the_step_size_is(alpha_mu, count, expected):
    actual = multipliers_of_the_model(alpha_mu, count)
    assert sorted(actual) == pytest.approx(sorted(expected), abs=1e-4 if count == 1000 else 1e-5)


def lagrangian(pi, A, p, mu, epsilon):
    """L − λ(D̄ − ε) of one state with exact expectations."""
    return (p - pi) @ A - mu * ((pi * np.log(pi / p)).sum() - epsilon)


@pytest.mark.equation("11.13")
@given(seeds, st.integers(2, 4), st.floats(0.001, 0.5), st.floats(0.05, 5), st.floats(0.05, 5))
@examples(200)
def test_the_dual_function_is_convex_and_its_slope_the_excess_of_the_divergence(seed, k, epsilon, mu, other):
    rng = np.random.default_rng(seed)
    counts, A = rng.integers(1, 6, size=k), rng.normal(size=k)
    pi = counts / counts.sum()
    A = A - pi @ A
    case = SoftmaxLinear(F.Constant(), k)
    a = np.repeat(np.arange(k), counts)
    L = Surrogate(case, np.log(counts), np.ones((len(a), 1)), a, A[a])
    p, q = maximiser(pi, A, mu), maximiser(pi, A, other)
    D_p, D_q = ((pi * np.log(pi / r)).sum() for r in (p, q))
    at_rest = L.gradient(np.log(p)) - mu * L.kl_gradient(np.log(p))
    np.testing.assert_allclose(at_rest, 0, atol=1e-11 * (1 + mu))
    G_p, G_q = lagrangian(pi, A, p, mu, epsilon), lagrangian(pi, A, q, other, epsilon)
    assert L.value(np.log(p)) - mu * (L.kl(np.log(p)) - epsilon) == pytest.approx(G_p, abs=1e-11)
    assert G_q >= G_p - (other - mu) * (D_p - epsilon) - 1e-11
    assert (other - mu) * (D_q - D_p) <= 1e-11
    h = 1e-5 * mu
    up, down = (lagrangian(pi, A, maximiser(pi, A, m), m, epsilon) for m in (mu + h, mu - h))
    assert (up - down) / (2 * h) == pytest.approx(epsilon - D_p, abs=1e-6 * (1 + D_p + D_q) + 1e-9 / mu)
    for r in rng.dirichlet(np.ones(k), size=10):  # weak duality
        r = pi + min(1, np.sqrt(epsilon)) * (r - pi)
        assert (pi * np.log(pi / r)).sum() > epsilon or (r - pi) @ A <= min(G_p, G_q) + 1e-11


# The projection


@pytest.mark.equation("11.13", "11.14")
@pytest.mark.parametrize("kind", ["one-hot", "dense", "gaussian"])
@given(seeds)
@examples(20)
def test_the_multiplier_is_never_negative_where_it_would_be_without_the_projection(kind, seed):
    assert check_box(kind, seed, mu=0.05, epsilon=0.5, alpha=0.003) > 0


@pytest.mark.equation("11.14")
def test_one_batch_with_a_small_divergence_would_make_it_negative(monkeypatch):
    assert 0.05 + 10 * (0.001 - 0.01) == pytest.approx(-0.04, abs=1e-15)
    monkeypatch.setattr(Surrogate, "kl", lambda self, theta: 0.001)
    agent = DualDescent(*ONE_STATE[:2], mu=0.05, epsilon=0.01, alpha_mu=10.0, dual_steps=1)
    agent.init(np.random.default_rng(0))
    agent.update(bandit((1.0, 0.0), [1, 1]), np.random.default_rng(0))
    assert agent.multiplier == 0


HALF = Surrogate(ONE_STATE.policy, np.zeros(2), np.ones((2, 1)), np.array([0, 1]), np.array([0.5, -0.5]))
"""The example of chapter 11: Â = ±½ under the uniform policy."""


def ascended(p: float, mu: float, steps: int) -> float:
    """log(p/(1−p)) after gradient ascent on L − λD̄ from p, by steps of 0.1 in the log-odds."""
    theta = np.array([log_odds(p), 0.0])
    for _ in range(steps):
        theta = theta + 0.05 * (HALF.gradient(theta) - mu * HALF.kl_gradient(theta))
    return float(theta[0] - theta[1])


@pytest.mark.equation("11.14", defining=True)
def test_a_negative_multiplier_leaves_the_lagrangian_without_a_maximum():
    for p in (0.001, 0.1, 0.2929, 0.5, 0.9, 0.999):
        theta = np.array([log_odds(p), 0.0])
        assert HALF.value(theta) == pytest.approx(p - 0.5, abs=1e-14)
        assert HALF.kl(theta) == pytest.approx(-0.5 * np.log(4 * p * (1 - p)), abs=1e-13)
        g = HALF.gradient(theta) + HALF.kl_gradient(theta)
        assert g == pytest.approx(np.array([1, -1]) * (p * (1 - p) + p - 0.5), abs=1e-14)
    rising = [HALF.value(theta) + HALF.kl(theta) for theta in np.array([[z, 0.0] for z in (6, 12, 24, 48, 300)])]
    assert rising == pytest.approx([0.5 + z / 2 - np.log(2) for z in (6, 12, 24, 48, 300)], abs=0.003)
    theta = np.array([log_odds(0.999), 0.0])
    assert HALF.value(theta) + HALF.kl(theta) == pytest.approx(3.2602, abs=5e-5)


@pytest.mark.equation("11.14")
def test_with_a_negative_multiplier_ascent_ruins_the_policy_and_with_a_positive_one_it_does_not():
    turn = 1 - np.sqrt(0.5)
    assert turn == pytest.approx(0.2929, abs=5e-5)
    assert ascended(0.29, -1.0, 2000) < -50  # the bad action for certain
    assert ascended(0.3, -1.0, 2000) > 50
    assert abs(ascended(0.3, -1.0, 4000)) > 1.9 * abs(ascended(0.3, -1.0, 2000))
    rest = maximiser(np.array([0.5, 0.5]), np.array([0.5, -0.5]), 1.0)
    for p in (0.01, 0.29, 0.3, 0.99):
        assert ascended(p, 1.0, 2000) == pytest.approx(np.log(rest[0] / rest[1]), abs=1e-10)


@pytest.mark.equation("11.14")
def test_an_agent_given_a_negative_multiplier_runs_away_within_one_batch():
    found = {}
    for mu in (1.0, -1.0):
        for K in (400, 800):
            how = {"dual_steps": 1, "primal_steps": K, "alpha": 0.5, "normalize": None, "optimizer": "ascent"}
            agent = DualDescent(*ONE_STATE[:2], **how)
            agent.init(np.random.default_rng(0))
            agent.multiplier = np.array(mu)
            agent.update(bandit((0.5, -0.5), [1, 1]), np.random.default_rng(0))
            found[mu, K] = agent.theta[0] - agent.theta[1]
    assert found[1.0, 400] == pytest.approx(found[1.0, 800], abs=1e-12)
    assert found[-1.0, 800] == pytest.approx(found[-1.0, 400] + 400 * 0.5, rel=1e-6)  # slope ½, in both logits


# Advantages, columns


@pytest.mark.equation("11.15")
def test_with_normalised_advantages_the_scale_of_rewards_does_not_matter():
    check_the_scale_of_rewards_does_not_matter(DualDescent, **SETTINGS | {"normalize": "standardize"})
