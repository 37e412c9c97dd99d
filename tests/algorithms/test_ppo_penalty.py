"""PPO with a penalty against its box with the same minibatches, its maximiser, and the rule for β."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
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
    fit,
    made,
    maximiser,
    near,
    normalised,
    scores,
)
from strategies import examples, seeds

from npg.algorithms import PPOPenalty
from npg.algorithms.ppo_penalty import LEAST_BETA, MOST_BETA
from npg.optimizers import OPTIMIZERS
from npg.surrogates import Surrogate

SETTINGS = {"gamma": 0.8, "lam": 0.7, "ridge": 0.5, "epochs": 3, "minibatch": 9, "target_kl": 0.01, "beta": 1.5}
SETTINGS |= {"normalize": None, "optimizer": "ascent", "alpha": 0.003}
BATCH = {"epochs": 1, "minibatch": 10**6}


def box(case, theta, w, beta, ascent, traj, rng, *, gamma, lam, ridge, epochs, minibatch, target_kl, normalize):
    """The box of chapter 11: new θ, w and β, and the divergence."""
    policy, b = case.policy, batch_of(*case[:2], traj, w, gamma=gamma, lam=lam)
    B, theta_old = len(b.A), theta
    A, p = normalised(b.A) if normalize else b.A, density(policy, theta_old, b.X, b.a)
    for _ in range(epochs):
        order = rng.permutation(B)
        for part in np.array_split(order, max(round(B / minibatch), 1)):
            X = tuple(x[part] for x in b.X)
            rho = density(policy, theta, X, b.a[part]) / p[part]
            gain = (rho * A[part])[:, None] * scores(policy, theta, X, b.a[part])
            g = np.mean(gain - beta * divergence_gradient(policy, theta_old, theta, X), axis=0)
            theta = ascent.step(theta, g)
    d = np.mean(divergence(policy, theta_old, theta, b.X))
    if d < target_kl / 1.5:
        beta = 0.5 * beta
    elif d > target_kl * 1.5:
        beta = 2 * beta
    return theta, fit(b.X_v, b.A + b.v, ridge, w), beta, d


def check_box(kind, seed, **changed):
    """Three updates, so that what is kept from one to the next counts, β too; the values of β."""
    case, setting = CASES[kind], SETTINGS | changed
    agent = made(PPOPenalty, case, seed, **setting)
    theta, w, beta = agent.theta.copy(), agent.w.copy(), setting.pop("beta")
    ascent = OPTIMIZERS[setting.pop("optimizer")](len(theta), setting.pop("alpha"))
    rngs, betas = [np.random.default_rng(seed) for _ in range(2)], [beta]
    for traj in batches(case, seed, count=3):
        theta, w, beta, d = box(case, theta, w, beta, ascent, traj, rngs[0], **setting)
        diagnostics = agent.update(traj, rngs[1])
        near(agent.theta, theta)
        near(agent.w, w)
        assert diagnostics["kl"] == pytest.approx(d, rel=1e-10, abs=1e-13)
        assert diagnostics["beta"] == float(agent.penalty) == beta
        betas.append(beta)
    return betas


@pytest.mark.equation("7.20", "11.1", "11.2", "11.11", "11.12", "11.15")
@pytest.mark.parametrize("kind", CASES)
@given(
    seeds,
    st.sampled_from([0.0, 0.7, 1.0]),
    st.integers(1, 4),
    st.sampled_from([1, 5, 9, 1000]),
    st.sampled_from([1e-4, 0.003, 0.05]),
    st.sampled_from([0.01, 1.5, 4.0]),
    st.sampled_from([None, "standardize"]),
)
@examples(15)
def test_update_is_its_box_line_by_line(kind, seed, lam, epochs, minibatch, target_kl, beta, normalize):
    how = {"lam": lam, "epochs": epochs, "minibatch": minibatch, "target_kl": target_kl, "beta": beta}
    check_box(kind, seed, **how, normalize=normalize, alpha=0.0003 if "gaussian" in kind else 0.1)


@pytest.mark.equation("8.14", "11.11")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["dense", "gaussian"])
def test_update_is_its_box_with_every_optimizer(kind, optimizer):
    check_box(kind, 0, epochs=4, normalize="standardize", optimizer=optimizer, alpha=0.02)


@pytest.mark.equation("11.12")
def test_the_box_is_met_on_all_three_branches():
    factors = set()
    for seed in range(12):
        betas = check_box("dense", seed, epochs=5, alpha=0.1)
        factors |= {after / before for before, after in pairwise(betas)}
    assert factors == {0.5, 1.0, 2.0}


# The rule for β


@pytest.mark.equation("11.12", defining=True)
@pytest.mark.parametrize("kind", ["one-hot", "gaussian"])
def test_beta_is_halved_below_the_band_doubled_above_it_and_kept_within(kind):
    (traj,) = batches(CASES[kind], 0, count=1)

    def update(target):
        agent = made(PPOPenalty, CASES[kind], 0, **SETTINGS | {"target_kl": target, "alpha": 0.02})
        diagnostics = agent.update(traj, np.random.default_rng(0))
        return diagnostics["kl"], float(agent.penalty) / 1.5

    d, _ = update(1.0)  # which no target changes
    wide = 1.5 * (1 + 1e-12)
    targets = {wide * d: 0.5, 1e3 * d: 0.5, d / wide: 2.0, d / 1e3: 2.0, 1.4999 * d: 1.0, d / 1.4999: 1.0, d: 1.0}
    assert {target: update(target) for target in targets} == {t: (d, factor) for t, factor in targets.items()}


@pytest.mark.equation("11.12")
@pytest.mark.parametrize(("d", "limit"), [(0.0, LEAST_BETA), (1.0, MOST_BETA)])
def test_beta_keeps_to_limits_from_where_it_can_come_back(d, limit):
    agent, found = PPOPenalty(*ONE_STATE[:2], alpha=0.0, epochs=1), []
    agent.init(np.random.default_rng(0))
    with pytest.MonkeyPatch.context() as patch:
        for d_t in [d] * 25 + [1.0 - d]:
            patch.setattr(Surrogate, "kl", lambda self, theta, d_t=d_t: d_t)
            found.append(agent.update(bandit((1.0, 0.0), [1, 1]), np.random.default_rng(0))["beta"])
    assert found[:3] == ([2.0, 4.0, 8.0] if d else [0.5, 0.25, 0.125])
    assert all(LEAST_BETA <= beta <= MOST_BETA for beta in found)
    assert found[-2] == found[-3] == limit
    assert found[-1] == (limit / 2 if d else 2 * limit)


def divergences_of_the_model(first: float, count: int, target: float = 0.01) -> list[float]:
    """D̄ = gᵀF⁻¹g/(2β²) of each update by the agent's own rule, θ standing still."""
    agent = PPOPenalty(*ONE_STATE[:2], alpha=0.0, target_kl=target, epochs=1)
    agent.init(np.random.default_rng(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Surrogate, "kl", lambda self, theta: first / agent.penalty**2)
        return [agent.update(bandit((1.0, 0.0), [1, 1]), np.random.default_rng(0))["kl"] for _ in range(count)]


@pytest.mark.equation("11.12")
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (0.02, [0.005, 0.02, 0.005, 0.02, 0.005]),
        (0.0151, [0.003775, 0.0151, 0.003775, 0.0151, 0.003775]),
        (0.0265, [0.006625, 0.0265, 0.006625, 0.0265, 0.006625]),
        (0.03, [0.0075] * 5),
        (0.0267, [0.006675] * 5),
        (0.0149, [0.0149] * 5),
        (1.28, [0.32, 0.08, 0.02, 0.005, 0.02]),
    ],
)
def test_in_the_quadratic_model_beta_may_alternate_for_ever(first, then):
    assert divergences_of_the_model(first, 6) == pytest.approx([first, *then], rel=1e-14)
    if then[-1] != then[-2]:
        assert divergences_of_the_model(first, 41)[-2:] in (pytest.approx(then[-2:]), pytest.approx(then[-2:][::-1]))


@pytest.mark.equation("11.12")
@given(st.floats(-6, 6))
@examples(200)
def test_beta_alternates_exactly_if_it_meets_the_gap_that_the_chapter_states(power):
    first = 0.01 * 4**power
    met = [first * 4.0**k / 0.01 for k in range(-15, 16)]
    assume(min(abs(value / edge - 1) for value in met for edge in (1.5, 8 / 3)) > 1e-9)
    *_, before, last = divergences_of_the_model(first, 24)
    assert (before != last) == any(1.5 < value < 8 / 3 for value in met)
    if before == last:
        assert 0.01 / 1.5 <= last <= 0.01 * 1.5
    else:
        assert {before / last, last / before} == {4.0, 0.25}
        assert 0.75 * 0.01 < np.sqrt(before * last) < 4 / 3 * 0.01


@pytest.mark.equation("11.11", "11.12")
@pytest.mark.parametrize(("first", "then"), [(2e-4, (0.5e-4, 2e-4)), (3e-4, (0.75e-4, 0.75e-4))])
def test_beta_alternates_on_a_real_batch_maximised_to_the_end(first, then):
    # With Â = ±s and p = ½, gᵀF⁻¹g = s²; small, so that the model is right to a hundredth.
    agent = PPOPenalty(*ONE_STATE[:2], target_kl=1e-4, normalize=None, optimizer="ascent", alpha=1.0, epochs=60)
    agent.init(np.random.default_rng(0))
    s, met = np.sqrt(2 * first), []
    for _ in range(9):
        agent.theta, agent.w = np.zeros(2), np.zeros(1)
        met.append(agent.update(bandit((s, -s), [1, 1]), np.random.default_rng(0))["kl"])
    assert met == pytest.approx([first, *then * 4], rel=1e-2)


# What is maximised


@pytest.mark.equation("11.11")
@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_maximised_to_the_end_the_policy_is_the_one_of_the_closed_form(beta):
    agent = PPOPenalty(*THREE_ACTIONS[:2], beta=beta, normalize=None, optimizer="ascent", alpha=0.8 / beta, epochs=400)
    agent.init(np.random.default_rng(0))
    agent.theta = np.log(COUNTS)
    diagnostics = agent.update(bandit(VALUES, COUNTS, THREE_ACTIONS), np.random.default_rng(0))
    pi, p = COUNTS / 10, np.exp(agent.theta) / np.exp(agent.theta).sum()
    np.testing.assert_allclose(p, maximiser(pi, np.array(VALUES), beta), rtol=0, atol=1e-12)
    assert diagnostics["kl"] == pytest.approx((pi * np.log(pi / p)).sum(), rel=1e-10)


@pytest.mark.equation("11.11")
@given(seeds)
@examples(50)
def test_for_a_large_beta_the_maximiser_is_the_natural_step_and_beta_that_of_a_radius(seed):
    rng = np.random.default_rng(seed)
    pi, A = rng.dirichlet(np.full(4, 5.0)), rng.normal(size=4)
    fisher = np.diag(pi) - np.outer(pi, pi)
    g = pi * (A - pi @ A)
    natural = np.linalg.pinv(fisher, rcond=1e-12, hermitian=True) @ g
    errors = []
    for beta in (1e3, 2e3):
        p = maximiser(pi, A, beta)
        step, D = np.log(p / pi), (pi * np.log(pi / p)).sum()
        step = step - step.mean() + natural.mean() / beta  # logits are free up to a constant
        errors.append((np.abs(beta * step - natural).max(), abs(D * 2 * beta**2 / (g @ natural) - 1)))
        assert np.sqrt(g @ natural / (2 * D)) == pytest.approx(beta, rel=0.1)
    assert errors[1] == pytest.approx(np.array(errors[0]) / 2, rel=0.1, abs=1e-4)


@pytest.mark.equation("11.2", "11.11")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([0.01, 1.0, 1e6]))
@examples(5)
def test_the_penalty_acts_from_the_second_step_on(kind, seed, beta):
    case, (traj,) = CASES[kind], batches(CASES[kind], seed, count=1)
    agent = made(PPOPenalty, case, seed, **SETTINGS | BATCH | {"beta": beta})
    theta, w = agent.theta, agent.w
    agent.update(traj, np.random.default_rng(0))
    b = batch_of(*case[:2], traj, w, gamma=0.8, lam=0.7)
    near(agent.theta, theta + 0.003 * np.mean(b.A[:, None] * scores(case.policy, theta, b.X, b.a), axis=0))
    thetas = []
    for other in (beta, 2 * beta):
        agent = made(PPOPenalty, case, seed, **SETTINGS | BATCH | {"beta": min(other, MOST_BETA), "epochs": 2})
        agent.alpha = agent.ascent.alpha = 0.003 / max(1, beta)
        agent.update(traj, np.random.default_rng(0))
        thetas.append(agent.theta)
    assert np.array_equal(*thetas) == (beta == MOST_BETA)


@pytest.mark.equation("11.15")
def test_with_normalised_advantages_the_scale_of_rewards_does_not_matter():
    check_the_scale_of_rewards_does_not_matter(PPOPenalty, **SETTINGS | {"normalize": "standardize", "alpha": 0.05})
